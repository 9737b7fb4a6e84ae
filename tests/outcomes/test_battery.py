# SPDX-License-Identifier: GPL-2.0-or-later
"""`kernel test` without a kernel: its rows, what is known, what is kept, statuses."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import msgspec
import pytest

from guestemu.abi.errors import InputError
from guestemu.cli import _kernel_cells, _kernel_test, console
from guestemu.cli._kernel_test import Examination
from guestemu.program.ops import OpKind
from guestemu.study.outcomes import battery, experiments
from guestemu.study.outcomes.battery import ANSWERS, ROWS, BatteryRow, program_of
from guestemu.study.outcomes.cells import ABSENT, BEGIN, END, FAILED, Cell, Key
from guestemu.study.outcomes.defects import NOT_SEEN, SEEN
from guestemu.study.outcomes.experiments import (
    EXPERIMENTS,
    KNOWN_DEFECT,
    RIGHT,
    WRONG,
    choose,
    verdict_of,
)
from guestemu.study.outcomes.junit import cells_xml
from guestemu.study.outcomes.known import BY_NAME, find_known
from guestemu.study.outcomes.store import CellStore
from guestemu.study.outcomes.verbs import VERBS, outcome_of


def cell(row: str, outcome: str, defect: str = "", answer: str = "", **counts: int) -> Cell:
    return Cell(
        kernel="6.1",
        version="6.1.0",
        kind="sev",
        row=row,
        answer=answer,
        outcome=outcome,
        detail="returns 0",
        defect=defect,
        **counts,
    )


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_an_answer_refuses_exactly_one_operation_of_a_row(row: BatteryRow) -> None:
    agreed = program_of(row, "")
    assert not any(op.kind is OpKind.ANSWER for op in agreed.ops)
    for answer in ANSWERS if row.refused else ():
        refused = program_of(row, answer).ops
        assert [op.kind is OpKind.ANSWER for op in refused].count(True) == 1
        assert [op for op in refused if op.kind is not OpKind.ANSWER] == list(agreed.ops)


def test_every_entry_point_has_a_row_of_each_guest_kind() -> None:
    entries = {
        key.kind: {trial.entry for other, trial in EXPERIMENTS.items() if other.kind == key.kind}
        for key in EXPERIMENTS
    }
    for kind in ("sev", "es", "snp", "tdx"):
        assert {
            "set_memory_decrypted",
            "set_memory_encrypted",
            "dma_alloc_attrs",
            "dma_free_attrs",
            "dma_alloc_attrs from the atomic pool",
            "dma_alloc_pages",
            "mem_encrypt_free_decrypted_mem",
            "set_memory_decrypted of vmalloc()",
        } <= entries[kind]
    assert {"early_set_memory_decrypted", "kexec to itself"} <= entries["sev"] & entries["es"]


def test_a_refusal_that_sev_ignores_is_known_and_one_that_a_td_ignores_is_not() -> None:
    words = ("status", "silent")
    assert find_known(Key("sev", "decrypt", "EINVAL"), words) == "refusal-ignored"
    assert find_known(Key("tdx", "decrypt", "EINVAL"), words) == ""
    assert find_known(Key("sev", "decrypt"), words) == ""
    assert find_known(Key("sev", "decrypt", "EINVAL"), (*words, "untold")) == "never-told"
    assert find_known(Key("sev", "decrypt"), ("record", "untold")) == "never-told"
    assert find_known(Key("sev", "fail-second-split"), ("record", "untold")) == "half-way"


def test_bytes_that_were_copied_one_by_one_through_two_views_are_a_known_defect() -> None:
    assert find_known(Key("sev", "early-content"), ("one-byte", "value")) == "early-buffer"
    assert find_known(Key("sev", "early-content"), ("value",)) == ""
    assert find_known(Key("snp", "early-content"), ("one-byte", "value")) == ""


def test_a_verdict_follows_from_outcome_and_defect() -> None:
    assert verdict_of(cell("decrypt", RIGHT)) == RIGHT
    assert verdict_of(cell("half-way", NOT_SEEN)) == RIGHT
    assert verdict_of(cell("half-way", SEEN, "half-way")) == KNOWN_DEFECT
    assert verdict_of(cell("hole", WRONG, "hole-mapped")) == KNOWN_DEFECT
    assert verdict_of(cell("hole", WRONG)) == WRONG
    assert verdict_of(cell("kexec", FAILED)) == WRONG
    assert verdict_of(cell("efi", ABSENT)) == ABSENT


def test_rows_are_chosen_by_name_or_with_an_answer() -> None:
    assert choose(["decrypt/EINVAL"], ["snp"]) == [Key("snp", "decrypt", "EINVAL")]
    assert len(choose(["decrypt"], ["sev"])) == 1 + len(ANSWERS)
    assert choose([], []) == list(EXPERIMENTS)
    with pytest.raises(InputError, match="no such row; did you mean decrypt"):
        choose(["decrpyt"], [])
    with pytest.raises(InputError, match="--kind sme: take one of sev, es, snp, tdx"):
        choose([], ["sme"])


def test_what_was_measured_is_found_again_for_the_same_kernel_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GUESTEMU_NO_CACHE", raising=False)
    CellStore("one").add(cell("decrypt", RIGHT, hypercalls=1))
    [file] = (tmp_path / "guestemu" / "cells").iterdir()
    file.write_bytes(file.read_bytes() + b'{"kernel": "6.1", "ver\n')
    CellStore("one").add(cell("encrypt", WRONG))

    again = CellStore("one")
    assert again.find(Key("sev", "decrypt")) == cell("decrypt", RIGHT, hypercalls=1)
    assert again.find(Key("sev", "encrypt")) == cell("encrypt", WRONG)
    assert again.find(Key("sev", "decrypt"), is_counted=True) is None
    assert CellStore("other").find(Key("sev", "decrypt")) is None


def test_nothing_is_kept_where_the_cache_is_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("GUESTEMU_NO_CACHE", "1")
    CellStore("one").add(cell("decrypt", RIGHT))
    assert not list(tmp_path.iterdir())


def test_known_defects_count_only_when_asked_for() -> None:
    known = [cell("half-way", SEEN, "half-way"), cell("decrypt", RIGHT)]
    assert _kernel_test._status(known, counts_known=False) == 0
    assert _kernel_test._status(known, counts_known=True) == 1
    assert _kernel_test._status([cell("decrypt", WRONG)], counts_known=False) == 1
    assert Examination(image="x", only=("half-way",)).counts_known
    assert not Examination(image="x").counts_known


def test_two_kernels_differ_in_verdicts_and_in_counts() -> None:
    here = [
        cell("2gib-overflow", NOT_SEEN),
        cell("leaf", RIGHT, hypercalls=1, instructions=1000),
        cell("split", RIGHT, hypercalls=1, instructions=2000),
    ]
    there = [
        cell("2gib-overflow", SEEN, "2gib-overflow"),
        cell("leaf", RIGHT, hypercalls=1, instructions=1005),
        cell("split", RIGHT, hypercalls=2, instructions=2500),
    ]
    found = _kernel_test._differences(here, there)
    assert [(one.row, one.what, one.here, one.there) for one in found] == [
        ("2gib-overflow", "verdict", "right", "known defect (2gib-overflow)"),
        ("split", "hypercalls", "1", "2"),
        ("split", "instructions", "2000", "2500"),
    ]


def test_junit_has_a_case_for_each_cell() -> None:
    cells = [
        cell("decrypt", RIGHT),
        cell("decrypt", WRONG, answer="EINVAL"),
        cell("half-way", SEEN, "half-way"),
        cell("efi", ABSENT),
    ]
    suite = ElementTree.fromstring(cells_xml(cells, 1.5, is_strict=False))[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "1", "1")
    names = [(case.get("name"), [part.tag for part in case]) for case in suite]
    assert names == [
        ("decrypt", []),
        ("decrypt/EINVAL", ["failure"]),
        ("half-way", []),
        ("efi", ["skipped"]),
    ]
    strict = ElementTree.fromstring(cells_xml(cells, 1.5, is_strict=True))[0]
    assert strict.get("failures") == "2"


def test_every_known_defect_says_since_when_and_where() -> None:
    for name, known in BY_NAME.items():
        assert known.name == name
        assert known.since
        assert "(), " in known.source


def test_rows_of_a_kind_share_a_boot_and_what_boots_itself_runs_beside_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GUESTEMU_NO_CACHE", raising=False)
    batches = experiments._batches(list(EXPERIMENTS))
    assert [{key.kind for key in batch} for batch in batches[:4]] == [
        {"sev"},
        {"es"},
        {"snp"},
        {"tdx"},
    ]
    alone = [key for batch in batches[4:] for key in batch]
    assert len(alone) == len(batches) - 4
    assert Key("sev", "kexec-stale") in alone
    assert Key("tdx", "boot", "-EINVAL") in alone
    assert sorted(key for batch in batches for key in batch) == sorted(EXPERIMENTS)
    monkeypatch.setenv("GUESTEMU_NO_CACHE", "1")
    assert len(experiments._batches(list(EXPERIMENTS))) == 4


def test_the_table_of_verbs_is_a_view_of_the_cells_of_the_battery() -> None:
    keys = {verb.name: verb.key for verb in VERBS}
    assert keys["boot snp"] in EXPERIMENTS
    assert keys["kexec"] in EXPERIMENTS
    assert keys["explore"] not in EXPERIMENTS
    assert outcome_of(cell("boot", RIGHT)) == "ok"
    assert outcome_of(cell("kexec", WRONG)) == "finding"
    assert outcome_of(cell("boot", ABSENT)) == ABSENT
    assert outcome_of(cell("boot", FAILED)) == FAILED


def test_a_page_gets_a_line_for_the_kernel(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    begin = BEGIN.format(command="guestemu kernel test")
    page.write_text(f"{begin}\n{END}\n")
    lacks = msgspec.structs.replace(cell("decrypt", ABSENT), kind="tdx")
    cells = [
        cell("decrypt", RIGHT),
        cell("hole", WRONG, "hole-mapped"),
        cell("dma", WRONG, answer="EAGAIN"),
    ]
    _kernel_cells.write_line(page, "6.1", [*cells, lacks])
    assert page.read_text().splitlines() == [
        begin,
        "| kernel | version | sev | tdx | known defects | wrong |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 6.1 | 6.1.0 | 1 / 1 / 1 | absent | hole-mapped | dma/EAGAIN (sev) |",
        END,
    ]


def test_a_buffer_is_judged_by_its_own_frames_where_another_page_was_refused() -> None:
    rows = {row.name: row for row in ROWS}
    assert battery._judged(rows["dma"], "EINVAL", 0x421C000) == slice(0x421C, 0x421F)
    assert battery._judged(rows["dma-atomic"], "EINVAL", 0x4680000) == slice(0x4680, 0x4681)
    assert battery._judged(rows["dma"], "EINVAL", -12) == slice(None)
    assert battery._judged(rows["dma"], "", 0x421C000) == slice(None)
    assert battery._judged(rows["dma-free"], "EINVAL", 0) == slice(None)


def test_a_report_names_defects_with_their_rows_and_what_is_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = _kernel_test.Examined(
        image="6.1",
        version="6.1.0",
        status=1,
        seconds=0.5,
        cells=(
            cell("cpu-offline", KNOWN_DEFECT, "cpu-offline"),
            cell("decrypt", WRONG, answer="EINVAL"),
            cell("encrypt", RIGHT),
        ),
    )
    console.emit_document(_kernel_test.document(report, show_all=False))
    text = capsys.readouterr().out
    assert "sev   1      1             1      0\n" in text
    assert "\nKnown defects\n  cpu-offline: A CPU that goes off line" in text
    assert "rows cpu-offline (sev)\n" in text
    assert "\nWrong\n  decrypt/EINVAL as sev: returns 0\n" in text
    assert text.endswith("\n1 known defect, 1 wrong; exit status 1\n")
    assert "encrypt" not in text
    console.emit_document(_kernel_test.document(report, show_all=True))
    assert "encrypt" in capsys.readouterr().out
