# SPDX-License-Identifier: GPL-2.0-or-later
"""What operations have the guest do: raw instructions, the kernel's functions, loads and stores,
entries of its page tables changed behind its back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from guestemu.abi.addresses import U64_MASK, Gva
from guestemu.guest.base import CallOutcome, Guest, RawRegisters
from guestemu.program.ops import Op, OpKind


def guest_operations(guest: Guest) -> Mapping[OpKind, Callable[[Op], CallOutcome]]:
    """What each kind of operation does on `guest`."""

    def gva(op: Op, offset: int = 0) -> Gva:
        return Gva(guest.gva(op.region, op.page) + offset)

    def hypercall(op: Op) -> CallOutcome:
        nr, a0, a1, a2, a3 = op.arguments
        if op.has_page:
            a0 = a0 + guest.gpa(op.region, op.page) & U64_MASK
        registers = RawRegisters(nr, a0, a1, a2, a3)
        return guest.raw_hypercall(op.instruction, registers, op.mode, op.cpl)

    return {
        OpKind.HYPERCALL: hypercall,
        OpKind.WRMSR: lambda op: guest.raw_wrmsr(op.arguments[0], op.arguments[1], op.mode, op.cpl),
        OpKind.RDMSR: lambda op: guest.raw_rdmsr(op.arguments[0], op.mode, op.cpl),
        OpKind.SET_MEMORY_ENCRYPTED: lambda op: guest.set_memory_encrypted(
            gva(op, op.arguments[1]), op.arguments[0]
        ),
        OpKind.SET_MEMORY_DECRYPTED: lambda op: guest.set_memory_decrypted(
            gva(op, op.arguments[1]), op.arguments[0]
        ),
        OpKind.EARLY_SET_MEMORY_ENCRYPTED: lambda op: guest.early_set_memory_encrypted(
            gva(op, op.arguments[1]), op.arguments[0]
        ),
        OpKind.EARLY_SET_MEMORY_DECRYPTED: lambda op: guest.early_set_memory_decrypted(
            gva(op, op.arguments[1]), op.arguments[0]
        ),
        OpKind.WRITE: lambda op: guest.memset(
            gva(op, op.arguments[1]), op.arguments[0], op.arguments[2]
        ),
        OpKind.READ: lambda op: guest.load(gva(op, op.arguments[0])),
        OpKind.CPU_OFFLINE: lambda op: guest.kvm_guest_cpu_offline(),
        OpKind.INIT_PLATFORM: lambda op: guest.kvm_init_platform(bool(op.arguments[0])),
        OpKind.UNMAP: lambda op: CallOutcome(int(guest.edit_entry(gva(op), True))),
        OpKind.CLEAR_PRESENT: lambda op: CallOutcome(int(guest.edit_entry(gva(op), False))),
        OpKind.STOP_CONVERSION: lambda op: guest.set_memory_enc_stop_conversion(),
        OpKind.TOUCH_CBIT: lambda op: guest.touch_cbit(gva(op), bool(op.arguments[0])),
    }
