# SPDX-License-Identifier: GPL-2.0-or-later
"""The hosts with one defect each are what they say: one piece of the correct file replaced."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).with_name("defects")))

sys.path.insert(0, str(Path(__file__).parents[1] / "findings"))

import defects
import msgspec
from found import call, file, make_book

from guestemu.abi.addresses import U32_MASK
from guestemu.abi.regions import Region
from guestemu.abi.x86 import Mode
from guestemu.campaign.executor import Executor
from guestemu.campaign.fastpath.fastpath import open_fast_path
from guestemu.campaign.fastpath.library import load_library
from guestemu.campaign.feedback import Feedback
from guestemu.campaign.filing import Filing
from guestemu.campaign.findings import NOT_REPRODUCIBLE
from guestemu.campaign.session import Plan, Session
from guestemu.campaign.targets import find_target
from guestemu.checks.base import Violation
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.host.permission import named_by_user
from guestemu.host.plugin_guard import PluginHost
from guestemu.host.registry import load_host
from guestemu.program.binary import encode_ops
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


def test_a_count_that_is_cut_is_one_finding_also_where_few_frames_differ(tmp_path):
    """Of 16 shared pages the last two are made private: the neighbour of a count converts both."""
    path = tmp_path / "cut.py"
    path.write_text(defects.source("pages-32").replace("pages & U32", "pages & 0xFFFFF"))
    book = make_book(load_host(f"{path}:BitmapVmm", plugin=str(path)))
    programs = [[call(0, (1 << 20) + 1)], [call(0, 16), call(14 << 12, (1 << 51) + 1, 16)]]
    (found,) = file(book, programs)
    assert found.symptom == "hypercall: upper bits of the page count"
    assert len(book.findings) == 1


@pytest.mark.soak
def test_a_place_that_is_wrong_is_no_end_that_was_cut(tmp_path):
    """From a word's first page on every range is right, from the next one on none over its end."""
    spec = defects.write(tmp_path, "word-first")
    book = make_book(load_host(spec, plugin=spec.rpartition(":")[0]))
    all_but_one = (1 << 64) - 2
    few = [call(4096, 1), call(0x140000, 1), call(4096, all_but_one, 16)]
    (found,) = file(book, [[call(0x3F000, 2)], [call(4096, all_but_one)], few])
    assert found.symptom == "hypercall: record"


def test_a_number_that_is_cut_is_one_finding_also_where_the_status_is_wrong(tmp_path):
    spec = defects.write(tmp_path, "number-32", "attributes-word")
    book = make_book(load_host(spec, plugin=spec.rpartition(":")[0]))
    number = (1 << 32) + 12
    programs = [[call(0, 1, 1)], [call(0, 1, 1, number)], [call(0, 0, 0, number)]]
    assert len(file(book, programs)) == len(book.findings) == 2


@pytest.mark.soak
def test_what_covers_something_new_is_looked_at_however_often_it_was_met(tmp_path):
    """Both defects read alike; the rare one runs code of the host that no program ran before."""
    spec = defects.write(tmp_path, "word-full", "seventy-seven")
    book = make_book(load_host(spec, plugin=spec.rpartition(":")[0]))
    file(book, [[call(0, 64)]])
    often, rare = (call(0, 64),), (call(0x2000, 77),)
    seen = book._executor.run(often)
    while book.meet(often, seen) or book._read[next(iter(book._read))] < 70:
        pass
    runs = book.probe.runs
    assert book.meet(rare, book._executor.run(rare)) == []
    assert book.probe.runs == runs
    (case,) = book.meet(rare, book._executor.run(rare), is_new=True)
    assert book.settle(case, 0.0)[0]
    assert len(book.findings) == 2


class EveryThird(MapGpaRangeHost):
    """Refuses every third conversion of the process, whatever object of the class is called."""

    done = itertools.count(1)

    def hypercall(self, call):
        return super().hypercall(call) if next(self.done) % 3 else (1 << 64) - 12


def filing_on(host):
    target = find_target("hypercall")
    return Filing(
        Executor(target, target.header, target.kinds, Feedback(), host), None, lambda: 0.0
    )


def test_what_a_program_leaves_behind_for_the_next_is_a_program_over_a_reset(tmp_path):
    spec = defects.write(tmp_path, "reset-cache")
    filing = filing_on(load_host(spec, plugin=spec.rpartition(":")[0]))
    programs = ((call(0x9000, 1),), (call(0, 2),), (call(0, 2), call(0x7000, 3)))
    ran = [filing._executor.run(program) for program in programs]
    assert [len(violations) for violations in ran] == [0, 0, 1]
    filing.file(programs[2], ran[2], programs[:2])
    (found,) = filing.book.findings.values()
    assert found.check == "record"
    assert not filing.unstable
    assert not filing.file_behind(programs[:1], programs[2])
    assert filing.file_behind(programs[:2], programs[2])
    assert len(filing.book.findings) == 1


def test_a_host_that_is_wrong_now_and_then_is_not_explained_by_a_reset():
    """Of two calls behind one each third run shows the refusal, and of the two calls alone."""
    host = PluginHost(Path(__file__), EveryThird(), EveryThird)
    filing = filing_on(host)
    before, ops = ((call(0, 1),),), (call(0x5000, 1), call(0x9000, 1))
    violations: list[Violation] = []
    while not violations:
        violations = filing._executor.run(ops)
    filing.file(ops, violations, before)
    assert [found.check for found in filing.book.findings.values()] == [NOT_REPRODUCIBLE]


