# SPDX-License-Identifier: GPL-2.0-or-later
"""The hosts with one defect each are what they say: one piece of the correct file replaced."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).with_name("defects")))

sys.path.insert(0, str(Path(__file__).parents[1] / "findings"))

import defects
from found import call, file, make_book

from guestemu.host.registry import load_host
from guestemu.program.ops import Op, OpKind

ALL = [(name,) for name in (*defects.DEFECTS, *defects.CONTROL)] + list(defects.PAIRS)


@pytest.mark.parametrize("names", ALL, ids="+".join)
def test_a_defect_is_a_file_that_differs_from_the_correct_one(names, tmp_path):
    path, _, name = defects.write(tmp_path, *names).rpartition(":")
    source = Path(path).read_text()
    compile(source, path, "exec")
    assert f"class {name}(" in source
    assert source != defects.correct(*names).read_text()
    assert defects.changed_lines(*names)


def test_there_are_thirty_defects_and_eight_pairs():
    assert len(defects.DEFECTS) >= 30
    assert len(defects.PAIRS) >= 8


def test_a_status_read_from_another_bit_is_one_finding_whatever_code_it_runs(tmp_path):
    """The code of the status that was recorded is not to blame for its being recorded."""
    spec = defects.write(tmp_path, "attributes-bit")
    book = make_book(load_host(spec, plugin=spec.rpartition(":")[0]))
    programs = [[call(0, 1, 1)], [call(4096, 1), call(8192, 3, 1)], [call(0, 9), call(4096, 3, 1)]]
    found = file(book, programs)
    assert len(found) == len(book.findings) == 1
    assert not found[0].places


def test_a_range_that_wraps_is_one_finding_for_either_status(tmp_path):
    """Taken for one up to the end it reads like a page count that was cut, where that is seen."""
    spec = defects.write(tmp_path, "wrap-ok")
    book = make_book(load_host(spec, plugin=spec.rpartition(":")[0]))
    file(book, [[call(4096, (1 << 64) - 1, attributes)] for attributes in (16, 0)])
    assert len(book.findings) == 1


def test_an_end_that_was_cut_is_one_finding_wherever_the_range_begins(tmp_path):
    spec = defects.write(tmp_path, "end-32")
    book = make_book(load_host(spec, plugin=spec.rpartition(":")[0]))
    programs = [[call(0, 1 << 32)], [call(4096, (1 << 32) - 1)], [call(0x81000, (1 << 32) - 129)]]
    (found,) = file(book, programs)
    assert found.symptom == "hypercall: upper bits of the end of the range"
    assert len(book.findings) == 1


def test_a_status_of_the_range_before_is_one_finding_either_way_round(tmp_path):
    spec = defects.write(tmp_path, "adjacent")
    book = make_book(load_host(spec, plugin=spec.rpartition(":")[0]))
    ways = ([call(0, 1, 16), call(4096, 1)], [call(0, 1), call(4096, 1, 16)])
    (found,) = file(book, ways)
    assert found.ops == tuple(ways[1])
    assert len(book.findings) == 1


def test_ranges_that_meet_are_one_finding_also_within_one_call(tmp_path):
    """A call over two slots is two ranges for the host: two calls stand for it."""
    spec = defects.write(tmp_path, "table-merge")
    book = make_book(load_host(spec, plugin=spec.rpartition(":")[0]))
    half = 64 << 20 >> 13
    programs = [[call((half - 64) << 12, 128)], [call(0, 4), call(4 << 12, 9)], [call(0, half * 2)]]
    (found,) = file(book, programs)
    assert found.ops == (call(0, 1), call(4096, 1))
    assert len(book.findings) == 1


def test_a_count_that_is_bounded_is_not_one_that_is_cut(tmp_path):
    """Of 2^32 + 4 pages a host takes four that takes four of any larger number."""
    path = tmp_path / "bounded.py"
    text = defects.source("vcpu-limit")
    path.write_text(text.replace("call.vcpu.index and pages", "pages"))
    book = make_book(load_host(f"{path}:TableVmm", plugin=str(path)))
    file(book, [[call(0, 9)], [call(0, (1 << 32) + 4)], [call(4096, (1 << 33) + 4)]])
    assert len(book.findings) == 1


@pytest.mark.soak
def test_a_range_that_is_remembered_is_one_finding_also_over_a_reset(tmp_path):
    path = tmp_path / "remembers.py"
    text = defects.source("repeat-same").replace("self.last = None", "pass")
    path.write_text(text.replace("class BitmapVmm(Vmm):", "class BitmapVmm(Vmm):\n    last = None"))
    book = make_book(load_host(f"{path}:BitmapVmm", plugin=str(path)))
    reset = Op(OpKind.VM_RESET)
    programs = (
        [call(0, 1), call(0, 1, 16)],
        [call(8192, 3), reset, call(8192, 3)],
    )
    (found,) = file(book, programs)
    assert found.ops == (call(0, 1), call(0, 1, 16))
    assert len(book.findings) == 1


def test_a_count_cut_to_any_width_is_one_finding(tmp_path):
    path = tmp_path / "cut.py"
    path.write_text(defects.source("pages-16").replace("pages & 0xFFFF", "pages & 0xFFF"))
    book = make_book(load_host(f"{path}:TableVmm", plugin=str(path)))
    programs = [[call(0, 4097)], [call(0, 4096)], [call(4096, 8193)], [call(0, (1 << 64) - 1)]]
    (found,) = file(book, programs)
    assert found.symptom == "hypercall: upper bits of the page count"
    assert len(book.findings) == 1


@pytest.mark.soak
def test_the_first_page_of_a_range_is_one_finding_also_where_it_is_the_whole_range(tmp_path):
    """Of one page only the loop over the others ends at once, which is no defect of its own."""
    path = tmp_path / "first.py"
    record = "self.record(low, high, private)"
    wrong = "if private and low:\n                    self.record(low + 1, high, private)"
    wrong += f"\n                else:\n                    {record}"
    path.write_text(defects.CORRECT.read_text().replace(record, wrong))
    book = make_book(load_host(f"{path}:BitmapVmm", plugin=str(path)))
    programs = [[call(4096, 1), call(4096, 1, 16)], [call(4096, 4), call(4096, 4, 16)]]
    (found,) = file(book, programs)
    assert [place.rpartition(": ")[2] for place in found.places] == [
        "self.record(low + 1, high, private)"
    ]
    assert len(book.findings) == 1
