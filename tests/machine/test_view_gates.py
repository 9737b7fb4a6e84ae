# SPDX-License-Identifier: GPL-2.0-or-later
"""Views of pages that are closed to the CPU: it stops before the access, at its instruction."""

from __future__ import annotations

import pytest
from bare_machine import (
    CODE,
    DATA,
    FRAMES,
    HLT,
    PRIVATE,
    SHARED,
    VMMCALL,
    Answers,
    Bare,
    load,
    mov,
    store,
)

from guestemu.abi.addresses import PAGE_SIZE, Gpa
from guestemu.machine.exits import (
    BudgetExhausted,
    ExceptionExit,
    Exit,
    GuestFault,
    Halt,
    Hypercall,
    ViewFault,
)
from guestemu.machine.machine import MachineConfig
from guestemu.machine.view_gates import CLOSED, OPEN, READ_ONLY, ViewGates

GFN = DATA >> 12
VIEWS = {True: PRIVATE, False: SHARED}


class Gated(Bare):
    def __init__(self, cbit: int = 39) -> None:
        super().__init__(MachineConfig(frames=FRAMES, cbit=cbit))
        self.gates: ViewGates = self.machine.gate_views()
        self.machine.checkpoint()

    def close(self, gfn: int = GFN, *, private: int = CLOSED, shared: int = OPEN) -> None:
        self.gates.set(gfn, 1, private=private, shared=shared)


@pytest.fixture(params=[39, 47])
def gated(request: pytest.FixtureRequest) -> Gated:
    return Gated(request.param)


@pytest.mark.parametrize("private", [True, False])
def test_an_access_to_a_closed_view_stops_before_it(gated: Gated, private: bool) -> None:
    gva = VIEWS[private] + DATA + 0x123
    right = {True: "private", False: "shared"}[private]
    gated.gates.set(GFN, 1, **{"private": OPEN, "shared": OPEN, right: CLOSED})
    first = store(VIEWS[not private] + DATA, 0x55) + mov(2, 7)
    end = gated.run(first + load(gva) + mov(2, 8) + HLT)
    assert end == ViewFault("read", gva & ~0xFFF, DATA, private, CODE + len(first) + 10)
    assert (gated.register("rdx"), gated.register("rbx")) == (7, gva)
    end = gated.run(store(gva, 1) + HLT)
    assert isinstance(end, ViewFault)
    assert end.kind == "write"
    assert gated.machine.ram.read(Gpa(DATA), 1, private=not private) == b"\x55"


def test_a_read_only_view_is_read_and_not_written(gated: Gated) -> None:
    gated.machine.ram.write(Gpa(DATA), b"\x21", private=False)
    gated.close(private=CLOSED, shared=READ_ONLY)
    code = load(SHARED + DATA, 1) + mov(2, 1)
    end = gated.run(code + store(SHARED + DATA, 5) + HLT)
    assert isinstance(end, ViewFault)
    assert (end.kind, end.is_private, gated.register("rdx")) == ("write", False, 1)
    assert gated.machine.ram.read(Gpa(DATA), 1, private=False) == b"\x21"


def test_the_second_page_of_a_crossing_access_counts(gated: Gated) -> None:
    gated.close(GFN + 1)
    end = gated.run(load(PRIVATE + DATA + PAGE_SIZE - 4) + HLT)
    assert isinstance(end, ViewFault)
    assert (end.kind, end.gpa >> 12, end.rip) == ("read", GFN + 1, CODE + 10)


def test_a_page_table_in_a_closed_view_is_not_walked(gated: Gated) -> None:
    leaf = gated.tables.walk(PRIVATE + DATA)
    gated.close(leaf.entry_gpa >> 12)
    end = gated.run(load(PRIVATE + DATA) + HLT)
    assert isinstance(end, ViewFault)
    assert (end.kind, end.gpa, end.is_private) == ("walk", leaf.entry_gpa, True)


def test_a_fetch_is_private_whatever_the_page_table_says(gated: Gated) -> None:
    gated.place(DATA, HLT)
    gated.machine.ram.write(Gpa(DATA), HLT, private=False)
    jump = b"\xff\xe0"  # jmp rax
    assert isinstance(gated.run(mov(0, SHARED + DATA) + jump), Halt)
    gated.close(private=CLOSED)
    end = gated.run(mov(0, SHARED + DATA) + jump)
    assert isinstance(end, ViewFault)
    assert (end.kind, end.is_private) == ("fetch", True)


def test_an_opened_view_is_accessed_by_executing_again(gated: Gated) -> None:
    faults: list[ViewFault] = []

    def open_it(fault: ViewFault) -> Exit | None:
        faults.append(fault)
        gated.gates.set(fault.gpa >> 12, 1, private=OPEN, shared=OPEN)
        return None

    gated.gates.on_fault = open_it
    gated.close()
    gated.close(GFN + 1)
    code = mov(0, 0x4141414141414141) + mov(7, PRIVATE + DATA + PAGE_SIZE - 8) + mov(1, 2)
    end = gated.run(code + b"\xf3\x48\xab" + HLT)  # rep stosq over the edge
    assert isinstance(end, Halt)
    assert [fault.gpa >> 12 for fault in faults] == [GFN, GFN + 1]
    assert gated.machine.ram.read(Gpa(DATA + PAGE_SIZE - 8), 16) == b"\x41" * 16


def test_a_refused_access_can_be_an_exception(gated: Gated) -> None:
    def refuse(_fault: ViewFault) -> Exit | None:
        raise GuestFault(29, 0x404)

    gated.gates.on_fault = refuse
    gated.close()
    end = gated.run(mov(2, 3) + load(PRIVATE + DATA) + HLT)
    assert isinstance(end, ExceptionExit)
    assert (end.vector, end.error_code, end.rip) == (29, 0x404, CODE + 20)


def test_an_access_that_is_never_opened_ends_by_the_budget(gated: Gated) -> None:
    gated.gates.on_fault = lambda _fault: None
    gated.close()
    assert isinstance(gated.run(load(PRIVATE + DATA) + HLT, budget=50), BudgetExhausted)


def test_a_view_closed_inside_an_exit_is_closed_at_once(gated: Gated) -> None:
    class Closing(Answers):
        def hypercall(self, call: Hypercall) -> int:
            gated.close()
            return 0

    gated.machine.hooks.handler = Closing()
    end = gated.run(load(PRIVATE + DATA) + VMMCALL + load(PRIVATE + DATA) + HLT)
    assert isinstance(end, ViewFault)
    assert end.rip == CODE + 10 + 3 + 3 + 10


def test_a_rollback_opens_what_was_closed_since(gated: Gated) -> None:
    gated.close(GFN + 1)
    gated.machine.checkpoint()
    gated.close()
    assert isinstance(gated.run(load(PRIVATE + DATA) + HLT), ViewFault)
    gated.machine.rollback()
    assert isinstance(gated.run(load(PRIVATE + DATA) + HLT), Halt)
    assert isinstance(gated.run(load(PRIVATE + DATA + PAGE_SIZE) + HLT), ViewFault)


def test_page_faults_stay_page_faults(gated: Gated) -> None:
    end = gated.run(load(0x7777_0000_0000) + HLT)
    assert isinstance(end, ExceptionExit)
    assert (end.vector, end.error_code, end.cr2) == (14, 0, 0x7777_0000_0000)
