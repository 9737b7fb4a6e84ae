# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of the checks that read ends of runs, packets and requests of guests, on views written by
hand: each case beside the neighbour that is not one."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
from bitarray import bitarray

from guestemu.abi import tdx
from guestemu.abi.errno import EAGAIN, EIO
from guestemu.abi.ghcb import AP_DESTROY, PSC_ERROR_GENERIC
from guestemu.abi.regions import Region
from guestemu.checks import psc
from guestemu.checks.first_state import first_state, is_of_new_vm
from guestemu.checks.packets import PACKET_MOVED, PACKET_REORDERED, PACKET_REPLAYED, PacketCheck
from guestemu.checks.page_enc import NUMBERS
from guestemu.checks.progress import ProgressCheck
from guestemu.checks.td import TWICE, TdCheck
from guestemu.events.exits import HypercallExit, MapGpaRangeExit
from guestemu.events.memory import PacketArrived
from guestemu.events.tdx import Accept, MapGpaCall
from guestemu.host.kvm.map_gpa_lies import MAP_GPA_LIES
from guestemu.machine.exits import BudgetExhausted, RunFailed, Shutdown, Terminated, Unbacked
from guestemu.machine.rmp import OWN_ASID, RmpEntry
from guestemu.machine.sept import ACCEPTED, SHARED
from guestemu.program.ops import Op, OpKind

PAGE = 4096
DONE, REFUSED = (HypercallExit(12, (0, 1, 0, 0), ret, 0) for ret in (0, 22))
LOOP, SHUT = BudgetExhausted(rip=0x1000), Shutdown("no gate", 0x1000)
FAILED, ENDED = RunFailed("-EIO", 0x1000), Terminated("asked", 0x1000)


# The end of an operation --------------------------------------------------------------------------


READ = Op(OpKind.READ, (0,))


def ended(
    end: object,
    *exits: object,
    td: object = None,
    lie: str = "",
    injected: int = 0,
    op: Op = READ,
):
    guest = SimpleNamespace(td=td, budget=500, location=lambda rip: f"place+{rip:#x}")
    view = SimpleNamespace(
        index=4,
        op=op,
        exits=list(exits),
        guest=guest,
        host=SimpleNamespace(lie=lie),
        outcome=SimpleNamespace(end=end),
        injected=(0, injected),
    )
    return list(ProgressCheck().after(view))


def a_td(has_injected: bool = False, attacked: frozenset[int] = frozenset(), lie: str = ""):
    return SimpleNamespace(has_injected=has_injected, attacked=attacked, lie=lie)


MAP_GPA_LIE = next(iter(MAP_GPA_LIES))
HONEST = ({}, {"td": a_td()}, {"td": a_td(), "lie": "a lie to an SNP guest"})
ATTACKS = (
    {"lie": "a lie to an SNP guest"},
    {"td": a_td(), "lie": MAP_GPA_LIE},
    {"td": a_td(lie=MAP_GPA_LIE)},
    {"td": a_td(has_injected=True)},
    {"td": a_td(attacked=frozenset({3}))},
)


@pytest.mark.parametrize("end", [LOOP, SHUT, FAILED])
def test_an_end_counts_for_an_honest_hypervisor_only(end) -> None:
    for honest in HONEST:
        assert [found.op for found in ended(end, **honest)] == [4]
    assert not any(ended(end, **attack) for attack in ATTACKS)


@pytest.mark.parametrize("end", [FAILED, ENDED])
def test_a_guest_may_end_itself_once_the_host_refused_it_something(end) -> None:
    assert ended(end)
    assert ended(end, DONE, DONE)
    assert not ended(end, DONE, REFUSED)
    assert not ended(end, REFUSED, DONE)


def test_a_vcpu_may_have_itself_destroyed() -> None:
    itself, other = (Op(OpKind.AP_CREATION, (AP_DESTROY, apic, 1)) for apic in (0, 1))
    assert not ended(FAILED, op=itself)
    assert ended(FAILED, op=other)
    assert ended(LOOP, op=itself)


def test_a_refusal_excuses_no_triple_fault_and_no_loop() -> None:
    assert ended(SHUT, REFUSED)
    assert ended(LOOP, REFUSED)
    assert ended(SHUT, injected=1)


def test_a_run_that_fails_after_an_ordered_answer_is_what_was_ordered() -> None:
    assert not ended(FAILED, injected=1)
    assert ended(ENDED, injected=1)


