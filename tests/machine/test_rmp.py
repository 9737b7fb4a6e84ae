# SPDX-License-Identifier: GPL-2.0-or-later
"""The decision table of SNP memory (N28): state, access, who makes it, what becomes of it.

Each row is asked of the table's model and made on the machine, with guest code.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from bare_machine import DATA, HLT, PRIVATE, SHARED, Answers, load, mov, store
from ghcb_guest import SNP, Guest

from guestemu.abi import ghcb as abi
from guestemu.abi.addresses import PAGE_SIZE, PMD_SIZE, Gpa
from guestemu.events.snp import MemoryFault
from guestemu.guest.linux.snp import Snp
from guestemu.machine.exits import (
    ExceptionExit,
    Exit,
    Halt,
    MapGpaRange,
    RunFailed,
    Shutdown,
)
from guestemu.machine.rmp import ASSIGNED, VALIDATED, Rmp, RmpEntry, host_access
from guestemu.machine.rmp import SHARED as HYPERVISORS

GPA = DATA + PMD_SIZE  # 2 MiB-aligned, mapped by leaves of 2 MiB in both views
GFN = GPA >> 12
OWN = RmpEntry(assigned=True, asid=1, gfn=GFN)
SECRET = 0x5EC2E7_5EC2E7


def unassigned(rmp: Rmp) -> None:
    rmp.release(GFN, 1)


def assigned(rmp: Rmp) -> None:
    rmp.rmpupdate(GFN, OWN)


def validated(_rmp: Rmp) -> None:
    pass


def large(rmp: Rmp) -> None:
    for gfn in range(GFN, GFN + 512):
        rmp.rmpupdate(gfn, msgspec.structs.replace(OWN, gfn=gfn, is_2m=True))
    assert str(rmp.pvalidate(GFN, True, True)) == "0"


def cut(rmp: Rmp) -> None:
    large(rmp)
    rmp.small_mappings.add(GFN // 512)


def other_asid(rmp: Rmp) -> None:
    rmp.rmpupdate(GFN, msgspec.structs.replace(OWN, asid=2))


def other_gpa(rmp: Rmp) -> None:
    rmp.rmpupdate(GFN, msgspec.structs.replace(OWN, gfn=GFN + 1))


def immutable(rmp: Rmp) -> None:
    rmp.rmpupdate(GFN, RmpEntry(immutable=True))


def own_immutable(rmp: Rmp) -> None:
    """A page of the guest's that the firmware holds for a moment: in all else it is the guest's."""
    rmp.rmpupdate(GFN, msgspec.structs.replace(OWN, immutable=True))


def low_vmpl(rmp: Rmp) -> None:
    """VMPL 1, which got the rights to all pages but this one."""
    for gfn in range(rmp.frames):
        if gfn != GFN:
            rmp.rmpadjust(gfn, False, 0x0F01)
    rmp.vmpl = 1


NPF, NPF_E = "#NPF 0x80000000", "#NPF 0x480000000"
NPF_S, NPF_V = "#NPF 0xc80000000", "#NPF 0x1480000000"
STOLEN = ("ciphertext", "#PF 0x80000000")
COLUMNS = (
    "C=1 read",
    "C=1 write",
    "fetch",
    "C=0 read",
    "C=0 write",
    "host read",
    "host write",
    "PVALIDATE 4K set",
    "PVALIDATE 4K clear",
    "PVALIDATE 2M set",
)
ALL_NPF = (NPF_E, NPF_E, NPF_E, "ciphertext", NPF, *STOLEN, NPF_E, NPF_E, NPF_E)
VC = "#VC 0x404"
ROWS: dict[Callable[[Rmp], None], tuple[str, ...]] = {
    unassigned: (NPF_E, NPF_E, NPF_E, "plain", "plain", "plain", "plain", NPF_E, NPF_E, NPF_E),
    assigned: (VC, VC, VC, "ciphertext", NPF, *STOLEN, "0", "0+CF", "6"),
    validated: ("plain", "plain", "plain", "ciphertext", NPF, *STOLEN, "0+CF", "0", "6"),
    large: ("plain", "plain", "plain", "ciphertext", NPF, *STOLEN, NPF_S, NPF_S, "0+CF"),
    cut: (NPF_E, NPF_E, NPF_E, "ciphertext", NPF, *STOLEN, NPF_S, NPF_S, "6"),
    other_asid: ALL_NPF,
    other_gpa: ALL_NPF,
    immutable: (NPF_E, NPF_E, NPF_E, "ciphertext", NPF, "plain", "plain", NPF_E, NPF_E, NPF_E),
    own_immutable: ALL_NPF,
    low_vmpl: (NPF_V, NPF_V, NPF_V, "ciphertext", NPF, *STOLEN, "#GP", "#GP", "#GP"),
}
CELLS = [
    pytest.param(make, column, expected, id=f"{make.__name__}-{column}")
    for make, row in ROWS.items()
    for column, expected in zip(COLUMNS, row, strict=True)
]


def modelled(rmp: Rmp, column: str) -> str:
    who, _, kind = column.partition(" ")
    if who == "host":
        return str(host_access(rmp.entry(GFN), kind == "write"))
    if who == "PVALIDATE":
        size, what = kind.split()
        return str(rmp.pvalidate(GFN, size == "2M", what == "set"))
    if who == "fetch":
        return str(rmp.access(GFN, "fetch", False))
    return str(rmp.access(GFN, kind, who == "C=1"))


@pytest.mark.parametrize(("make", "column", "expected"), CELLS)
def test_the_decision_table(make: Callable[[Rmp], None], column: str, expected: str) -> None:
    rmp = Rmp(0x1000)
    make(rmp)
    assert modelled(rmp, column) == expected


# The same on the machine --------------------------------------------------------------------------


class Scene:
    """A bare SNP guest whose memory is enforced; #NPFs end the run and are kept."""

    def __init__(self) -> None:
        self.guest = Guest(SNP)
        assert self.guest.sev.snp is not None
        self.snp: Snp = self.guest.sev.snp
        self.snp.enforce()
        self.faults: list[int] = []
        self.guest.machine.ram.write_u64(Gpa(GPA), SECRET)
        self.guest.machine.checkpoint()

    def keep_faults(self) -> None:
        def nested_fault(_gfn: int, code: int, rip: int) -> Shutdown | None:
            self.faults.append(code)
            return RunFailed("kept", rip)

        self.snp._nested_fault = nested_fault  # type: ignore[method-assign]
        self.snp.attributes[:] = bytes(len(self.snp.attributes))  # KVM backs nothing by itself
        self.guest.machine.checkpoint()

    def run(self, column: str) -> Exit:
        who, _, kind = column.partition(" ")
        address = (PRIVATE if who != "C=0" else SHARED) + GPA
        if who == "PVALIDATE":
            size, what = kind.split()
            return self.guest.pvalidate(address, size == "2M", what == "set")
        if who == "fetch":
            return self.guest.bare.run(mov(0, address) + b"\xff\xe0")
        code = store(address, 1) if kind == "write" else load(address)
        return self.guest.bare.run(code + HLT)

    def outcome(self, column: str) -> str:
        end = self.run(column)
        if self.faults:
            return f"#NPF {self.faults[0]:#x}"
        if isinstance(end, ExceptionExit):
            code = f" {end.error_code:#x}" if end.error_code else ""
            return {13: "#GP", 29: "#VC"}[end.vector] + code
        assert isinstance(end, Halt)
        if column == "fetch":
            return "plain"
        if column.startswith("PVALIDATE"):
            return f"{self.guest.bare.register('rax')}{'+CF' if self.guest.carry else ''}"
        return "plain" if self.guest.bare.register("rax") in {1, SECRET} else "ciphertext"


