# SPDX-License-Identifier: GPL-2.0-or-later
"""The strip names the frame on which guest and host disagree, and says how."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import msgspec
import pytest

from guestemu.program.text import load_program, parse_text
from guestemu.report.strip import (
    NO,
    YES,
    Column,
    Strip,
    StripRow,
    drawn_columns,
    strip_lines,
    strip_svg,
)
from guestemu.report.trace.run import run_program

ROOT = Path(__file__).parents[2]


def strip_of(path: str) -> Strip:
    program = load_program(ROOT / path)
    strip = run_program(msgspec.structs.replace(program, expectations=())).strip
    assert strip is not None
    return strip


def rows(strip: Strip, name: str) -> dict[str, str]:
    """The words about the frame called `name`, by row."""
    place = next(n for n, column in enumerate(strip.columns) if column.name == name)
    return {row.name: row.cells[place] for row in strip.rows}


def disagreeing(strip: Strip) -> list[str]:
    return [
        column.name for column, is_so in zip(strip.columns, strip.disagree, strict=True) if is_so
    ]


def test_a_refused_change_that_the_guest_forgets_and_its_migration() -> None:
    strip = strip_of("examples/demo/forgotten-error.prog")
    assert rows(strip, "D[0]") == {
        "asked for": "shared",
        "page tables": "shared",
        "told to the host": "shared refused",
        "host's record": "private",
        "sent as": "private",
        "read afterwards": NO,
    }
    assert disagreeing(strip) == ["D[0]"]
    assert strip.sentences == (
        "D[0]: page tables shared, host's record private (it refused), sent as private, at the "
        "destination the guest reads other bytes.",
    )


def test_frames_behind_a_hole_are_converted_and_not_told() -> None:
    strip = strip_of("corpora/conversion/hole-middle.prog")
    assert disagreeing(strip) == ["D[5]"]
    assert rows(strip, "D[3]")["told to the host"] == "shared"
    assert rows(strip, "D[5]")["told to the host"] == ""
    assert rows(strip, "D[5]")["if migrated now"] == NO


def test_page_states_of_a_td_whose_conversion_was_cut() -> None:
    strip = strip_of("corpora/tdx/cut-conversion.prog")
    done, cut = rows(strip, "L[0]"), rows(strip, "L[512]")
    assert (done["page state"], done["readable now"]) == ("shared", YES)
    assert (cut["page state"], cut["page tables"], cut["readable now"]) == ("private", "shared", NO)
    assert [column.pages for column in strip.columns] == [1, 512, 512, 1]
    assert disagreeing(strip) == ["L[512]"]
    assert cut["told to the host"] == "shared"  # MapGPA of all of it was answered with success
    assert "the host was told shared, its record says private" in strip.sentences[0]


def test_a_long_range_in_one_state_is_one_column() -> None:
    strip = strip_of("corpora/conversion/2gib-overflow.prog")
    assert [column.pages for column in strip.columns] == [1, 524288]
    assert strip.sentences == ("G[0..524287]: page tables shared, host's record private.",)


def test_what_a_migration_would_lose_is_marked() -> None:
    """Pages that are told shared and were never decrypted: the records agree but for the tables."""
    strip = strip_of("corpora/dma/decrypt-fails-5.17.prog")
    assert disagreeing(strip) == ["GPA 0x1600000"]
    assert strip.sentences[0].startswith("GPA 0x1600000..0x17fffff: page tables private, the host")


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("corpora/migration/status-before-dirty-s1.prog", ["D[0]"]),
        ("corpora/tdx/cut-conversion.prog", ["L[512]", "L[1023]"]),
    ],
)
def test_frames_on_which_records_disagree_are_named(path: str, names: list[str]) -> None:
    strip = strip_of(path)
    ruler = strip_lines(strip)[0].text.split()
    assert [name for name in ruler if name in names] == names
    assert all(f">{name}</text>" in strip_svg(strip, "s") for name in names)


def test_where_there_is_no_room_what_disagrees_is_drawn() -> None:
    columns = tuple(Column(gfn, 1, f"D[{gfn}]") for gfn in range(90))
    rows = (StripRow("page tables", tuple("private" if n % 2 else "shared" for n in range(90))),)
    strip = Strip(
        op=0,
        after="",
        columns=columns,
        rows=rows,
        disagree=tuple(n == 80 for n in range(90)),
        sentences=(),
    )
    columns_drawn, names = drawn_columns(strip, 24)
    assert columns_drawn == [None, 79, 80, 81, None]
    assert names == ["", "D[79]", "D[80]", "D[81]", ""]


def test_a_page_that_an_snp_guest_cannot_read_yet() -> None:
    strip = strip_of("corpora/snp/refused.prog")
    assert rows(strip, "D[3]")["page state"] == "pending"
    assert disagreeing(strip) == ["D[3]"]


def test_records_that_agree_are_not_marked() -> None:
    strip = strip_of("corpora/conversion/round-trip-6.12.prog")
    assert not disagreeing(strip)
    assert strip.sentences == ("All records agree.",)


def test_a_hypercall_by_hand_is_held_against_the_record_alone() -> None:
    header = "guestemu-program 1\nguest snippet:6.1\nhost map-gpa-range\n---\n"
    call = "hypercall nr=12 a0=D[0]+0x0 a1=2 a2=0 a3=0\n"
    strip = run_program(parse_text(header + call, "x.prog")).strip
    assert strip is not None
    assert [row.name for row in strip.rows] == ["told to the host", "host's record"]
    assert not disagreeing(strip)


def test_a_run_about_no_frame_has_no_strip() -> None:
    header = "guestemu-program 1\nguest snippet:6.1\nhost map-gpa-range\n---\n"
    assert run_program(parse_text(header + "rdmsr msr=0x4b564d08\n", "x.prog")).strip is None


@pytest.mark.parametrize("is_ascii", [False, True])
@pytest.mark.parametrize(
    "path",
    [
        "examples/demo/forgotten-error.prog",
        "corpora/tdx/cut-conversion.prog",
        "corpora/conversion/2gib-overflow.prog",
        "corpora/conversion/1gib-split.prog",
    ],
)
def test_the_text_fits_a_terminal(path: str, is_ascii: bool) -> None:
    lines = [line.text for line in strip_lines(strip_of(path), is_ascii)]
    assert max(map(len, lines)) <= 80
    assert not is_ascii or "".join(lines).isascii()


def test_the_picture_is_well_formed_and_says_what_it_shows() -> None:
    strip = strip_of("examples/demo/forgotten-error.prog")
    hostile = msgspec.structs.replace(strip, after='<script>alert("1")</script>')
    picture = ElementTree.fromstring(strip_svg(hostile, "strip"))
    assert picture.attrib["role"] == "img"
    title, description = picture.findtext("title"), picture.findtext("desc")
    assert "<script>" in (title or "")
    assert "host's record private" in (description or "")
    assert len(picture.findall("rect[@class='wrong']")) == 1
