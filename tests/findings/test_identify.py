# SPDX-License-Identifier: GPL-2.0-or-later
"""What tells findings apart, what does not, and what goes with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import planted_hosts
import pytest
from found import call, file, make_book

from guestemu.abi.regions import Region
from guestemu.abi.x86 import Mode
from guestemu.campaign.figures import merge_counts
from guestemu.campaign.findings import FindingCount
from guestemu.campaign.planted.hosts_merged import HalfTruncatedHost
from guestemu.campaign.triage import single
from guestemu.campaign.triage.bundle import make_bundle
from guestemu.campaign.triage.explain import comment_of
from guestemu.campaign.triage.identify import digest_of
from guestemu.campaign.triage.symptom import plain_message
from guestemu.checks.base import Violation
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.program.ops import SPECS, Op, OpKind
from guestemu.program.program import Header, Program

PAGE = 4096


def only(host, *programs):
    found = file(make_book(host), programs)
    assert len(found) == 1
    return found[0]


def test_the_canonical_program_is_the_simplest_of_all():
    ways = (
        [call(61 * PAGE, 3)],
        [call(0, 64)],
        [call(5 * PAGE, 59), call(0, 1)],
        [Op(OpKind.SET_MEMORY_DECRYPTED, (512, 0), Region.L)],
    )
    found = [only(planted_hosts.WordBoundary(), way) for way in ways]
    assert {finding.ops for finding in found} == {(call(62 * PAGE, 2),)}
    assert len({finding.key for finding in found}) == 1


def test_coupled_addresses_move_down_together():
    class Adjacent(MapGpaRangeHost):
        """Forgets a range that begins where the last one ended."""

        end = 0

        def restore(self, frames):
            super().restore(frames)
            self.end = 0

        def hypercall(self, call):
            if call.a0 == self.end != 0 and call.a1:
                return 0
            answer = super().hypercall(call)
            self.end = call.a0 + (call.a1 << 12) if answer == 0 else 0
            return answer

    found = only(Adjacent(), [call(40 * PAGE, 3), call(43 * PAGE, 2)])
    assert found.ops == (call(0, 1), call(PAGE, 1))


def test_the_host_line_is_named():
    found = only(planted_hosts.LargeLeaf(), [call(PAGE, 512)])
    assert len(found.places) == 1
    assert found.places[0].endswith("call = msgspec.structs.replace(call, a1=511)")
    assert "planted_hosts.py:" in found.places[0]


def test_a_bug_in_an_expression_has_no_line_and_one_key():
    ways = ([call(3 * PAGE, 2, 16)], [call(PAGE, 1, 1)], [call(0, 9), call(0, 3, 16)])
    found = [only(planted_hosts.AttributeBit0(), way) for way in ways]
    assert [finding.places for finding in found] == [(), (), ()]
    assert len({finding.key for finding in found}) == 1


def legacy(*arguments: int) -> Op:
    return planted_hosts.msgspec.structs.replace(call(*arguments), mode=Mode.COMPAT32)


def test_upper_halves_outside_64_bit_code_are_one_bug_whatever_they_lead_to():
    ways = (
        [legacy(1 << 35 | 7 * PAGE, 3)],
        [legacy(1 << 45 | 5 * PAGE, 0xFFFFFFFF << 32 | 3)],
        [legacy(0x80C000, 1 << 32)],
        [call(0x4A9000, 2), legacy(0x402000, 1 << 32 | 1, 16)],
        [call(0x7FF000, 9), legacy(1 << 47 | 0x7FF000, 19, 16)],
    )
    found = [only(HalfTruncatedHost(), way) for way in ways]
    assert len({finding.key for finding in found}) == 1
    assert {finding.ops for finding in found} == {(legacy(1 << 32, 1),)}


def test_upper_halves_beside_a_bug_that_answers_the_same():
    class Both(HalfTruncatedHost, planted_hosts.NoPages):
        """An empty range is a success, and 2^32 pages outside 64-bit code are not empty."""

    book = make_book(Both())
    found = file(book, [[legacy(0x803000, 1 << 32)], [call(0, 0)], [legacy(PAGE, 0)]])
    assert [finding.symptom for finding in found] == [
        "hypercall: upper halves of arguments",
        "hypercall: empty range",
    ]


def test_guest_defects_keep_their_kernel_functions():
    faults = [
        Op(OpKind.UNMAP, (), page=3),
        Op(OpKind.SET_MEMORY_ENCRYPTED, (2, 0), page=2),
    ]
    first, *others = file(make_book(MapGpaRangeHost()), [faults])
    assert first.violation.check == "frames"
    assert [SPECS[op.kind].name for op in first.ops] == ["unmap", "set_memory_decrypted"]
    assert not others


def test_answer_and_record_wrong_at_once_is_one_defect():
    class Adds(MapGpaRangeHost):
        """Records an unaligned range as if it were aligned."""

        def hypercall(self, call):
            return super().hypercall(planted_hosts.msgspec.structs.replace(call, a0=call.a0 & ~1))

    found = only(Adds(), [call(3 * PAGE + 1, 2)], [call(9 * PAGE + 1, 1, 16)], [call(1, 1)])
    assert found.ops == (call(1, 1),)
    assert {violation.check for violation in found.violations} == {"results", "record"}


def test_the_reference_host_shows_nothing():
    assert file(make_book(MapGpaRangeHost()), [[call(9, 3)], [call(0, 5, 33)]]) == []


def test_counts_of_one_digest_are_one_finding():
    parts = [
        [FindingCount("results-hypercall-0badcafe", "results", 2, 3.0)],
        [FindingCount("record-hypercall-0badcafe", "record", 5, 1.0)],
        [FindingCount("record-hypercall-11111111", "record", 1, 0.5)],
    ]
    merged = merge_counts(parts)
    assert [(found.key, found.count, found.first_seen_s) for found in merged] == [
        ("record-hypercall-11111111", 1, 0.5),
        ("results-hypercall-0badcafe", 7, 1.0),
    ]


def test_met_often_is_settled_a_few_times():
    book = make_book(planted_hosts.WrongErrno())
    settled = 0
    for number in range(100):
        ops = (call(PAGE * number + 9, 3),)
        cases = book.meet(ops, book._executor.run(ops))
        for case in cases:
            settled += 1
            book.settle(case, 0.0)
    assert settled == 5
    assert [found.count for found in book.findings.values()] == [100]


def test_tracing_is_off_afterwards():
    before = sys.gettrace()
    only(planted_hosts.LargeLeaf(), [call(PAGE, 512)])
    assert sys.gettrace() is before


@pytest.fixture(scope="module")
def finding():
    return only(planted_hosts.LastPage(), [call(5 * PAGE, 4)])


def test_the_comment_says_what_why_where_and_how(finding):
    comment = comment_of(finding, "somewhere", "guestemu run x.prog")
    for words in (
        finding.key,
        "Rule: Differential: bitmap",
        "a1=call.a1 - 1",
        "guestemu run x.prog",
    ):
        assert words in comment


def test_the_bundle_has_guest_code_and_a_test_that_fails(finding, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    host = f"{Path(planted_hosts.__file__).name}:LastPage"
    header = Header(host=host, plugin=planted_hosts.__file__)
    path = tmp_path / f"{finding.key}.prog"
    bundle = make_bundle(finding, finding.program(header), path, "a campaign")
    for words in ("vmmcall", "! violation of record", "Rule: ", f"guestemu run {path}"):
        assert words in bundle.explanation
    test = tmp_path / "test_finding.py"
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for text, status in ((bundle.test, 1), (bundle.test.replace("a1=2", "a1=1"), 0)):
        test.write_text(text)
        done = subprocess.run(
            [*run, str(test)], cwd=elsewhere, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stdout
        assert "InputError" not in done.stdout  # fails for the defect, not for lack of the host


def test_digest_is_the_last_part():
    assert digest_of("migration-control-wrmsr-12345678") == "12345678"


def test_an_endless_loop_is_named_by_its_function_not_by_where_the_budget_ended():
    def stuck(place: str, loop: str) -> Violation:
        message = f"still running at {place}, looping in {loop} after 2000000 basic blocks"
        return Violation("progress", 1, message, "A14")

    walks = [
        stuck("lookup_address+0x52", "enc_dec_hypercall"),
        stuck("pg_level_to_pfn+0x2a", "enc_dec_hypercall"),
    ]
    assert len(set(map(plain_message, walks))) == 1
    assert plain_message(stuck("lookup_address+0x52", "dma_free")) != plain_message(walks[0])


def test_a_search_of_slow_runs_ends_with_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single, "_SLOW_S", -1.0)
    monkeypatch.setattr(single, "_SEARCH_S", 0.0)
    ops = (Op(OpKind.SET_MEMORY_DECRYPTED, (2**64 - 1, 0), Region.D, 3),)
    found = single.findings_of(Program(Header(host="map-gpa-range"), ops))
    assert {finding.violation.check for finding in found} >= {"progress"}
