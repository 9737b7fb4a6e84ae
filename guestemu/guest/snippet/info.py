# SPDX-License-Identifier: GPL-2.0-or-later
"""The info block of a snippet: what the host side fills in and what it reads back.

Mirrors `info.inc.S` (a test compares every offset with the symbols `INFO_*` of the ELF files). The
block lies at the symbol `info`; every field is 8 bytes, little-endian, but the memory map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from guestemu.abi.addresses import U64_MASK, Gpa
from guestemu.abi.errors import InputError

E820_ENTRIES: Final = 8
E820_ENTRY_SIZE: Final = 24
E820_RAM: Final = 1
E820_RESERVED: Final = 2

NEVER: Final = U64_MASK
"""`pt_fail_after`: page-table allocations do not fail by plan."""

FIELDS: Final = {
    "page_offset_base": "VA at which GPA 0 is mapped (PAGE_OFFSET)",
    "cbit_mask": "the C-bit as a mask, 0 = no memory encryption",
    "pgd": "VA of the top-level table in the direct map",
    "max_pfn": "frames of RAM; the direct map ends there, only frames below have an alias (A25)",
    "pt_pool": "GPA of the next page for page tables",
    "pt_pool_left": "pages left from there on",
    "pt_fail_after": "allocations that still succeed before all fail, NEVER = no plan (A19)",
    "vmap_start": "VA of the vmap window; for readers of the block, the code goes by the direct "
    "map's bounds as the kernel does (A25)",
    "vmap_end": "its end",
    "scratch_source": "VA of a page whose tables exist down to 4 KiB; early conversions read the "
    "old view through it (A37)",
    "scratch_target": "a second such VA, for the new view",
    "coherent": "1 = the CPU has SME_COHERENT, no cache flush is needed (A17)",
    "notify_enabled": "1 = the notification hook is installed (A4, A15); kvm_init_platform sets it",
    "kvm_features": "EAX of CPUID leaf 0x40000001",
    "mem_enc_lock": "bit 31 writer, bits 30:0 readers (A21; 6.12)",
    "oops_in_progress": "1 = the lock's writer tries once instead of waiting",
    "cpa_lock": "1 while one step of a conversion runs (A24)",
    "prepare_status": "0 or -errno of the platform's prepare callback; AMD's is 0 (A17; 6.12)",
    "finish_status": "0 or -errno of its finish callback; AMD's is 0 (A17; 6.1, 6.12)",
    "bss_decrypted_start": "VA of .bss..decrypted (A35, A40)",
    "bss_decrypted_end": "its end",
    "unchecked_msr": "read back: MSR writes that faulted and went on (A47)",
    "oops_vector": "read back: the exception that ended at guest_oops",
    "oops_error_code": "read back: its error code, 0 if it has none",
    "oops_rip": "read back: where it was raised",
    "oops_cr2": "read back: CR2 at that time",
    "e820_count": "lines of the memory map, at most E820_ENTRIES",
    "e820": "the memory map: u64 GPA, u64 bytes, u32 type (1 = RAM), u32 zero for each line",
}
"""The fields in their order in memory, and what each means."""

OFFSETS: Final = {name: 8 * index for index, name in enumerate(FIELDS)}
"""Offset in bytes of each field from the symbol `info`."""

INFO_SIZE: Final = OFFSETS["e820"] + E820_ENTRIES * E820_ENTRY_SIZE
"""Bytes of the whole block."""


class Words(Protocol):
    """Guest memory, as far as the block needs it."""

    def read_u64(self, gpa: Gpa) -> int:
        """The 8 bytes at `gpa`."""

    def write_u64(self, gpa: Gpa, value: int) -> None:
        """Stores 8 bytes at `gpa`."""


class InfoBlock:
    """The info block at `base` (the symbol `info`) of a loaded snippet.

    Field names are those of `FIELDS`; any other raises `KeyError`.
    """

    def __init__(self, memory: Words, base: Gpa) -> None:
        self._memory = memory
        self._base = base

    def read(self, name: str) -> int:
        """The unsigned 64-bit value of field `name`."""
        return self._memory.read_u64(Gpa(self._base + OFFSETS[name]))

    def write(self, name: str, value: int) -> None:
        """Sets field `name`; a negative `value` is stored in two's complement."""
        self._memory.write_u64(Gpa(self._base + OFFSETS[name]), value & U64_MASK)

    def write_e820(self, entries: Sequence[tuple[int, int, int]]) -> None:
        """Sets the memory map: (GPA, size in bytes, type) for each line, any alignment (A46).

        Errors: `InputError` when there are more lines than the block has room for.
        """
        if len(entries) > E820_ENTRIES:
            raise InputError(
                f"memory map: {len(entries)} lines, a snippet has room for {E820_ENTRIES}: "
                "merge neighbouring ranges"
            )
        self.write("e820_count", len(entries))
        line = self._base + OFFSETS["e820"]
        for address, size, kind in entries:
            for offset, value in enumerate((address, size, kind)):
                self._memory.write_u64(Gpa(line + 8 * offset), value)
            line += E820_ENTRY_SIZE
