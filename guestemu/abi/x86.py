# SPDX-License-Identifier: GPL-2.0-or-later
"""x86-64 register and page-table bits, exception vectors and CPU modes (AMD64 APM volume 2)."""

from __future__ import annotations

import enum
from typing import Final

CR0_PE: Final = 1 << 0
CR0_MP: Final = 1 << 1
CR0_ET: Final = 1 << 4
CR0_NE: Final = 1 << 5
CR0_WP: Final = 1 << 16
CR0_PG: Final = 1 << 31
CR4_PAE: Final = 1 << 5
CR4_PGE: Final = 1 << 7
CR4_OSFXSR: Final = 1 << 9
CR4_OSXMMEXCPT: Final = 1 << 10

PTE_PRESENT: Final = 1 << 0
PTE_RW: Final = 1 << 1
PTE_USER: Final = 1 << 2
PTE_ACCESSED: Final = 1 << 5
PTE_DIRTY: Final = 1 << 6
PTE_PSE: Final = 1 << 7
PTE_GLOBAL: Final = 1 << 8
PTE_NX: Final = 1 << 63
PTE_ADDRESS_MASK: Final = 0x000F_FFFF_FFFF_F000

RFLAGS_FIXED: Final = 1 << 1
RFLAGS_CF: Final = 1 << 0
RFLAGS_ARITHMETIC: Final = 0x8D5
"""CF, PF, AF, ZF, SF and OF."""
RFLAGS_TF: Final = 1 << 8
RFLAGS_IF: Final = 1 << 9
RFLAGS_DF: Final = 1 << 10
RFLAGS_IOPL3: Final = 3 << 12
RFLAGS_NT: Final = 1 << 14
RFLAGS_RF: Final = 1 << 16

VECTOR_DE: Final = 0
VECTOR_DB: Final = 1
VECTOR_NMI: Final = 2
VECTOR_BP: Final = 3
VECTOR_UD: Final = 6
VECTOR_DF: Final = 8
VECTOR_TS: Final = 10
VECTOR_NP: Final = 11
VECTOR_SS: Final = 12
VECTOR_GP: Final = 13
VECTOR_PF: Final = 14
VECTOR_VC: Final = 29
FIRST_INTERRUPT: Final = 32
"""Vectors below are exceptions and the NMI."""
VECTORS_WITH_ERROR_CODE: Final = frozenset({8, 10, 11, 12, 13, 14, 17, 21, 29, 30})


class Mode(enum.IntEnum):
    """The mode a vCPU executes in; the names are those of the real-KVM recordings."""

    __hash__ = int.__hash__  # enum's own is Python code, ten times as slow

    LONG64 = 0
    COMPAT32 = 1
    PROT32 = 2
    REAL16 = 3

    @property
    def text(self) -> str:
        """The lower-case name used in programs and recordings."""
        return self.name.lower()
