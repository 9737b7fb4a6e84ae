# SPDX-License-Identifier: GPL-2.0-or-later
"""A source that can be stopped before any instruction of a guest.

Unicorn's instruction limit works in an engine that always runs with one; blocks that were
translated without a limit ignore it silently. A stop from a store's hook is late inside a block.
So the source of a sweep is a machine of its own that does nothing but step, once through the
program, and destinations run freely and never step.
"""

from __future__ import annotations

from guestemu.abi.errors import EngineError
from guestemu.machine.machine import Machine


class Stepper:
    """Steps the guest of `machine`, which must never have run otherwise; `index` instructions are
    behind it. Repetitions of a string instruction count one by one, the delivery of an exception
    counts as one.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.index = 0

    @property
    def rip(self) -> int:
        """Where the guest stands."""
        return self.machine.current.read_register("rip")

    def to(self, index: int) -> None:
        """Goes on until `index` instructions are behind it. Raises `EngineError` where the guest
        has an exit on the way without a handler."""
        vcpu = self.machine.current
        while self.index < index:
            ended = vcpu.step()
            if ended is not None:
                raise EngineError(f"step {self.index}: the guest ended with {ended}")
            self.index += 1
