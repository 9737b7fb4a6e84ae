# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from bare_machine import CODE, MODES, VMCALL, VMMCALL, Answers, Bare

from guestemu.abi.x86 import CR0_PE, CR0_PG, VECTOR_GP, VECTOR_UD, Mode
from guestemu.machine.exits import ExceptionExit, Hypercall, Rdmsr, Trap, Wrmsr

HIGH = {
    "rax": 0x1111_1111_0000_000C,
    "rbx": 0x2222_2222_0040_0000,
    "rcx": 0x3333_3333_0000_0001,
    "rdx": 0x4444_4444_0000_0010,
    "rsi": 0x5555_5555_5555_5555,
}


@pytest.fixture(scope="module")
def bare() -> Bare:
    return Bare()


def run_with_registers(bare: Bare, code: bytes, mode: Mode, cpl: int) -> object:
    bare.place(CODE, code + b"\x0f\x0b")
    bare.machine.hooks.traps.add(CODE + len(code))
    bare.enter(mode, cpl)
    vcpu = bare.machine.current
    for name, value in HIGH.items():
        vcpu.write_register(name, value)
    vcpu.deliver = False
    return vcpu.run(CODE, 1000)


def test_there_are_thirteen_combinations() -> None:
    assert len(MODES) == 13


@pytest.mark.parametrize(("mode", "cpl"), MODES)
def test_the_cpu_stands_where_the_context_says(bare: Bare, mode: Mode, cpl: int) -> None:
    bare.enter(mode, cpl)
    vcpu = bare.machine.current
    assert vcpu.cpl == cpl
    assert vcpu.is_64bit == (mode is Mode.LONG64)
    assert vcpu.is_long_mode == (mode in {Mode.LONG64, Mode.COMPAT32})
    assert vcpu.is_real_mode == (mode is Mode.REAL16)
    cr0 = vcpu.read_register("cr0")
    assert bool(cr0 & CR0_PG) == (mode in {Mode.LONG64, Mode.COMPAT32})
    assert bool(cr0 & CR0_PE) == (mode is not Mode.REAL16)


@pytest.mark.parametrize(("mode", "cpl"), MODES)
@pytest.mark.parametrize("is_vmcall", [False, True])
def test_a_hypercall_exits_with_64_bit_registers_in_every_mode(
    bare: Bare, mode: Mode, cpl: int, is_vmcall: bool
) -> None:
    end = run_with_registers(bare, VMCALL if is_vmcall else VMMCALL, mode, cpl)
    assert isinstance(end, Hypercall)
    assert (end.nr, end.a0, end.a1, end.a2, end.a3) == tuple(HIGH.values())
    assert (end.cpl, end.is_64bit, end.is_vmcall) == (cpl, mode is Mode.LONG64, is_vmcall)


@pytest.mark.parametrize(("mode", "cpl"), MODES)
def test_a_hypercall_is_answered_in_place_in_every_mode(bare: Bare, mode: Mode, cpl: int) -> None:
    answers = Answers(0xFFFF_FFFF_FFFF_FC18)
    bare.machine.hooks.handler = answers
    try:
        end = run_with_registers(bare, VMMCALL, mode, cpl)
    finally:
        bare.machine.hooks.handler = None
    assert end == Trap(CODE + 3)
    assert len(answers.calls) == 1
    assert bare.register("rax") == 0xFFFF_FFFF_FFFF_FC18
    assert {name: bare.register(name) for name in ("rbx", "rcx", "rdx", "rsi")} == {
        name: HIGH[name] for name in ("rbx", "rcx", "rdx", "rsi")
    }


@pytest.mark.parametrize(("mode", "cpl"), MODES)
def test_execution_goes_on_after_a_completed_exit(bare: Bare, mode: Mode, cpl: int) -> None:
    assert isinstance(run_with_registers(bare, VMMCALL, mode, cpl), Hypercall)
    vcpu = bare.machine.current
    vcpu.complete_hypercall(77)
    assert vcpu.run(bare.register("rip"), 1000) == Trap(CODE + 3)
    assert bare.register("rax") == 77


@pytest.mark.parametrize(("mode", "cpl"), MODES)
@pytest.mark.parametrize("is_write", [False, True])
def test_msr_accesses_exit_at_cpl_0_and_fault_above(
    bare: Bare, mode: Mode, cpl: int, is_write: bool
) -> None:
    site = CODE + 0x100 + 0x10 * is_write
    bare.machine.hooks.add_msr_site(site, is_write)
    bare.place(site, b"\x0f\x30" if is_write else b"\x0f\x32")
    bare.enter(mode, cpl)
    vcpu = bare.machine.current
    vcpu.deliver = False
    for name, value in (
        ("rax", 0xFFFF_FFFF_8000_0001),
        ("rcx", 0x4B56_4D08),
        ("rdx", 0x7_0000_0002),
    ):
        vcpu.write_register(name, value)
    end = vcpu.run(site, 100)
    if cpl:
        assert end == ExceptionExit(VECTOR_GP, 0, site)
    elif is_write:
        assert end == Wrmsr(0x4B56_4D08, 0x2_8000_0001)
    else:
        assert end == Rdmsr(0x4B56_4D08)


@pytest.mark.parametrize(("mode", "cpl"), MODES)
def test_other_invalid_instructions_are_ud_at_their_address(
    bare: Bare, mode: Mode, cpl: int
) -> None:
    bare.machine.hooks.traps.discard(CODE + 3)
    assert bare.run(b"\x90\x0f\x0b", mode, cpl) == ExceptionExit(VECTOR_UD, None, CODE + 1)


@pytest.mark.parametrize(("mode", "cpl"), MODES)
def test_the_first_use_of_a_mode_is_like_the_second(mode: Mode, cpl: int) -> None:
    """A run may not depend on which modes were entered before it."""
    fresh = Bare()
    fresh.machine.hooks.counters[:] = bytes(len(fresh.machine.hooks.counters))
    seen = []
    for _ in range(2):
        counters = fresh.machine.hooks.counters
        counters[:] = bytes(len(counters))
        fresh.run(VMMCALL, mode, cpl)
        seen.append((bytes(counters), fresh.machine.ram.dirty_frames()))
        fresh.machine.rollback()
    assert seen[0] == seen[1]


def test_a_small_budget_does_not_keep_a_mode_from_being_entered() -> None:
    fresh = Bare()
    assert isinstance(fresh.run(b"\xf4", budget=1), object)
    for mode, cpl in MODES:
        end = fresh.run(VMMCALL, mode, cpl, budget=1)
        assert isinstance(end, Hypercall)
