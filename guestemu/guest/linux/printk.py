# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel has printed, from its own ring buffer (kernel/printk/printk_ringbuffer.c).

The console is not enough: a kernel with PREEMPT_RT prints from a thread, which does not run here,
and an early one knows no console yet. Every kernel from 5.10 on keeps the records in the same
structures; their layout is taken from BTF.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from guestemu.abi.addresses import Gpa
from guestemu.abi.errors import InputError
from guestemu.guest.linux.kernel import KERNEL_MAP, Kernel
from guestemu.machine.memory import GuestRam

_RING: Final = "prb"
_DESC_RING: Final = "printk_ringbuffer.desc_ring."
_TEXT_RING: Final = "printk_ringbuffer.text_data_ring."
_STATE_SHIFT: Final = 62
_ID_MASK: Final = (1 << _STATE_SHIFT) - 1
_READABLE: Final = frozenset({1, 2})
"""Committed and finalized."""
_NO_TEXT: Final = 1
_MAX_BITS: Final = 24
_MAX_RECORDS: Final = 1 << 14
_CUT: Final = "------------[ cut here ]------------"
_WARNING: Final = "WARNING: "


class LogRecord(msgspec.Struct, frozen=True):
    """One message: its number, and its text, which may have several lines."""

    number: int
    text: str


class _Layout:
    """Byte offsets in the ring of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        offset = kernel.btf.offset
        self.count_bits = offset(_DESC_RING + "count_bits")
        self.descriptors = offset(_DESC_RING + "descs")
        self.infos = offset(_DESC_RING + "infos")
        self.head = offset(_DESC_RING + "head_id")
        self.size_bits = offset(_TEXT_RING + "size_bits")
        self.text = offset(_TEXT_RING + "data")
        self.place = offset("prb_desc.text_blk_lpos")
        self.descriptor_size = kernel.btf.size("prb_desc")
        self.info_size = kernel.btf.size("printk_info")
        self.number = offset("printk_info.seq")
        self.length = offset("printk_info.text_len")
        self.block = offset("prb_data_block.data")


class KernelLog:
    """The messages of the kernel in `ram`. A kernel whose ring has another form has none."""

    def __init__(self, kernel: Kernel, ram: GuestRam) -> None:
        self._kernel = kernel
        self._ram = ram
        self._layout: _Layout | None = None
        try:
            if _RING in kernel.symbols:
                self._layout = _Layout(kernel)
        except InputError:
            self._layout = None

    @property
    def is_readable(self) -> bool:
        """Whether this kernel's ring has a form that is known here."""
        return self._layout is not None

    def _read(self, address: int, size: int) -> bytes:
        """Bytes at an address in the kernel's image or its direct map; zeros elsewhere."""
        if address >= KERNEL_MAP:
            gpa = address - KERNEL_MAP
        else:
            base = self._kernel.symbols.get("page_offset_base", 0)
            gpa = address - self._word(base) if base else -1
        if not 0 <= gpa <= self._ram.frames * 4096 - size:
            return bytes(size)
        return self._ram.read(Gpa(gpa), size)

    def _word(self, address: int) -> int:
        return int.from_bytes(self._read(address, 8), "little")

    def mark(self) -> int:
        """A number that changes with every new message: two equal ones mean that none came."""
        if self._layout is None:
            return 0
        return self._word(self._word(self._kernel.symbols[_RING]) + self._layout.head)

    def records(self, after: int = -1) -> list[LogRecord]:
        """The messages with numbers above `after` that the ring still holds, in their order."""
        layout = self._layout
        if layout is None:
            return []
        ring = self._word(self._kernel.symbols[_RING])
        bits = int.from_bytes(self._read(ring + layout.count_bits, 4), "little")
        size_bits = int.from_bytes(self._read(ring + layout.size_bits, 4), "little")
        if not (0 < bits <= _MAX_BITS and 0 < size_bits <= _MAX_BITS):
            return []
        descriptors = self._word(ring + layout.descriptors)
        infos = self._word(ring + layout.infos)
        texts = self._word(ring + layout.text)
        head = self._word(ring + layout.head)
        found: list[LogRecord] = []
        for back in range(min(1 << bits, _MAX_RECORDS)):
            identity = head - back & _ID_MASK
            index = identity & (1 << bits) - 1
            descriptor = self._read(descriptors + index * layout.descriptor_size, 24)
            (state,) = struct.unpack_from("<Q", descriptor)
            if state & _ID_MASK != identity or state >> _STATE_SHIFT not in _READABLE:
                if back:
                    break
                continue
            info = self._read(infos + index * layout.info_size, layout.info_size)
            (number,) = struct.unpack_from("<Q", info, layout.number)
            if number <= after:
                break
            (length,) = struct.unpack_from("<H", info, layout.length)
            first, end = struct.unpack_from("<QQ", descriptor, layout.place)
            text = b""
            if not first & _NO_TEXT:
                is_wrapped = first >> size_bits != end - 1 >> size_bits
                start = 0 if is_wrapped else first & (1 << size_bits) - 1
                text = self._read(texts + start + layout.block, length)
            found.append(LogRecord(number, text.decode("utf-8", "replace")))
        return found[::-1]


def warnings_of(lines: list[str]) -> tuple[str, ...]:
    """The WARNs in a kernel's lines: the place as the kernel names it, and its own text.

    Up to 6.x the text stands between the cut line and the place; WARN_ON() has none.
    """
    found = []
    text: list[str] | None = None
    for line in lines:
        if _CUT in line:
            text = []
        elif _WARNING in line:
            found.append(": ".join([line.partition(_WARNING)[2].strip(), *(text or ())]))
            text = None
        elif text is not None and line.strip():
            text.append(line.strip())
    return tuple(found)