def test_what_an_end_is_called() -> None:
    (loop,) = ended(LOOP, DONE)
    assert loop.message == "still running at place+0x1000 after 500 basic blocks and 1 exits"
    for is_write, word in ((True, "stored to"), (False, "loaded from")):
        (beyond,) = ended(Unbacked(0x7000, 8, is_write, 0x1000), lie="skip")
        assert f"the code at 0x1000 {word} GPA 0x7000" in beyond.message
    assert ended(None) == []
    assert ended(object()) == [], "an exception that the guest may handle"


# A VM that has not run ----------------------------------------------------------------------------


def test_a_new_vm_is_private_and_not_ready() -> None:
    assert first_state(0, bitarray("1111"), is_ready=False) == []
    (one,) = first_state(3, bitarray("1101"), is_ready=False)
    assert (one.check, one.op) == ("record", 3)
    assert one.message.startswith("host: GPA 0x2000 is recorded as shared in a VM that has not run")
    assert "(1 frame differs)" in one.message
    two, ready = first_state(0, bitarray("1001"), is_ready=True)
    assert "(2 frames differ)" in two.message
    assert (ready.check, ready.op) == ("migration-control", 0)
    assert all(map(is_of_new_vm, (one, two, ready)))
    assert not is_of_new_vm(ended(SHUT)[0])


# Packets ------------------------------------------------------------------------------------------


def arrived(*packets: tuple[int, int, int]) -> list[str]:
    check = PacketCheck()
    found = []
    for index, packet in enumerate(packets):
        view = SimpleNamespace(index=index, events=[DONE, PacketArrived(*packet)])
        found += [f"{one.check} {one.op}" for one in check.after(view)]
    return found


def test_packets_come_once_in_order_to_their_own_frames() -> None:
    assert arrived((0, 7, 7), (1, 8, 8), (5, 7, 7)) == []
    assert arrived((0, 7, 7), (0, 7, 7)) == [f"{PACKET_REPLAYED} 1"]
    assert arrived((1, 7, 7), (0, 8, 8)) == [f"{PACKET_REORDERED} 1"]
    assert arrived((0, 7, 8)) == [f"{PACKET_MOVED} 0"]
    assert arrived((3, 7, 7), (1, 7, 7), (2, 7, 7)) == [f"{PACKET_REORDERED} 1"], "told once"
    assert arrived((3, 7, 7), (1, 7, 7), (3, 7, 7))[1:] == [f"{PACKET_REPLAYED} 2"]
    assert arrived((3, 7, 7), (1, 7, 7), (1, 7, 9))[1:] == [
        f"{PACKET_REPLAYED} 2",
        f"{PACKET_MOVED} 2",
    ]


# Page-state changes of an SNP guest ---------------------------------------------------------------


def asked(
    monkeypatch,
    *ranges,
    entries=((4, 2), (9, 1)),
    kind=OpKind.PSC,
    ret=0,
    value=0,
    bad=(),
    in_use=None,
):
    """What the check says of a request with `entries` (first frame, frames) for which user space
    was asked for `ranges` and answered `ret`; vCPUs run from the system frames `in_use`."""
    request = SimpleNamespace(out_of_bounds=list(bad))
    frames = in_use or {}
    rmp = SimpleNamespace(frames_in_use=lambda: list(frames), entry=frames.get)
    sev = SimpleNamespace(
        snp=SimpleNamespace(psc=request, rmp=rmp),
        asked=[SimpleNamespace(gfn=gfn, pages=pages) for gfn, pages in entries],
    )
    monkeypatch.setattr(psc, "sev_of", lambda guest: sev if guest else None)
    calls = [MapGpaRangeExit(12, (gfn * PAGE, pages, 0, 0), ret, 0) for gfn, pages in ranges]
    view = SimpleNamespace(
        index=2,
        op=Op(kind),
        guest=True,
        exits=[HypercallExit(12, (PAGE, 1, 0, 0), EAGAIN, 0), *calls],
        outcome=SimpleNamespace(value=value),
    )
    found = list(psc.PscCheck().after(view))
    assert not request.out_of_bounds or not found, "each access is told once"
    return [one.check for one in found] if not bad else [one.message for one in found]


def test_user_space_is_asked_for_frames_of_entries_only(monkeypatch) -> None:
    assert asked(monkeypatch, (4, 2), (9, 1)) == []
    assert asked(monkeypatch, (5, 1)) == []
    for place in ((3, 1), (6, 1), (4, 3), (3, 2), (8, 2), (10, 1)):
        assert asked(monkeypatch, place, place) == [psc.UNASKED], "the first is enough"
    assert asked(monkeypatch, (30, 1), kind=OpKind.READ) == []


