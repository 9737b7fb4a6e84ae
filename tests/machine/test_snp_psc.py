# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's half of page-state changes, version by version: every kind of request that a hostile guest
makes is answered as that KVM answers it (N2 to N13)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import pytest
from bare_machine import FRAMES, Answers
from ghcb_guest import BUFFER, ES, GHCB, SNP, Guest, entry

from guestemu.abi import ghcb as abi
from guestemu.abi.addresses import PAGE_SIZE, Gpa
from guestemu.machine import ghcb
from guestemu.machine.exits import MapGpaRange, RunFailed
from guestemu.machine.snp_psc import PSC_KERNELS, OutOfBounds, PscDefect, psc_kernel

VERSIONS = tuple(PSC_KERNELS)
FIXED = VERSIONS[1:]
PRIVATE, SHARED = abi.PSC_OP_PRIVATE, abi.PSC_OP_SHARED
SCRATCH = (abi.RESP_MALFORMED_INPUT, abi.GhcbError.INVALID_SCRATCH_AREA)
MISSING = (abi.RESP_MALFORMED_INPUT, abi.GhcbError.MISSING_INPUT)
HEADER = (0, abi.PSC_ERROR_INVALID_HDR)
ENTRY = (0, abi.PSC_ERROR_INVALID_ENTRY)
GENERIC = (0, abi.PSC_ERROR_GENERIC)
DONE = (0, 0)
OUTSIDE = GHCB + 16 * PAGE_SIZE
NEVER = 1 << 64


class Heard(Answers):
    """A user space that answers page-state changes in turn; the last answer is for all others."""

    def __init__(self, *answers: int) -> None:
        super().__init__()
        self.answers = list(answers) or [0]
        self.heard: list[tuple[int, int, int]] = []

    def map_gpa_range(self, call: MapGpaRange) -> int:
        self.heard.append((call.gpa >> 12, call.pages, call.attributes))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Kind(NamedTuple):
    """One malformed or unusual request: `entries` from entry 0 of the buffer at `scratch` on, and
    the answers that versions give which differ from `answer`."""

    answer: tuple[int, int]
    heard: int = 0
    entries: tuple[int, ...] = (entry(0x210, SHARED),)
    cur: int = 0
    end: int = 0
    scratch: int = BUFFER
    info_2: int = 8 + 253 * 8
    unlike: Mapping[str, tuple[tuple[int, int], int]] = MappingProxyType({})
    without: tuple[int, ...] = ()


