# SPDX-License-Identifier: GPL-2.0-or-later
"""Which function a kernel is stuck in, when a call has used up its budget.

A loop calls helpers, so the address where the budget ended says little. The kernel runs on for a
few blocks at a time; the looping function is the innermost one that is on the stack every time.
"""

from __future__ import annotations

from typing import Final

from guestemu.guest.linux.symbols import SymbolIndex, frames
from guestemu.machine.exits import BudgetExhausted
from guestemu.machine.vcpu import Vcpu

SAMPLES: Final = 48
STRIDE: Final = 7
"""Basic blocks between samples: few, and no divisor of common loop lengths."""


def looping_function(vcpu: Vcpu, index: SymbolIndex, stack_end: int) -> str:
    """The innermost function on the stack in all of `SAMPLES` samples; "" if none is.

    Continues the guest from where it stands.
    """
    common: list[str] = list(frames(vcpu, index, stack_end))
    for _ in range(SAMPLES):
        end = vcpu.run(vcpu.read_register("rip"), STRIDE)
        if not isinstance(end, BudgetExhausted):
            return ""
        seen = set(frames(vcpu, index, stack_end))
        common = [name for name in common if name in seen]
    return common[0] if common else ""