def test_eagain_is_no_failure_for_the_guest(monkeypatch) -> None:
    for kind in (OpKind.PSC, OpKind.PSC_MIXED):
        failed = {"kind": kind, "value": PSC_ERROR_GENERIC}
        assert asked(monkeypatch, (4, 2), ret=EAGAIN, **failed) == [psc.NO_RETRY]
        assert asked(monkeypatch, (4, 2), ret=0, **failed) == []
        assert asked(monkeypatch, **failed) == []
        assert asked(monkeypatch, (4, 2), ret=EAGAIN, kind=kind) == []


def test_kvm_stays_in_its_copy_of_the_buffer(monkeypatch) -> None:
    for is_write, word in ((False, "read"), (True, "wrote")):
        access = SimpleNamespace(is_write=is_write, offset=0x800)
        message = f"KVM {word} at 0x800, behind its copy of the buffer"
        assert asked(monkeypatch, bad=[access]) == [message]


def test_a_vcpu_runs_from_a_vmsa_of_its_guest(monkeypatch) -> None:
    vmsa = RmpEntry(assigned=True, asid=OWN_ASID, validated=True, vmsa=True)
    for kind in (OpKind.RMPADJUST, OpKind.PSC):
        assert asked(monkeypatch, kind=kind, in_use={3: vmsa, 4: vmsa}) == []
        for field in ({"vmsa": False}, {"validated": False}, {"asid": 0}, {"asid": 2}):
            wrong = msgspec.structs.replace(vmsa, **field)
            assert asked(monkeypatch, kind=kind, in_use={3: vmsa, 4: wrong}) == [psc.NO_VMSA]


def test_a_guest_of_sev_es_has_no_page_states(monkeypatch) -> None:
    monkeypatch.setattr(psc, "sev_of", lambda _guest: SimpleNamespace(snp=None))
    assert list(psc.PscCheck().after(SimpleNamespace(guest=True, op=Op(OpKind.PSC)))) == []


def test_only_a_guest_under_snp_has_requests() -> None:
    assert psc.sev_of(SimpleNamespace(snp="below it")) == "below it"
    assert psc.sev_of(SimpleNamespace()) is None


# Conversions of a TD ------------------------------------------------------------------------------

FIRST, PAGES = 2, 3


class Conversion:
    """One conversion of `PAGES` pages from frame `FIRST` on that went right; a test changes what it
    is about."""

    def __init__(self, private: bool) -> None:
        self.states = dict.fromkeys(range(FIRST, FIRST + PAGES), ACCEPTED if private else SHARED)
        sept = SimpleNamespace(frames=16, state=self.states.get, describe=lambda gfn: "as it is")
        self.td = SimpleNamespace(sept=sept, attacked=set(), lie="")
        before = bitarray("0" * 16 if private else "1" * 16)
        self.view = SimpleNamespace(
            index=1,
            guest=SimpleNamespace(td=self.td),
            host=SimpleNamespace(lie=""),
            frames=(FIRST, PAGES),
            wants_private=private,
            region=Region.D,
            host_before=before,
            outcome=SimpleNamespace(value=0),
            flips=["a leaf"],
            exits=[],
            emitted=[],
        )

    def emit(self, *events: object) -> Conversion:
        self.view.emitted = [(0, event) for event in events]
        return self

    def found(self) -> list[str]:
        return [one.message for one in TdCheck().after(self.view)]


def step(private: bool, writes: int) -> MapGpaCall:
    return MapGpaCall(FIRST * PAGE, PAGES * PAGE, private, 0, 0, writes)


def accept(gfn: int, result: int = tdx.SUCCESS, level: int = 0, writes: int = 0) -> Accept:
    return Accept(gfn * PAGE, level, result, 0, writes)


@pytest.mark.parametrize("private", [False, True])
def test_a_right_conversion_of_a_td_says_nothing(private) -> None:
    one = Conversion(private)
    assert one.emit(step(private, 0 if private else 3)).found() == []
    one.states.clear()
    assert one.found() != []
    one.view.frames = None
    assert one.found() == [], "an operation without a range"
    one = Conversion(private)
    one.view.guest.td = None
    assert one.found() == [], "a guest that is no TD"


def test_conversions_of_tds_are_judged_on_hosts_of_the_merged_abi() -> None:
    assert TdCheck.applies(SimpleNamespace(contract="map-gpa-range"))
    assert not any(TdCheck.applies(SimpleNamespace(contract=name)) for name in NUMBERS)