LARGE = entry(0x400, SHARED, is_2m=True)
KINDS = {
    "one entry": Kind(DONE, 1),
    "scratch not given": Kind(MISSING, without=(ghcb.SCRATCH,)),
    "exit info 1 not given": Kind(MISSING, without=(ghcb.EXIT_INFO_1,)),
    "exit info 2 not given": Kind(MISSING, without=(ghcb.EXIT_INFO_2,)),
    "exit code not given": Kind(MISSING, without=(ghcb.EXIT_CODE,)),
    "scratch at 0": Kind(SCRATCH, scratch=0),
    "scratch wraps": Kind(SCRATCH, scratch=NEVER - 8, info_2=16),
    "scratch at the end of the address space": Kind(SCRATCH, scratch=NEVER - 1),
    "scratch at the GHCB": Kind(SCRATCH, scratch=GHCB),
    "scratch in the save area": Kind(SCRATCH, scratch=GHCB + 0x100),
    "scratch one byte before the buffer": Kind(SCRATCH, scratch=BUFFER - 1),
    "scratch eight bytes before the buffer": Kind(SCRATCH, scratch=BUFFER - 8),
    "scratch over the end of the buffer": Kind(SCRATCH, scratch=GHCB + 0xFEC),
    "scratch at the version field": Kind(SCRATCH, scratch=GHCB + 0xFF0, entries=()),
    "scratch at the usage field": Kind(SCRATCH, scratch=GHCB + 0xFF8),
    "room for a header only": Kind(
        HEADER, scratch=GHCB + 0xFE8, info_2=8, unlike={"6.11": (DONE, 0)}, entries=()
    ),
    "room for one entry, two asked": Kind(
        HEADER, scratch=GHCB + 0xFE0, info_2=16, end=1, unlike={"6.11": (DONE, 1)}
    ),
    "room for one entry, one asked": Kind(DONE, 1, scratch=GHCB + 0xFE0, info_2=16),
    "buffer in the next page": Kind(SCRATCH, scratch=GHCB + PAGE_SIZE, unlike={"6.11": (DONE, 1)}),
    "buffer outside": Kind(SCRATCH, scratch=OUTSIDE, info_2=16, unlike={"6.11": (DONE, 1)}),
    "buffer outside, 64 KiB": Kind(
        SCRATCH, scratch=OUTSIDE, info_2=0x10000, unlike={"6.11": (DONE, 1)}
    ),
    "buffer outside, over 64 KiB": Kind(SCRATCH, scratch=OUTSIDE, info_2=0x10001),
    "buffer outside, 1 MiB": Kind(SCRATCH, scratch=OUTSIDE, info_2=1 << 20),
    "buffer beyond RAM": Kind(SCRATCH, scratch=FRAMES * PAGE_SIZE, info_2=16),
    "buffer over the end of RAM": Kind(SCRATCH, scratch=FRAMES * PAGE_SIZE - 8, info_2=16),
    "length that wraps": Kind(SCRATCH, info_2=NEVER - 8, unlike=dict.fromkeys(FIXED, (DONE, 1))),
    "length longer than the buffer": Kind(
        SCRATCH, info_2=2033, unlike=dict.fromkeys(FIXED, (DONE, 1))
    ),
    "length 0": Kind(DONE, 1, info_2=0),
    "end entry 252, all done": Kind(DONE, 1, end=252, entries=(entry(0x210, SHARED),)),
    "end entry 253": Kind(HEADER, end=253),
    "end entry 0xffff": Kind(HEADER, end=0xFFFF),
    "both indices 0xffff": Kind(HEADER, cur=0xFFFF, end=0xFFFF),
    "cur behind end": Kind(DONE, cur=1),
    "cur 0xffff": Kind(DONE, cur=0xFFFF),
    "entry already done": Kind(DONE, entries=(entry(0x210, SHARED, done=1),)),
    "more done than there is": Kind(ENTRY, entries=(entry(0x210, SHARED, done=2),)),
    "cur_page 0xfff": Kind(ENTRY, entries=(entry(0x210, SHARED, done=0xFFF),)),
    "513 of 512 done": Kind(ENTRY, entries=(entry(0x400, SHARED, is_2m=True, done=513),)),
    "2 MiB not aligned": Kind(ENTRY, entries=(entry(0x401, SHARED, is_2m=True),)),
    "bad entry after a good one": Kind(
        ENTRY, 1, entries=(entry(0x210, SHARED), entry(0x401, SHARED, is_2m=True)), end=1
    ),
    "operation 0": Kind(DONE, entries=(entry(0x210, 0),)),
    "operation SMASH": Kind(DONE, entries=(entry(0x210, 3),)),
    "operation UNSMASH": Kind(DONE, entries=(entry(0x210, 4),)),
    "operation 15": Kind(DONE, entries=(entry(0x210, 15),)),
    "reserved bits of an entry": Kind(DONE, 1, entries=(entry(0x210, SHARED) | 0x7F << 57,)),
    "gfn beyond RAM": Kind(DONE, 1, entries=(entry((1 << 40) - 1, SHARED),)),
    "one frame twice": Kind(DONE, 2, entries=(entry(0x210, SHARED),) * 2, end=1),
    "private and back": Kind(DONE, 2, entries=(entry(0x210, SHARED), entry(0x210, PRIVATE)), end=1),
    "all of a 2 MiB entry but one": Kind(
        DONE, 1, entries=(entry(0x400, SHARED, is_2m=True, done=511),)
    ),
    "the GHCB itself": Kind(DONE, 1, entries=(entry(GHCB >> 12, SHARED),)),
    "nothing given": Kind(
        MISSING, without=(ghcb.SCRATCH, ghcb.EXIT_CODE, ghcb.EXIT_INFO_1, ghcb.EXIT_INFO_2)
    ),
    "513 of 512 done, behind a good one": Kind(
        ENTRY,
        1,
        entries=(entry(0x210, SHARED), entry(0x400, SHARED, is_2m=True, done=513)),
        end=1,
    ),
    "SMASH of 2 MiB that is not aligned": Kind(ENTRY, entries=(entry(0x401, 3, is_2m=True),)),
}
WELL_FORMED = {
    "one entry",
    "room for one entry, one asked",
    "length 0",
    "private and back",
    "all of a 2 MiB entry but one",
}
"""What a guest may send; KVM does not look at the length since 6.12."""


def fresh(version: str, host: Heard | None = None) -> Guest:
    guest = Guest(SNP)
    guest.sev.kernel = psc_kernel(version)
    guest.machine.hooks.handler = host or Heard()
    return guest


