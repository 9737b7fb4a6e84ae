# SPDX-License-Identifier: GPL-2.0-or-later
"""Two correct hosts, written against the documented interface: one keeps a bitmap, one a table.

`defects.py` makes a host with one defect of each by replacing one piece of this text.
"""

from __future__ import annotations

from bitarray import bitarray

from guestemu.host.base import GuestFault, Host

U32 = (1 << 32) - 1
U64 = (1 << 64) - 1
PAGE_SHIFT = 12
EPERM, EINVAL, ENOSYS, ENOMEM = 1, 22, 1000, 12
MAP_GPA_RANGE = 12
ENCRYPTED = 1 << 4
MIGRATION_CONTROL = 0x4B564D08
WORD = 64


class Vmm(Host):
    """What both have in common: KVM's tests and MSR_KVM_MIGRATION_CONTROL."""

    summary = "a host with KVM's half of its own"

    def __init__(self):
        self.boot()
        self.reset(0)

    def boot(self):
        """What happens once for the process."""

    def reset(self, frames):
        self.frames = frames
        half = frames // 2
        self.slots = [(0, half), (half, frames)]
        self.control = 0
        self.calls = 0
        self.last = None
        self.clear()

    def hypercall(self, call):
        mask = U64 if call.is_64bit else U32
        nr = call.nr & mask
        gpa = call.a0 & mask
        pages = call.a1 & mask
        attributes = call.a2 & mask
        if call.cpl:
            return -EPERM & mask
        if nr != MAP_GPA_RANGE:
            return -ENOSYS & mask
        if gpa & 0xFFF:
            return -EINVAL & mask
        if not pages:
            return -EINVAL & mask
        first = gpa >> PAGE_SHIFT
        if first + pages > U64:
            return -EINVAL & mask
        return self.convert(first, pages, attributes) & mask

    def convert(self, first, pages, attributes):
        private = bool(attributes & ENCRYPTED)
        end = min(first + pages, self.frames)
        self.calls += 1
        for start, stop in self.slots:
            low = max(first, start)
            high = min(end, stop)
            if low < high:
                self.record(low, high, private)
        self.last = (first, end)
        return 0

    def rdmsr(self, index, vcpu):
        if index != MIGRATION_CONTROL:
            raise GuestFault(13, 0)
        return self.control

    def wrmsr(self, index, value, vcpu):
        if index != MIGRATION_CONTROL:
            raise GuestFault(13, 0)
        if value & ~1:
            raise GuestFault(13, 0)
        self.control = value

    @property
    def migration_ready(self):
        return bool(self.control & 1)


class BitmapVmm(Vmm):
    """The record is a bitmap in words of 64 bits."""

    name = "bitmap-vmm"

    def clear(self):
        self.words = [U64] * -(-self.frames // WORD)

    def record(self, low, high, private):
        while low < high:
            index, bit = divmod(low, WORD)
            count = min(high - low, WORD - bit)
            mask = (1 << count) - 1 << bit
            if private:
                self.words[index] |= mask
            else:
                self.words[index] &= ~mask
            low += count

    def private_map(self):
        bits = bitarray(endian="little")
        bits.frombytes(b"".join(word.to_bytes(8, "little") for word in self.words))
        return bits[: self.frames]


class TableVmm(Vmm):
    """The record is a sorted table of shared ranges."""

    name = "table-vmm"

    def clear(self):
        self.shared = []

    def record(self, low, high, private):
        kept = []
        for start, stop in self.shared:
            if stop < low or start > high:
                kept.append((start, stop))
            elif private:
                if start < low:
                    kept.append((start, min(stop, low)))
                if stop > high:
                    kept.append((max(start, high), stop))
            else:
                low = min(low, start)
                high = max(high, stop)
        if not private:
            kept.append((low, high))
        self.shared = sorted(kept)

    def private_map(self):
        bits = bitarray(self.frames, endian="little")
        bits.setall(True)
        for start, stop in self.shared:
            bits[start:stop] = False
        return bits
