# SPDX-License-Identifier: GPL-2.0-or-later
"""Address kinds. Mixing a gfn, a GPA and a ram_addr_t is a bug class in this field,
so each has its own type and only the functions here convert between them."""

from __future__ import annotations

from typing import Final, NewType

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
PAGE_MASK: Final = PAGE_SIZE - 1
PMD_SIZE: Final = 1 << 21
PUD_SIZE: Final = 1 << 30
U64_MASK: Final = (1 << 64) - 1
U32_MASK: Final = (1 << 32) - 1

Gpa = NewType("Gpa", int)
"""Guest-physical address in bytes, without the C-bit."""

Gfn = NewType("Gfn", int)
"""Guest frame number: a `Gpa` shifted right by 12."""

Gva = NewType("Gva", int)
"""Guest-virtual address in bytes."""

RamAddr = NewType("RamAddr", int)
"""Offset in QEMU's ram_addr_t space, in bytes."""


def gpa_of(gfn: Gfn) -> Gpa:
    """The first byte of frame `gfn`."""
    return Gpa(gfn << PAGE_SHIFT)


def gpa_text(gfn: int) -> str:
    """Frame `gfn` as messages name it: "GPA 0x405000"."""
    return f"GPA {gfn << PAGE_SHIFT:#x}"


def gpas_text(first: int, end: int) -> str:
    """The frames from `first` to before `end` as messages name them: "[0x403000, 0x406000)"."""
    return f"[{first << PAGE_SHIFT:#x}, {end << PAGE_SHIFT:#x})"


def pfn_up(size: int) -> int:
    """Pages needed for `size` bytes, as the kernel's PFN_UP."""
    return (size + PAGE_MASK) >> PAGE_SHIFT


def page_align(size: int) -> int:
    """`size` in bytes rounded up to whole pages, as the kernel's PAGE_ALIGN."""
    return (size + PAGE_MASK) & ~PAGE_MASK


def get_order(size: int) -> int:
    """The buddy order that holds `size` bytes, as the kernel's get_order (size >= 1)."""
    return (pfn_up(size) - 1).bit_length()


def to_signed(value: int, bits: int = 64) -> int:
    """Reads the low `bits` of `value` as a two's-complement number."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value