@pytest.mark.parametrize("make", ROWS)
def test_each_row_on_the_machine(make: Callable[[Rmp], None]) -> None:
    scene = Scene()
    scene.keep_faults()
    wrong = {}
    for column, expected in zip(COLUMNS, ROWS[make], strict=True):
        if column.startswith("host"):
            continue  # the host's own accesses need no CPU
        scene.guest.machine.rollback()
        scene.faults.clear()
        if column == "fetch":
            scene.guest.machine.ram.write(Gpa(GPA), HLT)
            scene.guest.machine.hooks.forget_code()
        make(scene.snp.rmp)
        scene.snp._update_gates(0, scene.snp.rmp.frames)
        if make is unassigned:  # its shared view is what it holds
            scene.guest.machine.ram.write(Gpa(GPA), SECRET.to_bytes(8, "little"), private=False)
        found = scene.outcome(column)
        if found != expected:
            wrong[column] = (found, expected)
        scene.snp.rmp.vmpl = 0
    assert wrong == {}


# KVM's answers to faults (N16) --------------------------------------------------------------------


class Policy(Answers):
    def __init__(self, answer: int) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[tuple[int, int, str]] = []

    def map_gpa_range(self, call: MapGpaRange) -> int:
        self.asked.append((call.gpa, call.attributes, call.origin))
        return self.answer


