# SPDX-License-Identifier: GPL-2.0-or-later
"""The snippet as a TD: what conversions leave, and what accesses come to in each page state."""

from __future__ import annotations

import pytest

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE
from guestemu.abi.errno import EINVAL
from guestemu.abi.errors import InputError
from guestemu.abi.regions import Instruction, Region
from guestemu.abi.tdx import OPERAND_BUSY, VECTOR_VE
from guestemu.abi.x86 import VECTOR_UD, Mode
from guestemu.events.tdx import Accept, MapGpaCall, SeptViolation
from guestemu.guest.base import CallOutcome, RawRegisters
from guestemu.guest.td import Td
from guestemu.machine.exits import ExceptionExit, RunFailed, Shutdown
from guestemu.machine.sept import ACCEPTED, PENDING, SHARED, AccessEnd
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header, SevKind
from guestemu.runner.testbed import Testbed, build_testbed

PAGE = 5


def build(**fields: object) -> Testbed:
    return build_testbed(Header(guest="snippet:6.12", sev=SevKind.TDX, **fields))  # type: ignore[arg-type]


class Bed:
    def __init__(self, testbed: Testbed) -> None:
        testbed.reset()
        self.testbed = testbed
        self.guest = testbed.guest
        assert self.guest.td is not None
        self.td: Td = self.guest.td
        self.td.converts = True
        self.td.accept_error = None
        self.gva = self.guest.gva(Region.D, PAGE)
        self.gfn = self.guest.gpa(Region.D, PAGE) >> PAGE_SHIFT

    def decrypt(self, pages: int = 1) -> CallOutcome:
        return self.guest.set_memory_decrypted(self.gva, pages)

    def encrypt(self, pages: int = 1) -> CallOutcome:
        return self.guest.set_memory_encrypted(self.gva, pages)

    def states(self, pages: int) -> list[int]:
        return [self.td.sept.state(self.gfn + page) for page in range(pages)]

    def entry(self, page: int = 0) -> str:
        self.guest.leaf_map.update(self.guest.machine.ram.table_writes())
        return "P" if self.guest.leaf_map.private[self.gfn + page] else "S"


@pytest.fixture(scope="module", params=[39, 47, 51])
def testbed(request: pytest.FixtureRequest) -> Testbed:
    return build(cbit=request.param)


@pytest.fixture
def bed(testbed: Testbed) -> Bed:
    return Bed(testbed)


@pytest.fixture(scope="module")
def guarded_testbed() -> Testbed:
    testbed = build()
    assert testbed.guest.td is not None
    testbed.guest.td.guard()
    testbed.guest.machine.checkpoint()
    return testbed


@pytest.fixture(params=["watched", "guarded"])
def either(request: pytest.FixtureRequest, testbed: Testbed, guarded_testbed: Testbed) -> Bed:
    return Bed(testbed if request.param == "watched" else guarded_testbed)


def test_only_6_12_has_code_for_a_td() -> None:
    with pytest.raises(InputError, match=r"take snippet:6\.12"):
        build_testbed(Header(guest="snippet:6.1", sev=SevKind.TDX))


def test_decryption_tells_the_host_last_and_encryption_first(bed: Bed) -> None:
    assert bed.decrypt(2) == CallOutcome(0)
    assert (bed.entry(), bed.states(2)) == ("S", [SHARED, SHARED])
    assert bed.encrypt(2) == CallOutcome(0)
    assert (bed.entry(), bed.states(2)) == ("P", [ACCEPTED, ACCEPTED])
    shared, private, *accepts = bed.td.events
    assert isinstance(shared, MapGpaCall)
    assert isinstance(private, MapGpaCall)
    assert (shared.private, shared.size, shared.table_writes) == (False, 8192, 2)
    assert (private.private, private.size, private.table_writes) == (True, 8192, 0)
    assert [type(event) for event in accepts] == [Accept, Accept]


def test_a_round_trip_reads_zeroes(bed: Bed) -> None:
    bed.guest.memset(bed.gva, 0x11, PAGE_SIZE)
    bed.decrypt()
    assert bed.guest.load(bed.gva).value == 0
    bed.guest.memset(bed.gva, 0x22, PAGE_SIZE)
    bed.encrypt()
    assert bed.guest.load(bed.gva).value == 0
    assert not bed.td.events or not any(isinstance(event, SeptViolation) for event in bed.td.events)


@pytest.mark.parametrize(("stalls", "value"), [(2, 0), (3, -5)])
def test_the_third_stall_fails(bed: Bed, stalls: int, value: int) -> None:
    bed.testbed.host.inject_answer(11, stalls)
    outcome = bed.decrypt()
    assert outcome.value == value
    assert outcome.warnings == (("vmm_fail",) if value else ())
    assert bed.entry() == "S"


def test_a_refused_decryption_cannot_be_undone(bed: Bed) -> None:
    """T20: the page is still accepted, and Linux takes ALREADY_ACCEPTED for a failure."""
    bed.testbed.host.inject_answer(22, 1)
    assert bed.decrypt().value == -5
    assert bed.encrypt().value == -5
    assert (bed.entry(), bed.states(1)) == ("S", [ACCEPTED])
    assert bed.decrypt().value == 0
    assert bed.encrypt().value == 0


