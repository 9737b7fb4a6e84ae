# SPDX-License-Identifier: GPL-2.0-or-later
"""Delivery of exceptions through the guest's own vector table.

The emulator reports exceptions and never vectors through the IDT itself, so the pushes and checks
of the AMD64 APM (volume 2, section 8.9) are done here: 64-bit gates with IST and stack switch,
32-bit gates with TSS stack switch, the real-mode vector table. IRET is the CPU's own.
A handler is assumed to run at CPL 0.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from guestemu.abi.addresses import U32_MASK, U64_MASK, Gva
from guestemu.abi.x86 import RFLAGS_IF, RFLAGS_NT, RFLAGS_RF, RFLAGS_TF, Mode

if TYPE_CHECKING:
    from guestemu.machine.vcpu import Vcpu

_GATE_PRESENT: Final = 1 << 15
_TYPE_INTERRUPT: Final = 0xE
_CLEARED: Final = RFLAGS_TF | RFLAGS_NT | RFLAGS_RF


class DeliveryError(Exception):
    """The vector table has no usable gate, or the stack cannot be written."""


def deliver(vcpu: Vcpu, vector: int, error_code: int | None) -> None:
    """Pushes the frame and points RIP at the handler; `DeliveryError` if that is impossible.

    `error_code` is None for vectors without one. The caller decides about double and triple faults.
    """
    if vcpu.is_real_mode:
        _deliver_real(vcpu, vector)
    elif vcpu.is_long_mode:
        _deliver_long(vcpu, vector, error_code)
    else:
        _deliver_protected(vcpu, vector, error_code)


def has_gate(vcpu: Vcpu, vector: int) -> bool:
    """Whether the IDT of a vCPU in long mode has a present gate for `vector`."""
    base, limit = vcpu.table("idtr")
    if not vcpu.is_long_mode or 16 * vector + 15 > limit:
        return False
    flags = vcpu.read_memory(Gva(base + 16 * vector + 4), 2)
    return flags is not None and bool(int.from_bytes(flags, "little") & _GATE_PRESENT)


def _read(vcpu: Vcpu, address: int, size: int) -> bytes:
    data = vcpu.read_memory(Gva(address), size)
    if data is None:
        raise DeliveryError(f"nothing is mapped at {address:#x}")
    return data


def _push(vcpu: Vcpu, stack: int, frame: bytes) -> None:
    if not vcpu.write_memory(Gva(stack), frame):
        raise DeliveryError(f"the stack at {stack:#x} is not mapped")


def _deliver_long(vcpu: Vcpu, vector: int, error_code: int | None) -> None:
    base, limit = vcpu.table("idtr")
    if 16 * vector + 15 > limit:
        raise DeliveryError(f"vector {vector} is beyond the IDT's limit")
    low, _selector, flags, middle, high, _ = struct.unpack(
        "<HHHHII", _read(vcpu, base + 16 * vector, 16)
    )
    if not flags & _GATE_PRESENT:
        raise DeliveryError(f"the gate of vector {vector} is not present")
    ist = flags & 7
    changes_level = vcpu.cpl != 0
    old_ss, old_rsp = vcpu.read_register("ss"), vcpu.read_register("rsp")
    if ist or changes_level:
        offset = 36 + 8 * (ist - 1) if ist else 4
        tss, _ = vcpu.table("tr")
        (stack,) = struct.unpack("<Q", _read(vcpu, tss + offset, 8))
    else:
        stack = old_rsp
    rflags = vcpu.read_register("rflags")
    words = [vcpu.read_register("rip"), vcpu.read_register("cs"), rflags, old_rsp, old_ss]
    if error_code is not None:
        words.insert(0, error_code)
    stack = (stack & ~0xF) - 8 * len(words) & U64_MASK
    frame = struct.pack(f"<{len(words)}Q", *words)
    if changes_level or not vcpu.is_64bit:
        vcpu.switch_context(Mode.LONG64, 0)
    _push(vcpu, stack, frame)
    _enter(vcpu, low | middle << 16 | high << 32, stack, rflags, flags >> 8 & 0xF)


def _deliver_protected(vcpu: Vcpu, vector: int, error_code: int | None) -> None:
    base, limit = vcpu.table("idtr")
    if 8 * vector + 7 > limit:
        raise DeliveryError(f"vector {vector} is beyond the IDT's limit")
    low, _selector, flags, high = struct.unpack("<HHHH", _read(vcpu, base + 8 * vector, 8))
    if not flags & _GATE_PRESENT:
        raise DeliveryError(f"the gate of vector {vector} is not present")
    rflags = vcpu.read_register("rflags")
    words = [vcpu.read_register("rip"), vcpu.read_register("cs"), rflags]
    stack = vcpu.read_register("rsp")
    if vcpu.cpl:
        words += [stack, vcpu.read_register("ss")]
        tss, _ = vcpu.table("tr")
        (stack,) = struct.unpack("<I", _read(vcpu, tss + 4, 4))
    if error_code is not None:
        words.insert(0, error_code)
    stack = stack - 4 * len(words) & U32_MASK
    frame = struct.pack(f"<{len(words)}I", *(word & U32_MASK for word in words))
    if vcpu.cpl:
        vcpu.switch_context(Mode.PROT32, 0)
    _push(vcpu, stack, frame)
    _enter(vcpu, low | high << 16, stack, rflags, flags >> 8 & 0xF)


def _deliver_real(vcpu: Vcpu, vector: int) -> None:
    base, limit = vcpu.table("idtr")
    if 4 * vector + 3 > limit:
        raise DeliveryError(f"vector {vector} is beyond the vector table's limit")
    offset, segment = struct.unpack("<HH", _read(vcpu, base + 4 * vector, 4))
    rflags = vcpu.read_register("rflags")
    stack = vcpu.read_register("rsp") - 6 & 0xFFFF
    words = (vcpu.read_register("rip"), vcpu.read_register("cs"), rflags)
    _push(vcpu, stack, struct.pack("<HHH", *(word & 0xFFFF for word in words)))
    if segment:
        raise DeliveryError(f"the handler of vector {vector} lies in segment {segment:#x}")
    _enter(vcpu, offset, stack, rflags, _TYPE_INTERRUPT)


def _enter(vcpu: Vcpu, handler: int, stack: int, rflags: int, gate_type: int) -> None:
    cleared = _CLEARED | (RFLAGS_IF if gate_type == _TYPE_INTERRUPT else 0)
    vcpu.write_register("rip", handler)
    vcpu.write_register("rsp", stack)
    vcpu.write_register("rflags", rflags & ~cleared)