@pytest.fixture
def scene() -> Scene:
    return Scene()


def policy(scene: Scene, answer: int) -> Policy:
    host = Policy(answer)
    scene.guest.machine.hooks.handler = host
    return host


def test_a_page_that_was_taken_back_is_a_memory_fault_and_then_vc(scene: Scene) -> None:
    host = policy(scene, 0)
    scene.snp.convert(GFN, 1, False)
    end = scene.run("C=1 read")
    assert isinstance(end, ExceptionExit)
    assert (end.vector, end.error_code) == (29, 0x404)
    assert scene.guest.machine.current.read_register("cr2") == PRIVATE + GPA
    assert host.asked == [(GPA, 0x10, "memory-fault")]
    assert scene.snp.rmp.state(GFN) == ASSIGNED


def test_user_space_may_stop_the_vm_instead(scene: Scene) -> None:
    policy(scene, 14)
    scene.snp.convert(GFN, 1, False)
    end = scene.run("C=1 write")
    assert isinstance(end, RunFailed)
    assert "refused the memory fault" in end.reason
    assert scene.guest.sev.events[-1] == MemoryFault(GFN, True, 14, 0)


def test_a_store_with_c_0_costs_the_content(scene: Scene) -> None:
    """N34: implicit conversion, content gone, then #VC with C=1."""
    policy(scene, 0)
    assert isinstance(scene.run("C=0 write"), Halt)
    assert scene.snp.rmp.state(GFN) == HYPERVISORS
    page = scene.guest.machine.ram.read(Gpa(GPA), PAGE_SIZE, private=False)
    assert page == (1).to_bytes(8, "little") + bytes(PAGE_SIZE - 8)
    assert isinstance(scene.run("C=1 read"), ExceptionExit)


def test_an_assigned_attribute_is_enough_for_an_assignment(scene: Scene) -> None:
    """N15: the answer changes no RMP entry, the next fault does, without an exit."""
    host = policy(scene, 0)
    scene.snp.convert(GFN, 1, False)
    scene.snp.convert(GFN, 1, True)
    assert scene.snp.rmp.state(GFN) == HYPERVISORS
    scene.guest.pvalidate(PRIVATE + GPA, False, True)
    assert (scene.guest.bare.register("rax"), scene.guest.carry) == (0, 0)
    assert host.asked == []
    assert scene.snp.rmp.state(GFN) == VALIDATED


def test_a_small_pvalidate_smashes_a_large_entry(scene: Scene) -> None:
    large(scene.snp.rmp)
    scene.guest.pvalidate(PRIVATE + GPA + PAGE_SIZE, False, False)
    assert (scene.guest.bare.register("rax"), scene.guest.carry) == (0, 0)
    states = [scene.snp.rmp.state(GFN + page) for page in range(3)]
    assert states == [VALIDATED, ASSIGNED, VALIDATED]
    assert not scene.snp.rmp.entry(GFN + 511).is_2m


