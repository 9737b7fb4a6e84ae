# SPDX-License-Identifier: GPL-2.0-or-later
"""VMCALL on an AMD CPU: #UD in hardware, then KVM's emulator writes VMMCALL over it.

Source: em_hypercall(), emulator_fix_hypercall() (arch/x86/kvm, Linux 6.1); recorded.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi.x86 import VECTOR_GP, VECTOR_UD
from guestemu.host.base import GuestFault, Hypercall
from guestemu.host.kvm.uapi import KVM_X86_QUIRK_FIX_HYPERCALL_INSN

VMMCALL: Final = b"\x0f\x01\xd9"


def fix_instruction(call: Hypercall, disabled_quirks: int) -> None:
    """Patches the guest's VMCALL; after it the exit is a VMMCALL's.

    Raises `GuestFault`: #GP(0) above CPL 0; #UD where user space disabled
    KVM_X86_QUIRK_FIX_HYPERCALL_INSN; the #PF of `patch_code` for read-only code.
    """
    if call.cpl:
        raise GuestFault(VECTOR_GP, 0)
    if disabled_quirks & KVM_X86_QUIRK_FIX_HYPERCALL_INSN:
        raise GuestFault(VECTOR_UD, None)
    call.vcpu.patch_code(VMMCALL)