def ask(guest: Guest, kind: Kind) -> tuple[int, int]:
    end = kind.scratch + 8 + 8 * len(kind.entries)
    if kind.scratch > 0 and end <= FRAMES * PAGE_SIZE:
        data = struct.pack(f"<HHI{len(kind.entries)}Q", kind.cur, kind.end, 0, *kind.entries)
        guest.machine.ram.write(Gpa(kind.scratch), data, private=False)
    return guest.request(
        abi.EXIT_PSC, 0, kind.info_2 & NEVER - 1, without=kind.without, scratch=kind.scratch
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_every_kind_of_request_is_answered_as_the_version_answers(version: str) -> None:
    guest = fresh(version)
    wrong = {}
    for name, kind in KINDS.items():
        host = Heard()
        guest.machine.rollback()
        guest.machine.hooks.handler = host
        answer = ask(guest, kind)
        expected, heard = kind.unlike.get(version, (kind.answer, kind.heard))
        if (answer, len(host.heard)) != (expected, heard):
            wrong[name] = (answer, host.heard, expected)
    assert wrong == {}


def test_forty_kinds_of_malformed_requests_are_told_apart() -> None:
    """A kind is a request of its own: no two send the same bytes."""
    assert set(KINDS) >= WELL_FORMED
    requests = {
        (kind.entries, kind.cur, kind.end, kind.scratch, kind.info_2, kind.without)
        for name, kind in KINDS.items()
        if name not in WELL_FORMED
    }
    assert len(requests) == len(KINDS) - len(WELL_FORMED)
    assert len(requests) >= 40


def test_the_reserved_word_of_the_header_is_not_looked_at() -> None:
    guest = fresh("7.3")
    guest.machine.ram.write(
        Gpa(BUFFER), struct.pack("<HHIQ", 0, 0, 0xFFFF_FFFF, entry(0x210, SHARED)), private=False
    )
    assert guest.request(abi.EXIT_PSC, scratch=BUFFER) == DONE


@pytest.mark.parametrize(("version", "reason"), [("6.12", 4), ("6.18", 4), ("7.2", 6), ("7.3", 6)])
def test_a_guest_without_snp_asks_in_vain(version: str, reason: int) -> None:
    guest = Guest(ES)
    guest.sev.kernel = psc_kernel(version)
    assert guest.psc(entry(0x210, SHARED)) == (2, reason)


def test_user_space_without_the_capability_is_not_asked() -> None:
    guest = fresh("7.3", host := Heard())
    assert guest.sev.snp is not None
    guest.sev.snp.psc.exits_enabled = False
    assert guest.psc(entry(0x210, SHARED)) == GENERIC
    assert guest.msr(2 << 52 | 0x210 << 12 | abi.MSR_PSC_REQ) == 1 << 63 | 0x15
    assert host.heard == []


# What goes to user space ------------------------------------------------------------------------


def test_attributes_are_the_start_entrys() -> None:
    guest = fresh("7.3", host := Heard())
    assert (
        guest.psc(
            LARGE,
            entry(0x600, SHARED, is_2m=True),
            entry(0x800, SHARED),
            entry(0x801, PRIVATE),
            entry(0xA00, SHARED, is_2m=True, done=256),
        )
        == DONE
    )
    assert host.heard == [
        (0x400, 1024, 1),
        (0x800, 1, 0),
        (0x801, 1, 0x10),
        (0xB00, 256, 1),  # the hint stays, with an address inside of the entry (N8)
    ]


@pytest.mark.parametrize("repaired", [False, True])
def test_a_batch_after_a_half_done_entry(repaired: bool) -> None:
    """N13: frame 0x400 is changed, 0x201 is reported as done."""
    guest = fresh("7.3", host := Heard())
    assert guest.sev.snp is not None
    if repaired:
        guest.sev.snp.psc.repaired = frozenset({PscDefect.HALF_DONE_BATCH})
    half = entry(0x200, SHARED, is_2m=True, done=511)
    assert guest.psc(half, entry(0x201, SHARED)) == DONE
    changed = [gfn + i for gfn, pages, _ in host.heard for i in range(pages)]
    assert changed == ([0x3FF, 0x201] if repaired else [0x3FF, 0x400])
    word = struct.unpack_from("<Q", guest.page(), ghcb.SHARED_BUFFER + 16)[0]
    assert word & 0xFFF == 1


def test_a_refusal_leaves_earlier_batches_done() -> None:
    guest = fresh("6.12", Heard(0, 22))
    assert guest.psc(entry(0x210, SHARED), entry(0x220, SHARED)) == GENERIC
    assert struct.unpack_from("<H", guest.page(), ghcb.SHARED_BUFFER) == (1,)
    words = struct.unpack_from("<2Q", guest.page(), ghcb.SHARED_BUFFER + 8)
    assert [word & 0xFFF for word in words] == [1, 0]


# Answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("answer", [1, 11, 22, 2**64 - 22, 0xDEAD_BEEF_0000_0000])
def test_answers_of_user_space(version: str, answer: int) -> None:
    guest = fresh(version, Heard(answer))
    fails = version in {"7.2", "7.3"} and answer not in {11, 22}
    for word in (2 << 52 | 0x210 << 12 | abi.MSR_PSC_REQ,):
        guest.machine.msrs.platform[0xC0010130] = word
        end = guest.vmgexit()
        assert isinstance(end, RunFailed) == fails
        if not fails:
            assert guest.machine.msrs.platform[0xC0010130] == 1 << 63 | 0x15
    if fails:
        with pytest.raises(AssertionError):
            guest.psc(entry(0x210, SHARED))
    else:
        assert guest.psc(entry(0x210, SHARED)) == GENERIC


def test_eagain_can_be_what_it_is_documented_to_be() -> None:
    guest = fresh("7.3", host := Heard(11, 11, 0))
    assert guest.sev.snp is not None
    guest.sev.snp.psc.repaired = frozenset({PscDefect.EAGAIN_IS_FATAL})
    assert guest.psc(entry(0x210, SHARED)) == DONE
    assert host.heard == [(0x210, 1, 0)] * 3
    guest.machine.hooks.handler = Heard(11)
    guest.machine.msrs.platform[0xC0010130] = 2 << 52 | 0x210 << 12 | abi.MSR_PSC_REQ
    assert isinstance(guest.vmgexit(), RunFailed)


# A guest that changes its buffer under KVM ------------------------------------------------------


@pytest.mark.parametrize(("version", "exits"), [("6.12", 3), ("7.2", 1)])
def test_a_header_that_grows_between_exits(version: str, exits: int) -> None:
    """6.12 reads the header anew before every exit, 7.2 once."""

    class Growing(Heard):
        def map_gpa_range(self, call: MapGpaRange) -> int:
            guest.machine.ram.write(Gpa(BUFFER + 2), b"\2\0", private=False)
            return super().map_gpa_range(call)

    guest = fresh(version, host := Growing())
    entries = tuple(entry(gfn, SHARED) for gfn in (0x210, 0x220, 0x230))
    assert guest.psc(*entries, last=0) == DONE
    assert len(host.heard) == exits


def test_a_request_without_an_end_makes_run_fail() -> None:
    class Backwards(Heard):
        def map_gpa_range(self, call: MapGpaRange) -> int:
            guest.machine.ram.write(
                Gpa(BUFFER), struct.pack("<HHIQ", 0, 1, 0, entry(0x210, SHARED)), private=False
            )
            return 0

    guest = fresh("6.12")
    guest.psc(entry(0x210, SHARED), entry(0x220, SHARED))
    guest.machine.hooks.handler = Backwards()
    data = struct.pack("<HHI2Q", 0, 1, 0, *(entry(gfn, SHARED) for gfn in (0x210, 0x220)))
    guest.machine.ram.write(Gpa(BUFFER), data, private=False)
    assert guest.request(abi.EXIT_PSC, scratch=BUFFER) == DONE


# The out-of-bounds access of May 2026 (N12) ----------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("scratch", "info_2"), [(OUTSIDE, 24), (GHCB + 0xFE0, 16)], ids=["outside", "end of the GHCB"]
)
def test_kvm_reads_behind_its_copy_before_the_fix(version: str, scratch: int, info_2: int) -> None:
    guest = fresh(version)
    assert guest.sev.snp is not None
    entries = tuple(entry(0x300 + gfn, 3) for gfn in range(2 if scratch == OUTSIDE else 1))
    ask(guest, Kind(DONE, entries=entries, end=100, scratch=scratch, info_2=info_2))
    outside = guest.sev.snp.psc.out_of_bounds
    assert bool(outside) == (version == "6.11")
    if outside:
        room = 24 if scratch == OUTSIDE else 0x20
        assert OutOfBounds(False, room) in outside
        assert {found.offset >= room for found in outside} == {True}


def test_a_copy_is_written_back() -> None:
    guest = fresh("6.11")
    ask(guest, Kind(DONE, scratch=OUTSIDE, info_2=16))
    word = guest.machine.ram.read(Gpa(OUTSIDE), 16, private=False)
    assert struct.unpack("<HHIQ", word)[::3] == (1, entry(0x210, SHARED, done=1))