def test_a_frame_of_another_guest_lets_the_vcpu_stand_still(scene: Scene) -> None:
    other_asid(scene.snp.rmp)
    end = scene.run("C=1 read")
    assert isinstance(end, RunFailed)
    assert "stands still" in end.reason


# Remapping, aliases, double validation (N52, N55) -------------------------------------------------


def test_a_remapped_page_is_vc_until_the_guest_validates_it_again(scene: Scene) -> None:
    spare = scene.snp.rmp.frames
    scene.snp.rmp.rmpupdate(spare, OWN)
    scene.snp.remap(GFN, spare)
    assert isinstance(scene.run("C=1 read"), ExceptionExit)
    assert scene.snp.rmp.validated_twice() == []
    scene.guest.pvalidate(PRIVATE + GPA, False, True)
    assert (scene.guest.bare.register("rax"), scene.guest.carry) == (0, 0)  # it cannot tell
    assert scene.snp.rmp.validated_twice() == [GFN]
    scene.snp.remap(GFN, GFN)
    scene.run("C=1 read")
    assert scene.guest.bare.register("rax") == SECRET  # the old content is back: a replay


def test_an_alias_is_refused(scene: Scene) -> None:
    scene.snp.remap(GFN + 1, GFN)
    end = scene.guest.bare.run(load(PRIVATE + GPA + PAGE_SIZE) + HLT)
    assert isinstance(end, RunFailed)
    scene.run("C=1 read")
    assert scene.guest.bare.register("rax") == SECRET


def test_a_rollback_puts_both_tables_back(scene: Scene) -> None:
    spare = scene.snp.rmp.frames
    scene.snp.rmp.rmpupdate(spare, OWN)
    scene.snp.remap(GFN, spare)
    scene.snp.convert(GFN + 1, 4, False)
    scene.guest.machine.rollback()
    scene.run("C=1 read")
    assert scene.guest.bare.register("rax") == SECRET
    assert scene.snp.rmp.state(GFN + 1) == VALIDATED
    assert scene.snp.attributes[GFN + 1] == 1


# RMPADJUST and the hypervisor's instructions (N32) ------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "size", "expected"),
    [
        (0x0101, 0, "0"),
        (0x0F03, 0, "0"),
        (0x0201, 0, "1"),  # write without read
        (0x0104, 0, "1"),  # no such VMPL
        (0x0100, 0, "2"),  # its own VMPL
        (0x3101, 0, "2"),  # more than it has
        (0x0101, 1, "6"),
    ],
)
def test_rmpadjust(attributes: int, size: int, expected: str) -> None:
    rmp = Rmp(0x1000)
    assert str(rmp.rmpadjust(GFN, bool(size), attributes)) == expected
    rmp.rmpupdate(GFN, OWN)
    assert str(rmp.rmpadjust(GFN, False, 0x0101)) == VC


def test_rmpupdate_takes_everything_away_and_psmash_nothing() -> None:
    rmp = Rmp(0x1000)
    rmp.rmpadjust(GFN, False, 0x1_0F01)
    assert rmp.entry(GFN).vmsa
    assert rmp.entry(GFN).permissions == (15, 15, 0, 0)
    rmp.rmpupdate(GFN, OWN)
    assert rmp.entry(GFN) == OWN
    large(rmp)
    assert rmp.rmpupdate(GFN + 5, RmpEntry()) == abi.RMP_FAIL_OVERLAP
    rmp.psmash(GFN + 5)
    assert rmp.state(GFN + 5) == VALIDATED
    assert rmp.rmpupdate(GFN + 5, RmpEntry()) == 0
    rmp.rmpupdate(GFN + 6, RmpEntry(immutable=True))
    assert rmp.rmpupdate(GFN + 6, OWN) == abi.RMP_FAIL_PERMISSION