def test_mapgpa_and_accept_come_before_the_entries_of_an_encryption() -> None:
    early = "a private entry before its page was accepted"
    assert Conversion(True).emit(step(True, 1)).found() == [early]
    lied_to = Conversion(True).emit(step(True, 0), accept(2, writes=1))
    assert lied_to.found() == [early]
    lied_to.view.host.lie = MAP_GPA_LIE
    assert lied_to.found() == [], "whose VMM lies"
    late = "the host converted pages that are still mapped private"
    shared = Conversion(False).emit(step(False, 0), step(False, 2))
    assert shared.found() == [late]
    shared.view.flips = []
    assert shared.found() == [], "no entry changed"
    assert Conversion(False).emit(step(False, 2), step(False, 0)).found() == []


@pytest.mark.parametrize("private", [False, True])
def test_every_page_of_a_range_is_in_its_state(private) -> None:
    one = Conversion(private)
    word = "accepted" if private else "shared"
    one.states[3] = one.states[4] = SHARED if private else ACCEPTED
    assert one.found() == [f"GPA 0x3000 is as it is, expected {word} (2 of 3 pages)"]
    one.td.attacked = {3}
    assert one.found() == [f"GPA 0x4000 is as it is, expected {word} (1 of 3 pages)"]
    one.td.lie = "says yes"
    assert one.found() == []
    one.td.lie, one.view.outcome.value = "", -EIO
    assert one.found() == [], "of a conversion that failed"


def test_frames_beyond_ram_have_no_state() -> None:
    one = Conversion(True)
    one.view.frames = (FIRST, 20)
    one.td.sept.frames = FIRST + PAGES
    assert one.found() == []


def failed(private: bool = True) -> Conversion:
    one = Conversion(private)
    one.view.outcome.value = -EIO
    return one


def asks(*answers: tuple[int, int]) -> list[MapGpaRangeExit]:
    return [MapGpaRangeExit(12, (gfn * PAGE, 1, 0, 0), ret, 0) for gfn, ret in answers]


@pytest.mark.parametrize("private", [False, True])
def test_a_failure_needs_a_reason(private) -> None:
    words = "-EIO, and nothing was refused"
    assert failed(private).found()[0].startswith(words)
    stalls = [(2, EAGAIN)] * 3
    for answers, is_reason in (
        ([(2, 0), (3, 0)], False),
        ([(2, 0), (3, 22)], True),
        (stalls[:2], False),
        (stalls, True),
        ([*stalls[:2], (3, EAGAIN)], False),
        ([*stalls[:2], (3, EAGAIN), (2, EAGAIN)], False),
        ([(3, EAGAIN), *stalls], True),
        ([(2, 0), (2, EAGAIN), (2, EAGAIN)], False),
    ):
        one = failed(private)
        one.view.exits = [REFUSED, *asks(*answers)]
        assert bool(one.found()) is not is_reason, answers


def test_reasons_of_a_failure_other_than_answers() -> None:
    assert not failed().emit(accept(2, tdx.OPERAND_BUSY)).found()
    assert failed().emit(accept(2, tdx.OPERAND_BUSY, level=1)).found(), "tried in small pages next"
    assert failed().emit(accept(2, tdx.OPERAND_INVALID)).found()
    one = failed()
    one.view.host_before[3] = 1
    assert not one.found(), "a page was in that state before"
    one = failed()
    one.view.host_before[FIRST - 1] = one.view.host_before[FIRST + PAGES] = 1
    assert one.found()
    for frames in ((FIRST, 0), (14, 3)):
        one = failed()
        one.view.frames = frames
        assert not one.found()
    one = failed()
    one.view.region = Region.V
    assert not one.found()
    one = failed()
    one.td.attacked = {9}
    assert not one.found()


def test_a_page_is_accepted_once() -> None:
    twice = Conversion(True).emit(accept(3), accept(4), accept(4), accept(3), accept(2))
    assert twice.found() == ["GPA 0x3000 was accepted twice (2 such frames)"]
    assert [one.check for one in TdCheck().after(twice.view)] == [TWICE]
    assert not Conversion(True).emit(accept(3), accept(3, tdx.OPERAND_BUSY)).found()
    assert not Conversion(False).emit(*[accept(3, writes=1)] * 2).found(), "not of a decryption"
    twice.td.lie = "says yes"
    assert twice.found(), "also where the VMM lies"