def test_a_failed_accept_leaves_the_rest_pending(bed: Bed) -> None:
    assert bed.decrypt(8).value == 0
    fourth = bed.gfn + 3 << PAGE_SHIFT
    bed.td.accept_error = lambda gpa, _level: OPERAND_BUSY if gpa == fourth else None
    assert bed.encrypt(8).value == -5
    assert bed.states(8) == [ACCEPTED] * 3 + [PENDING] * 5
    assert bed.entry() == "S"


def test_vmalloc_addresses_have_no_place_in_the_direct_map(bed: Bed) -> None:
    """T21: the address is beyond MAXPHYADDR; the area and its direct map stay shared."""
    outcome = bed.guest.set_memory_decrypted(bed.guest.gva(Region.V, PAGE), 1)
    assert outcome.value == -5
    assert (bed.entry(), bed.states(1)) == ("S", [ACCEPTED])
    (call,) = bed.td.events
    assert isinstance(call, MapGpaCall)
    assert call.gpa & 1 << 46


def test_a_shared_access_to_an_accepted_page_loses_it(either: Bed) -> None:
    """Row five of T12 under QEMU's policy: an implicit conversion."""
    either.guest.memset(either.gva, 0x11, 64)
    either.guest.touch_cbit(either.gva, private=False)
    assert either.guest.load(either.gva).value == 0
    assert either.states(1) == [SHARED]
    (event,) = either.td.events
    assert isinstance(event, SeptViolation)
    assert (event.state, event.end, event.converted) == (
        "accepted",
        AccessEnd.MEMORY_FAULT.value,
        True,
    )
    either.guest.touch_cbit(either.gva, private=True)
    end = either.guest.load(either.gva).end
    assert isinstance(end, Shutdown)
    assert "before accepting" in end.reason


def test_a_host_that_stops_ends_the_run_at_the_access(either: Bed) -> None:
    either.td.converts = False
    either.guest.touch_cbit(either.gva, private=False)
    end = either.guest.memset(either.gva, 0x33, 8).end
    assert isinstance(end, Shutdown)
    assert "KVM_EXIT_MEMORY_FAULT" in end.reason
    assert either.states(1) == [ACCEPTED]


def test_guarded_stops_before_the_store(guarded_testbed: Testbed) -> None:
    bed = Bed(guarded_testbed)
    bed.td.converts = False
    bed.guest.touch_cbit(bed.gva, private=False)
    bed.guest.memset(bed.gva, 0x33, 8)
    ram = bed.guest.machine.ram
    assert not any(ram.read(bed.guest.gpa(Region.D, PAGE), 8, private=False))


def test_an_access_before_accept_ends_the_vm(either: Bed) -> None:
    either.td.sept.make_shared(either.gfn, 1)
    either.td.sept.make_private(either.gfn, 1)
    end = either.guest.load(either.gva).end
    assert isinstance(end, Shutdown)
    assert "before accepting" in end.reason


def test_a_blocked_page_is_unblocked_by_a_store(either: Bed) -> None:
    either.td.sept.block(either.gfn, is_blocked=True)
    assert either.guest.load(either.gva).value == 0
    assert either.td.sept.is_blocked(either.gfn)
    assert either.guest.memset(either.gva, 0x44, 8).value == 0
    assert not either.td.sept.is_blocked(either.gfn)
    assert either.guest.load(either.gva).value == 0x4444444444444444


def test_rollback_watches_again(either: Bed) -> None:
    either.decrypt()
    either.testbed.reset()
    assert either.states(1) == [ACCEPTED]
    either.guest.memset(either.gva, 0x55, 8)
    assert not either.td.events
    either.guest.touch_cbit(either.gva, private=False)
    either.guest.load(either.gva)
    assert len(either.td.events) == 1


def test_vmmcall_is_undefined_and_vmcall_is_ve(bed: Bed) -> None:
    end = bed.guest.raw_hypercall(Instruction.VMMCALL, RawRegisters(rax=12), Mode.LONG64, 0).end
    assert isinstance(end, ExceptionExit)
    assert end.vector == VECTOR_UD
    end = bed.guest.raw_hypercall(Instruction.VMCALL, RawRegisters(rax=12), Mode.LONG64, 0).end
    assert isinstance(end, ExceptionExit)
    assert end.vector == VECTOR_VE


def test_an_answer_that_kvm_does_not_know_fails_kvm_run(bed: Bed) -> None:
    bed.testbed.host.inject_answer(1000, 1)
    end = bed.decrypt().end
    assert isinstance(end, RunFailed)


@pytest.mark.parametrize(("host", "shared"), [("map-gpa-range", True), ("stop-at-fault", False)])
def test_user_space_is_asked_at_a_memory_fault(host: str, shared: bool) -> None:
    """What it converts is in its record; one that stops ends KVM_RUN with an error (T12)."""
    testbed = build_testbed(Header(guest="snippet:6.12", sev=SevKind.TDX, host=host))
    ops = [
        Op(OpKind.ANSWER, (EINVAL, 1)),
        Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0), Region.D, 3),
        Op(OpKind.WRITE, (17, 0, 8), Region.D, 3),
    ]
    outcome = testbed.run(ops)
    store = outcome.results[2].outcome
    assert outcome.violations == ()
    assert isinstance(store.end, RunFailed) is not shared
    gfn = testbed.guest.gpa(Region.D, 3) >> PAGE_SHIFT
    assert bool(testbed.host.private_map()[gfn]) is not shared
