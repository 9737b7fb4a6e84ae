# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM that becomes a mirror or takes a context over while another thread interferes (M27)."""

from __future__ import annotations

from typing import Final

from guestemu.abi.kvm_caps import (
    KVM_CAP_VM_COPY_ENC_CONTEXT_FROM,
    KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM,
)
from guestemu.abi.sev_firmware import KvmSevCommand
from guestemu.host.firmware.kvm_vm import KvmSevVm, WouldBlock
from guestemu.host.firmware.world import SevWorld
from guestemu.host.mirror.enc_context import enable_cap

_SOURCE_FD: Final = 10
_TARGET_FD: Final = 11
_OTHER_FD: Final = 12


class ContextRace:
    """One capability on new VMs of `world`'s host, and what is wrong afterwards.

    COPY, or with `is_move` MOVE, is what the target's thread does, and `between` what another one
    does in the middle: 0 nothing, 1 a MOVE of the source to a third VM, 2 a COPY of the source to
    it, 3 closing the source (modulo 4).
    """

    def __init__(self, world: SevWorld, is_move: bool, between: int) -> None:
        source, self._target, self._other = (KvmSevVm(world.kvm) for _ in range(3))
        world.call(source, KvmSevCommand.INIT)
        self._source = source
        self._files = {_SOURCE_FD: source, _TARGET_FD: self._target, _OTHER_FD: self._other}
        self._is_closed = False
        self._between = between % 4
        cap = KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM if is_move else KVM_CAP_VM_COPY_ENC_CONTEXT_FROM
        self.result = enable_cap(self._target, cap, _SOURCE_FD, self._files, self._race)
        self.problem = self._examine()
        self._end()

    def _race(self) -> None:
        try:
            if self._between == 3:
                self._is_closed = True  # the descriptor; who holds a reference keeps the VM
            elif self._between:
                cap = (KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM, KVM_CAP_VM_COPY_ENC_CONTEXT_FROM)
                enable_cap(self._other, cap[self._between - 1], _SOURCE_FD, self._files)
        except WouldBlock:
            return

    def _examine(self) -> str:
        """What must not be: an ASID of two owners, or a mirror of a VM that has no context."""
        owners: dict[int, int] = {}
        for fd, vm in self._files.items():
            if not vm.is_sev:
                continue
            owner = vm.owner
            if owner is None:
                if vm.asid in owners:
                    return f"VMs {owners[vm.asid]} and {fd} both own ASID {vm.asid}"
                owners[vm.asid] = fd
            elif not owner.is_sev or owner.asid != vm.asid:
                return f"VM {fd} has ASID {vm.asid} of a VM that has it no longer"
        return ""

    def _end(self) -> None:
        """All three go; a context of two owners is freed once."""
        for vm in (self._target, self._other, self._source):
            if vm.owner is not None and not vm.owner.is_sev:
                vm.is_sev = False
            if vm.users:
                vm.put()
