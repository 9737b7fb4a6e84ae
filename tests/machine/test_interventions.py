# SPDX-License-Identifier: GPL-2.0-or-later
"""Orders that are carried out before an instruction named by its number, with native hooks and
without."""

from __future__ import annotations

import pytest
from bare_machine import BUDGET, CODE, FRAMES, HLT, Bare

from guestemu.abi.x86 import Mode
from guestemu.events.tdx import Accept
from guestemu.machine.callbacks import CodeHook
from guestemu.machine.engine import HOOK_CODE
from guestemu.machine.exits import Halt, RunFailed, Trap
from guestemu.machine.interventions import Order
from guestemu.machine.machine import MachineConfig
from guestemu.machine.vcpu import Vcpu

STEPS = 8
PROGRAM = b"\x48\xff\xc0" * STEPS + HLT
"""inc rax, eight times"""


@pytest.fixture(params=[True, False], ids=["native", "python"])
def bare(request: pytest.FixtureRequest) -> Bare:
    return Bare(MachineConfig(frames=FRAMES, native_hooks=request.param))


def test_the_order_finds_the_guest_before_its_instruction(bare: Bare) -> None:
    bare.enter(Mode.LONG64, 0)
    bare.place(CODE, PROGRAM)
    vcpu = bare.machine.current
    seen: list[tuple[int, int]] = []

    def order(cpu: Vcpu) -> None:
        seen.append((cpu.read_register("rip"), cpu.read_register("rax")))

    for after in range(STEPS):
        seen.clear()
        bare.machine.intervene(after, order)
        vcpu.write_register("rax", 0)
        assert isinstance(vcpu.run(CODE, BUDGET), Halt)
        assert seen == [(CODE + 3 * after, after)]
        assert vcpu.read_register("rax") == STEPS


def test_an_exit_of_an_order_ends_the_run(bare: Bare) -> None:
    bare.enter(Mode.LONG64, 0)
    bare.place(CODE, PROGRAM)
    vcpu = bare.machine.current
    vcpu.write_register("rax", 0)
    bare.machine.intervene(3, lambda cpu: RunFailed("enough", cpu.read_register("rip")))
    assert vcpu.run(CODE, BUDGET) == RunFailed("enough", CODE + 9)
    assert vcpu.read_register("rax") == 3


def test_orders_of_one_instruction_come_in_turn(bare: Bare) -> None:
    bare.enter(Mode.LONG64, 0)
    bare.place(CODE, PROGRAM)
    seen: list[str] = []
    bare.machine.intervene(5, lambda _cpu: seen.append("first"))
    bare.machine.intervene(2, lambda _cpu: seen.append("earlier"))
    bare.machine.intervene(5, lambda _cpu: seen.append("second"))
    bare.machine.current.run(CODE, BUDGET)
    assert seen == ["earlier", "first", "second"]


def test_a_rollback_forgets_orders(bare: Bare) -> None:
    bare.enter(Mode.LONG64, 0)
    bare.place(CODE, PROGRAM)
    bare.machine.intervene(0, lambda cpu: RunFailed("never", 0))
    bare.machine.checkpoint()
    bare.machine.rollback()
    assert isinstance(bare.machine.current.run(CODE, BUDGET), Halt)


def test_an_error_of_an_order_is_raised(bare: Bare) -> None:
    bare.enter(Mode.LONG64, 0)
    bare.place(CODE, PROGRAM)

    def order(_cpu: Vcpu) -> None:
        raise ValueError("as ordered")

    bare.machine.intervene(1, order)
    with pytest.raises(ValueError, match="as ordered"):
        bare.machine.current.run(CODE, BUDGET)


def test_an_order_that_waits_counts_from_its_event(bare: Bare) -> None:
    """Here an earlier order makes the event; others do not wait with it. The instruction before
    which the CPU stopped counts again."""
    bare.enter(Mode.LONG64, 0)
    bare.place(CODE, PROGRAM)
    machine = bare.machine
    seen: list[tuple[str, int]] = []

    def note(name: str) -> Order:
        return lambda cpu: seen.append((name, cpu.read_register("rax")))

    machine.intervene(2, lambda _cpu: machine.log.append(Accept(0, 0, 0, 0, 0)))
    machine.wait(1)
    machine.intervene(3, note("held"))
    machine.intervene(4, note("counted"))
    machine.wait(2)
    machine.intervene(0, note("never"))
    machine.current.write_register("rax", 0)
    assert isinstance(machine.current.run(CODE, BUDGET), Halt)
    assert seen == [("counted", 4 - 1), ("held", 2 + 3 - 1)]
    machine.rollback()
    machine.log.append(Accept(0, 0, 0, 0, 0))
    machine.current.run(CODE, BUDGET)
    assert len(seen) == 2


def test_hooks_of_single_instructions_come_before_the_count(bare: Bare) -> None:
    """An instruction before which one of them stops the CPU has not begun."""
    bare.enter(Mode.LONG64, 0)
    bare.place(CODE, PROGRAM)
    machine, vcpu = bare.machine, bare.machine.current
    seen: list[str] = []

    def on_site(_uc: object, _rip: int, _size: int, _user: object) -> None:
        seen.append("site")

    def on_end(_uc: object, rip: int, _size: int, _user: object) -> None:
        machine.hooks.pending = Trap(rip)
        machine.engine.stop()

    for rip, body in ((CODE + 3, on_site), (CODE + 9, on_end)):
        machine.engine.add_hook(HOOK_CODE, CodeHook(body), begin=rip, end=rip)
    machine.intervene(1, lambda _cpu: seen.append("order"))
    assert vcpu.run(CODE, BUDGET) == Trap(CODE + 9)
    assert seen == ["site", "order", "site"]
    assert machine.interventions is not None
    assert machine.interventions.begun == 3 + 1  # the second counts again