def test_a_call_that_is_refused_and_done_is_one_finding_with_state_before_it(tmp_path):
    path = tmp_path / "spoiled.py"
    late = "self.last = (first, end)\n        return 0"
    wrong = "was, self.last = self.last, (first, end)\n        "
    wrong += "return -5 if was and was[1] - was[0] == 3 else 0"
    path.write_text(defects.CORRECT.read_text().replace(late, wrong))
    book = make_book(load_host(f"{path}:BitmapVmm", plugin=str(path)))
    file(book, [[call(0, 3), call(0x9000, 1)], [call(0, 3), call(0, 3, 16)]])
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


def test_a_search_that_the_clock_ended_is_no_second_finding(tmp_path):
    spec = defects.write(tmp_path, "attributes-word")
    book = make_book(load_host(spec, plugin=spec.rpartition(":")[0]))
    (first,) = file(book, [[call(0, 1, 1)]])
    ops = (call(0x5000, 7, 1 << 51),)
    (case,) = book.meet(ops, book._executor.run(ops))
    book.deadline = time.monotonic()
    assert book.settle(case, 1.0) == ([], first.key)
    assert book.findings[first.key].count == 2


@pytest.mark.skipif(load_library() is None, reason="no machine code for this host")
def test_machine_code_remembers_what_ran_before(tmp_path):
    """A range as the one before the reset is wrong when it comes first, in that program only."""
    spec, plugin = named_by_user(defects.write(tmp_path, "reset-cache"))
    target = find_target("hypercall")
    header = msgspec.structs.replace(target.header, host=spec, plugin=plugin)
    session = Session(Plan(target, header))
    fast = open_fast_path(session, lambda error: pytest.fail(repr(error)))
    assert fast is not None
    for program in ([call(0x9000, 1)], [call(0, 2)], [call(0, 2), call(0x7000, 3)]):
        fast.library.test_one_input(encode_ops(program))
    fast.close()
    report = session.make_report()
    assert [found.check for found in report.findings] == ["record"]
    assert report.executions == 3
    assert not report.unstable


def test_a_defect_behind_one_that_every_call_meets_is_told_by_its_code(tmp_path):
    """No accepted call is right; 77 pages are wrong in another way, in code of their own."""
    spec = defects.write(tmp_path, "end-inclusive", "seventy-seven")
    book = make_book(load_host(spec, plugin=spec.rpartition(":")[0]))
    first, other = file(book, [[call(0, 4)], [call(0, 77)]])
    assert not first.places
    assert [place.rpartition(": ")[2] for place in other.places] == ["first += 1"]


def test_it_is_told_also_where_a_call_before_it_is_wrong(tmp_path):
    spec = defects.write(tmp_path, "end-inclusive", "seventy-seven")
    book = make_book(load_host(spec, plugin=spec.rpartition(":")[0]))
    file(book, [[call(0, 4)]])
    ops = (call(0, 4), call(0, 77))
    *_, case = book.meet(ops, book._executor.run(ops), is_new=True)
    assert case.ops == (call(0, 77),)


def test_upper_halves_are_not_to_blame_where_the_lower_ones_do_the_same(tmp_path):
    """All pages there are from 0 on, in code of 32 bits, look as if the count had been cut."""
    spec = defects.write(tmp_path, "end-inclusive")
    book = make_book(load_host(spec, plugin=spec.rpartition(":")[0]))
    every = msgspec.structs.replace(call(0, (1 << 64) - 1), mode=Mode.COMPAT32)
    file(book, [[call(0, 4)], [every]])
    assert len(book.findings) == 1


REAL = Op(
    OpKind.HYPERCALL,
    (12, 1 << 44, 64, 0, 8),
    region=Region.V,
    page=1,
    has_page=True,
    mode=Mode.REAL16,
)


@pytest.mark.parametrize(
    ("name", "program"),
    [
        # the last page stays shared, as if the count had been cut behind the first
        ("word-first", [call(4096, 1), call(0x200000, 1), call(4096, 1534, 16)]),
        # of 64-bit code that range is none of RAM, and there a count of -1 is a simple one
        ("word-first", [REAL]),
        # 506 pages to a border are one more than 1,529 in nine bits
        ("crosses-2m", [call(0x80D000, 1), call(0x406000, 1529, 16)]),
        # three words are converted, and no other page was shared but one far behind
        ("word-fourth", [call(0x1FF000, 1), call(0, 1), call(0, (1 << 64) - 1, 16)]),
        ("word-fourth", [call(0x1FF000, 1), call(0, 1), call(4096, (1 << 64) - 2, 16)]),
        # the end of a range of 32-bit code
        ("end-32", [msgspec.structs.replace(call(4096, (1 << 64) - 1), mode=Mode.COMPAT32)]),
        # the third call shares what the sixth makes private
        (
            "sixth-call",
            [
                *[call(0, 1)] * 2,
                call(0, (1 << 64) - 1),
                *[call(0, 1)] * 2,
                call(0x2000000, 1, 16),
            ],
        ),
        # neighbours of this address are refused, as their ranges wrap
        ("gpa-32", [call(1 << 32, (1 << 64) - 1)]),
        ("gpa-32", [call(0, 1), call(1 << 32, (1 << 64) - 1, 16)]),
    ],
)
def test_one_defect_is_one_finding_also_in_a_program_that_hides_it(name, program, tmp_path):
    simple = {
        "sixth-call": call(0x2000000, 1),
        "word-first": call(0x3F000, 2),
        "gpa-32": call(1 << 32, 1),
        "crosses-2m": call(0x1FF000, 2),
        "word-fourth": call(0, 193),
        "end-32": call(4096, U32_MASK),
    }[name]
    spec = defects.write(tmp_path, name)
    book = make_book(load_host(spec, plugin=spec.rpartition(":")[0]))
    before = [call(0, 1)] * 5 if name == "sixth-call" else []
    file(book, [[*before, simple], program])
    assert len(book.findings) == 1
