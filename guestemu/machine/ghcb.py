# SPDX-License-Identifier: GPL-2.0-or-later
"""The Guest-Hypervisor Communication Block: its MSR protocol and its page.

Under SEV-ES the hypervisor sees no register of the guest. The guest writes a request into MSR
0xC0010130 (one word), or the GPA of a shared page there and the request into that page, and
executes VMGEXIT. This module knows the encodings only; who answers is not its business.

Source: GHCB specification version 2 (AMD 56421); struct ghcb_save_area in
arch/x86/include/asm/svm.h (Linux 6.12); fact A31.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from guestemu.abi import ghcb as abi
from guestemu.abi.addresses import PAGE_SIZE, U32_MASK, Gpa
from guestemu.machine.memory import GuestRam

CPL: Final = 0x0CB
RAX: Final = 0x1F8
RCX: Final = 0x308
RDX: Final = 0x310
RBX: Final = 0x318
RSI: Final = 0x330
EXIT_CODE: Final = 0x390
EXIT_INFO_1: Final = 0x398
EXIT_INFO_2: Final = 0x3A0
SCRATCH: Final = 0x3A8
VALID_BITMAP: Final = 0x3F0
SHARED_BUFFER: Final = 0x800
VERSION: Final = 0xFFA
USAGE: Final = 0xFFC

GENERAL: Final = {"rax": RAX, "rbx": RBX, "rcx": RCX, "rdx": RDX, "rsi": RSI}
"""Offsets of the registers that KVM takes from a GHCB."""

_BITMAP_BYTES: Final = 16
_ANSWERED: Final = (("rax", RAX), ("rbx", RBX), ("rcx", RCX), ("rdx", RDX))
"""The registers that KVM gives back (sev_es_sync_to_ghcb)."""


def valid_bits(*offsets: int) -> int:
    """The bits of the valid bitmap for the fields at `offsets`."""
    return sum(1 << (offset >> 3) for offset in offsets)


_ANSWER_BITS: Final = valid_bits(*(offset for _name, offset in _ANSWERED), EXIT_INFO_1, EXIT_INFO_2)


class GhcbPage:
    """One GHCB in guest memory, in the shared view (C=0), as KVM handles it: copied once when the
    guest exits (sev_es_sync_from_ghcb), written when it is answered (`store`).

    A field counts as given only if its bit in the valid bitmap is set: one bit for each 8 bytes of
    the save area. `gpa` is page-aligned and within RAM.
    """

    def __init__(self, ram: GuestRam, gpa: Gpa) -> None:
        self.gpa = gpa
        self._ram = ram
        self._data = bytearray(ram.read(gpa, PAGE_SIZE, private=False))
        self._words = words = memoryview(self._data).cast("Q")
        self._valid = words[VALID_BITMAP >> 3] | words[(VALID_BITMAP >> 3) + 1] << 64

    def is_valid(self, offset: int) -> bool:
        """Whether the guest marked the field at `offset` (bytes) as given."""
        return bool(self._valid >> (offset >> 3) & 1)

    def are_valid(self, bits: int) -> bool:
        """Whether the guest marked all fields of `valid_bits` as given."""
        return self._valid & bits == bits

    def value(self, offset: int) -> int:
        """The 64-bit field at `offset`, given or not."""
        return self._words[offset >> 3]

    def given(self, offset: int) -> int:
        """The field at `offset`; 0 where it is not marked as given, as KVM reads it."""
        return self.value(offset) if self.is_valid(offset) else 0

    @property
    def cpl(self) -> int:
        """Privilege level of the request."""
        return self._data[CPL]

    @property
    def usage(self) -> int:
        """0 for the layout of the specification; nothing else is defined."""
        return self._words[USAGE >> 3] >> 8 * (USAGE & 7)

    def clear_valid(self) -> None:
        """Forgets what was given: the answer's own bits follow."""
        self._valid = 0

    def set(self, offset: int, value: int) -> None:
        """Sets a 64-bit field and marks it as given."""
        self._words[offset >> 3] = value
        self._valid |= 1 << (offset >> 3)

    def answer(self, written: Mapping[str, int], info_1: int, info_2: int) -> None:
        """Stores the answer: SW_EXITINFO1 and 2, and RAX to RDX with what KVM has `written` there,
        else with what the guest gave."""
        words, valid = self._words, self._valid
        self._valid = _ANSWER_BITS
        for name, offset in _ANSWERED:
            if name in written:
                words[offset >> 3] = written[name]
            elif not valid >> (offset >> 3) & 1:
                words[offset >> 3] = 0
        words[EXIT_INFO_1 >> 3] = info_1
        words[EXIT_INFO_2 >> 3] = info_2
        self.store()

    def store(self) -> None:
        """Writes the answer's fields and the bitmap to guest memory."""
        fields = bytes(self._data[RAX:VALID_BITMAP])
        answer = fields + self._valid.to_bytes(_BITMAP_BYTES, "little")
        self._ram.write(Gpa(self.gpa + RAX), answer, private=False)


# The MSR protocol --------------------------------------------------------------------------------


def sev_info_answer(cbit: int) -> int:
    """SEV information: protocol versions in [63:48] and [47:32], C-bit position in [31:24]."""
    versions = abi.GHCB_VERSION_MAX << 48 | abi.GHCB_VERSION_MIN << 32
    return versions | cbit << 24 | abi.MSR_SEV_INFO_RESP


def cpuid_question(value: int) -> tuple[int, int]:
    """(function, register 0 to 3) of a CPUID request: [63:32] and [31:30]."""
    return value >> 32, value >> 30 & 3


def cpuid_answer(register: int, value: int) -> int:
    """The register's value in [63:32]."""
    return (value & U32_MASK) << 32 | register << 30 | abi.MSR_CPUID_RESP


def frame_of(value: int) -> int:
    """The frame number in [51:12] of a request."""
    return value >> 12 & 0xFF_FFFF_FFFF


def psc_operation(value: int) -> int:
    """The operation in [55:52] of a page-state request."""
    return value >> 52 & 0xF


def psc_answer(error: int) -> int:
    """Page-state response: 32-bit error code in [63:32], 0 for success."""
    return (error & U32_MASK) << 32 | abi.MSR_PSC_RESP


def termination(value: int) -> tuple[int, int]:
    """(reason set, reason) of a termination request: [15:12] and [23:16]."""
    return value >> 12 & 0xF, value >> 16 & 0xFF
