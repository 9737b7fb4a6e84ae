# SPDX-License-Identifier: GPL-2.0-or-later
"""The save area of a SEV-ES vCPU, and the emulated CPU in it.

Layout: AMD64 Architecture Programmer's Manual, volume 2, table B-4; struct sev_es_save_area in
arch/x86/include/asm/svm.h (Linux 6.12). Hidden parts of segments are not readable as registers of
the emulator, so they are taken from its saved context, whose begin is fixed by CPUX86State
(i386/cpu.h of Unicorn 2.1) and tested before it is used.

x87 and YMM state is not in it: a kernel does not use them. What an interrupt shadow needs is in the
control area, which is not encrypted, and not here.
"""

from __future__ import annotations

import struct
from typing import Final

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.errors import EngineError
from guestemu.machine.engine import REGISTERS, Context
from guestemu.machine.machine import Machine

_CONTEXT_HEADER: Final = 40
_CONTEXT_RIP: Final = _CONTEXT_HEADER + 128
_CONTEXT_HFLAGS: Final = _CONTEXT_HEADER + 176
_CPL_MASK: Final = 3
_SEGMENT: Final = struct.Struct("<I4xQII")
"""SegmentCache: selector, base, limit, the descriptor's high word."""

_SAVED_SEGMENT: Final = struct.Struct("<HHIQ")
_SEGMENTS: Final = (
    ("es", 184, 0x00),
    ("cs", 208, 0x10),
    ("ss", 232, 0x20),
    ("ds", 256, 0x30),
    ("fs", 280, 0x40),
    ("gs", 304, 0x50),
    ("ldtr", 328, 0x70),
    ("tr", 352, 0x90),
    ("gdtr", 376, 0x60),
    ("idtr", 400, 0x80),
)
"""Name, place in the context behind its header, place in the save area."""

_CPL: Final = 0xCB
_CONTROL: Final = {"cr4": 0x148, "cr3": 0x150, "cr0": 0x158}
_GENERAL: Final = {
    "rflags": 0x170,
    "rip": 0x178,
    "rsp": 0x1D8,
    "rax": 0x1F8,
    "cr2": 0x240,
    "rcx": 0x308,
    "rdx": 0x310,
    "rbx": 0x318,
    "rbp": 0x328,
    "rsi": 0x330,
    "rdi": 0x338,
    **{f"r{number}": 0x300 + 8 * number for number in range(8, 16)},
}
_MSRS: Final = {
    0xC0000080: 0xD0,  # EFER
    0xC0000081: 0x200,  # STAR
    0xC0000082: 0x208,  # LSTAR
    0xC0000083: 0x210,  # CSTAR
    0xC0000084: 0x218,  # SFMASK
    0xC0000102: 0x220,  # KERNEL_GS_BASE
    0x174: 0x228,  # SYSENTER_CS
    0x175: 0x230,  # SYSENTER_ESP
    0x176: 0x238,  # SYSENTER_EIP
    0x277: 0x268,  # PAT
}
_TSC_AUX: Final = 0xC0000103
_TSC_AUX_AT: Final = 0x2EC
_MXCSR_AT: Final = 0x408
_XMM_AT: Final = 0x470
_XMM_SIZE: Final = 256
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


def save_vmsa(machine: Machine) -> bytes:
    """The 4096 bytes that a VMEXIT of the current vCPU would leave in its save area."""
    engine = machine.engine
    context = _checked(machine, machine.current.save())
    page = bytearray(PAGE_SIZE)
    for _name, at, where in _SEGMENTS:
        selector, base, limit, flags = _SEGMENT.unpack_from(context, _CONTEXT_HEADER + at)
        attributes = flags >> 8 & 0xFF | flags >> 12 & 0xF00
        _SAVED_SEGMENT.pack_into(page, where, selector, attributes, limit, base)
    page[_CPL] = _U32.unpack_from(context, _CONTEXT_HFLAGS)[0] & _CPL_MASK
    for name, where in (_CONTROL | _GENERAL).items():
        _U64.pack_into(page, where, engine.read(REGISTERS[name]))
    for index, where in _MSRS.items():
        _U64.pack_into(page, where, engine.read_msr(index))
    _U32.pack_into(page, _TSC_AUX_AT, engine.read_msr(_TSC_AUX) & 0xFFFF_FFFF)
    _U32.pack_into(page, _MXCSR_AT, engine.read(REGISTERS["mxcsr"]))
    page[_XMM_AT : _XMM_AT + _XMM_SIZE] = engine.read_xmm()
    return bytes(page)


def load_vmsa(machine: Machine, page: bytes) -> None:
    """What VMRUN does with a save area: the current vCPU, which is in its mode, becomes it."""
    engine = machine.engine
    vcpu = machine.current
    context = _checked(machine, vcpu.save())
    for _name, at, where in _SEGMENTS:
        selector, attributes, limit, base = _SAVED_SEGMENT.unpack_from(page, where)
        flags = (attributes & 0xFF) << 8 | (attributes & 0xF00) << 12
        _SEGMENT.pack_into(context, _CONTEXT_HEADER + at, selector, base, limit, flags)
    (hidden,) = _U32.unpack_from(context, _CONTEXT_HFLAGS)
    _U32.pack_into(context, _CONTEXT_HFLAGS, hidden & ~_CPL_MASK | page[_CPL] & _CPL_MASK)
    vcpu.load()
    for index, where in _MSRS.items():
        engine.write_msr(index, _U64.unpack_from(page, where)[0])
    engine.write_msr(_TSC_AUX, _U32.unpack_from(page, _TSC_AUX_AT)[0])
    for name, where in (_CONTROL | _GENERAL).items():
        engine.write(REGISTERS[name], _U64.unpack_from(page, where)[0])
    engine.write(REGISTERS["mxcsr"], _U32.unpack_from(page, _MXCSR_AT)[0])
    engine.write_xmm(page[_XMM_AT : _XMM_AT + _XMM_SIZE])
    engine.flush_tlb()


def _checked(machine: Machine, context: Context) -> memoryview:
    """The context's bytes. Raises `EngineError` where the emulator keeps RIP somewhere else."""
    data = context.bytes
    if _U64.unpack_from(data, _CONTEXT_RIP)[0] != machine.engine.read(REGISTERS["rip"]):
        raise EngineError("this build of libunicorn orders its context otherwise; use 2.1.x")
    return data
