# SPDX-License-Identifier: GPL-2.0-or-later
"""OVMF's hypercall stub in its first and its corrected form, run on the emulated CPU.

The stub is a function with the Microsoft x64 convention: RCX the GPA, RDX the pages, R8 1 for
encrypted; RAX the result. Its caller keeps RBX across the call. The first form loads RBX for the
hypercall without saving it, and uses number 11 (A49, M61; AMDESE/ovmf, sev-migration-v1). Written
from that description; the instructions are ours.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi.addresses import U64_MASK, Gpa
from guestemu.abi.errors import EngineError
from guestemu.abi.hypercalls import KVM_HC_PAGE_ENC_STATUS, KVM_HC_PAGE_ENC_STATUS_2019
from guestemu.abi.x86 import Mode
from guestemu.machine import layout
from guestemu.machine.engine import RegisterBatch
from guestemu.machine.exits import Trap
from guestemu.machine.machine import Machine

_OFFSET: Final = 0x100
"""Bytes between the stubs; the raw stubs come before them."""
_ARGUMENTS: Final = (
    b"\x48\x89\xcb\x48\x89\xd1\x4c\x89\xc2"  # mov rbx, rcx; mov rcx, rdx; mov rdx, r8
)
_VMMCALL: Final = b"\x0f\x01\xd9"
_SAVE: Final = b"\x49\x89\xda"  # mov r10, rbx, which the convention lets a callee change
_RESTORE: Final = b"\x4c\x89\xd3"  # mov rbx, r10
_UD2: Final = b"\x0f\x0b"
_REGISTERS: Final = ("rbx", "rcx", "rdx", "r8", "rsp")
_BUDGET: Final = 1000


def _load_number(number: int) -> bytes:
    return b"\xb8" + number.to_bytes(4, "little")  # mov eax, number


class OvmfStub(msgspec.Struct, frozen=True):
    """A stub's code and where it lies, in bytes from `layout.STUB` on."""

    code: bytes
    offset: int


FIRST_STUB: Final = OvmfStub(
    _load_number(KVM_HC_PAGE_ENC_STATUS_2019) + _ARGUMENTS + _VMMCALL, _OFFSET
)
"""As first posted."""

FIXED_STUB: Final = OvmfStub(
    _SAVE + _load_number(KVM_HC_PAGE_ENC_STATUS) + _ARGUMENTS + _VMMCALL + _RESTORE, 2 * _OFFSET
)
"""With commit 9f7dec1533's number, and RBX kept."""


class StubResult(msgspec.Struct, frozen=True):
    """What the caller of a stub gets back."""

    rax: int
    rbx: int


def call_stub(
    machine: Machine, stub: OvmfStub, gpa: Gpa, pages: int, encrypted: bool, rbx: int
) -> StubResult:
    """Calls `stub` in 64-bit mode at CPL 0 with `rbx` in RBX; low memory has to be mapped.

    Raises `EngineError` where the stub does not get to its end.
    """
    address = layout.STUB + stub.offset
    behind = address + len(stub.code)
    machine.ram.write(Gpa(address), stub.code + _UD2)
    machine.hooks.traps.add(behind)
    vcpu = machine.current
    vcpu.enter(Mode.LONG64, 0)
    batch = RegisterBatch(machine.engine, _REGISTERS)
    values = (rbx & U64_MASK, gpa, pages & U64_MASK, int(encrypted), layout.USER_STACK)
    for index, value in enumerate(values):
        batch.values[index] = value
    batch.write()
    vcpu.deliver = False
    end = vcpu.run(address, _BUDGET)
    vcpu.deliver = True
    if not isinstance(end, Trap) or end.rip != behind:
        raise EngineError(f"OVMF's stub ended in {end}")
    return StubResult(vcpu.read_register("rax"), vcpu.read_register("rbx"))
