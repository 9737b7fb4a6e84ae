# SPDX-License-Identifier: GPL-2.0-or-later
"""Every operation ends: none uses up its budget, shuts the vCPU down or leaves RAM.

An exception that the guest's own handler cannot fix is not judged: programs may unmap pages. Nor is
a guest that asks for its end, or a KVM_RUN that fails, after the host refused it something: it must
not go on (N20, T27). Nor is a vCPU that has itself created anew or destroyed: KVM enters it no more
with the registers that it had (N57). Nor is any end of a guest whose hypervisor lies to it or
attacks it (a triple fault gives nothing away), and the loop in which it waits for progress (N40),
or for a lock whose holder an injected event has killed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from guestemu.checks.base import OpView, Oracle, Violation, vmm_lies
from guestemu.machine.exits import BudgetExhausted, RunFailed, Shutdown, Terminated, Unbacked
from guestemu.program.ops import OpKind


class ProgressCheck(Oracle):
    """No endless loop, no triple fault, no access beyond RAM (A14, M8)."""

    name = "progress"
    kinds: frozenset[OpKind] | None = None
    demands: ClassVar[Mapping[str, str]] = {
        "progress": (
            "Every operation of the guest ends: no endless loop, no triple fault, no access "
            "beyond RAM."
        ),
    }
    explanations: ClassVar[Mapping[str, str]] = {
        "progress": "The CPU does not come out of this operation.",
    }

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        end = view.outcome.end
        if end is None:
            return ()
        is_attacked = _is_attacked(view)
        if isinstance(end, BudgetExhausted) and is_attacked:
            return ()
        if isinstance(end, BudgetExhausted):
            message = (
                f"still running at {view.guest.location(end.rip)} after {view.guest.budget} "
                f"basic blocks and {len(view.exits)} exits"
            )
            return (Violation(self.name, view.index, message, "A14, M8"),)
        if isinstance(end, Shutdown) and (is_attacked or _stops_itself(view)):
            return ()
        if isinstance(end, Terminated | RunFailed) and any(record.ret for record in view.exits):
            return ()
        if isinstance(end, RunFailed) and view.injected[1]:
            return ()
        if isinstance(end, Shutdown):
            message = f"the vCPU shut down at {end.rip:#x}: {end.reason}"
            return (Violation(self.name, view.index, message),)
        if isinstance(end, Unbacked):
            message = (
                f"the code at {end.rip:#x} {'stored to' if end.is_write else 'loaded from'} GPA "
                f"{end.gpa:#x}, where there is no RAM (on hardware: MMIO, for user space to answer)"
            )
            return (Violation(self.name, view.index, message),)
        return ()


def _stops_itself(view: OpView) -> bool:
    """Whether the vCPU asked KVM for another VMSA of its own, or for none."""
    op, end = view.op, view.outcome.end
    return op.kind is OpKind.AP_CREATION and not op.arguments[1] and isinstance(end, RunFailed)


def _is_attacked(view: OpView) -> bool:
    """Whether the guest may end or wait for ever because of its hypervisor."""
    td = view.guest.td
    if td is None:
        return bool(view.host.lie)
    return vmm_lies(view) or bool(td.attacked) or td.has_injected
