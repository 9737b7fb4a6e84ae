# SPDX-License-Identifier: GPL-2.0-or-later
"""MSR_KVM_MIGRATION_CONTROL is one latch of bit 0, whose reserved bits are refused.

Source: Documentation/virt/kvm/x86/msr.rst; K5-c (initial value 0 for encrypted guests), K5-e (one
latch, the last writer wins), K5-f (reserved bits: #GP). Applies to hosts
with `contract_state` that serve the MSR.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Final

from guestemu.abi.msrs import KVM_MIGRATION_READY, MSR_KVM_MIGRATION_CONTROL
from guestemu.checks.base import PAGE_ENC_CONTRACTS, OpView, Oracle, Violation
from guestemu.events.base import kind_of
from guestemu.events.exits import AnsweredExit
from guestemu.host.base import Host
from guestemu.program.ops import OpKind

_FAIL_MSR: Final = OpKind.FAIL_MSR
_RAW: Final = frozenset({OpKind.RDMSR, OpKind.WRMSR})


class MigrationControlCheck(Oracle):
    """Every access does what the latch demands; the host's readiness is the latch.

    Remembers ordered failures (`fail_msr`) from one operation of a program to the next.
    """

    name = "migration-control"
    kinds: frozenset[OpKind] | None = None
    demands: ClassVar[Mapping[str, str]] = {
        "migration-control": (
            "The host allows a migration exactly while the guest's last write to "
            "MSR_KVM_MIGRATION_CONTROL does."
        ),
    }
    explanations: ClassVar[Mapping[str, str]] = {
        "migration-control": "The host's idea of the guest's consent is not the guest's.",
    }

    @classmethod
    def applies(cls, host: Host) -> bool:
        """Hosts that are held to no patch set of KVM_HC_PAGE_ENC_STATUS."""
        return host.contract not in PAGE_ENC_CONTRACTS

    def __init__(self) -> None:
        self._failing = 0

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        if view.index == 0:
            self._failing = 0
        if view.op.kind is _FAIL_MSR:
            self._failing = max(self._failing, view.op.arguments[0])
            return ()
        exits = view.exits
        host = view.host
        if not exits or not host.contract_state or not host.serves_migration_control:
            return ()
        if exits[-1].is_hypercall and len(exits) == 1:
            return ()
        latch = int(view.ready_before)
        for record in exits:
            if record.is_hypercall or record.nr != MSR_KVM_MIGRATION_CONTROL:
                continue
            latch, problem, fact = self._judge(view, record, latch)
            if problem:
                return (Violation(self.name, view.index, problem, fact),)
        if latch != view.host.migration_ready:
            word = "allows" if latch == 0 else "does not allow"
            message = f"the host {word} migration while the last value written is {latch}"
            return (Violation(self.name, view.index, message, "K5-c, K5-e"),)
        return ()

    def _judge(self, view: OpView, record: AnsweredExit, latch: int) -> tuple[int, str, str]:
        """The latch after `record`, and what was wrong (or empty) by which fact."""
        ret = record.ret
        if view.op.cpl and view.op.kind in _RAW:
            problem = (
                "" if ret is None else f"{kind_of(record)} at CPL {view.op.cpl} was carried out"
            )
            return latch, problem, "K5-b"
        if self._failing:
            self._failing -= 1
            return (
                latch,
                "" if ret is None else f"{kind_of(record)} went through a user space error",
                "",
            )
        if record.is_rdmsr:
            problem = "" if ret == latch else f"rdmsr gave {ret}, the last value written is {latch}"
            return latch, problem, "K5-c, K5-e"
        value = record.args[0]
        if value & ~KVM_MIGRATION_READY:
            problem = "" if ret is None else f"reserved bits of {value:#x} were accepted"
            return latch, problem, "K5-f"
        if ret is None:
            return latch, f"wrmsr of {value} was refused", "K5-c"
        return value, "", ""
