# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest does while it is migrated: one page filled, converted and filled again.

The *window* is `memset(page, 0x11); set_memory_decrypted(page, 1); memset(page, 0x42)`, and for a
round trip also `set_memory_encrypted(page, 1); memset(page, 0x55)`. The *tail* shows that the guest
goes on: the page back to private, 512 pages and another page decrypted, dma_alloc_attrs and
dma_free_attrs of three pages, the page decrypted once more and filled.

The program is written over `start_kernel`, __init code that no kernel runs again. What it needs the
kernel's own allocators give it beforehand.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa, Gva
from guestemu.abi.errors import InputError
from guestemu.abi.regions import Region
from guestemu.guest.linux.dma import GFP_KERNEL
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.prepare import GET_FREE_PAGES
from guestemu.machine.engine import REGISTERS
from guestemu.machine.paging import walk
from guestemu.migration.sweep.stub import MemoryArgument, Stub

FIRST: Final = 0x11
SHARED: Final = 0x42
PRIVATE: Final = 0x55
LAST: Final = 0x43

_KMALLOC: Final = ("__kmalloc", "__kmalloc_noprof")
_GFP_ZERO: Final = 0x100
_ALL_ONES: Final = (1 << 64) - 1
_LARGE_ORDER: Final = 9
_CHUNKED_PAGES: Final = 1024
_DMA_SIZE: Final = 0x3000
_STACK_GAP: Final = 0x200
_HANDLE_AT: Final = 64


class Variant(msgspec.Struct, frozen=True):
    """Which window: with `split` the page's leaf is a 2 MiB one, which the kernel has to split;
    with `round_trip` the page is also converted back and filled; with `chunked` it is the last of
    4 MiB that are converted at once, in two chunks of KVM's MapGPA (fact T26)."""

    split: bool = False
    round_trip: bool = False
    chunked: bool = False

    @property
    def name(self) -> str:
        """As reports show it."""
        leaf = "split" if self.split else "no split"
        if self.chunked:
            leaf = "4 MiB in two chunks"
        return leaf + ", there and back" * self.round_trip


class SweepScenario(msgspec.Struct, frozen=True):
    """A placed scenario: virtual addresses of the program and of its labels, and the page.

    The guest starts at `start`; at `window_end` the window is done and the page all `fill`; at
    `end` everything is. `gfn` is the page's frame, `gva` its address in the direct map.
    """

    variant: Variant
    start: int
    window_end: int
    end: int
    gva: int
    gfn: int

    @property
    def fill(self) -> int:
        """The byte that fills the page at the end of the window."""
        return PRIVATE if self.variant.round_trip else SHARED


def place_scenario(guest: LinuxGuest, variant: Variant) -> SweepScenario:
    """Puts the program into `guest`, whose vCPU then stands in front of its first instruction.

    Raises `InputError` where the kernel lacks a function or memory for it.
    """
    placer = _Placer(guest)
    first, pages = placer.range_of(variant)
    page = first + (pages - 1 << PAGE_SHIFT)
    device = placer.device()
    results, other, block = placer.page(), placer.page(), placer.page(_LARGE_ORDER)
    vcpu = guest.machine.current
    vcpu.write_memory(Gva(results), bytes(PAGE_SIZE))
    stub = Stub(guest.kernel.address("start_kernel"))
    address = guest.kernel.address
    memset, decrypt = address("memset"), address("set_memory_decrypted")
    encrypt = address("set_memory_encrypted")
    stub.call(memset, page, FIRST, PAGE_SIZE)
    stub.call(decrypt, first, pages, result=results)
    stub.call(memset, page, SHARED, PAGE_SIZE)
    window_end = stub.here
    stub.call(encrypt, first, pages, result=results + 8)
    if variant.round_trip:
        stub.call(memset, page, PRIVATE, PAGE_SIZE)
        window_end = stub.here
    stub.call(decrypt, block, 1 << _LARGE_ORDER, result=results + 16)
    stub.call(decrypt, other, 1, result=results + 24)
    alloc, free = address("dma_alloc_attrs"), address("dma_free_attrs")
    handle = results + _HANDLE_AT
    stub.call(alloc, device, _DMA_SIZE, handle, GFP_KERNEL, 0, result=results + 32)
    stub.call(free, device, _DMA_SIZE, MemoryArgument(results + 32), MemoryArgument(handle), 0)
    stub.call(decrypt, page, 1, result=results + 40)
    stub.call(memset, page, LAST, PAGE_SIZE)
    end = stub.here
    stub.pause()
    guest.calls.context.restore()
    vcpu.write_memory(Gva(stub.start), stub.code)
    engine = guest.machine.engine
    engine.write(REGISTERS["rsp"], guest.calls.stack - _STACK_GAP)
    engine.write(REGISTERS["rip"], stub.start)
    engine.flush_tlb()
    return SweepScenario(variant, stub.start, window_end, end, page, placer.gfn(page))


class _Placer:
    def __init__(self, guest: LinuxGuest) -> None:
        self._guest = guest
        self._calls = guest.calls

    def page(self, order: int = 0) -> int:
        """Memory of 2**order pages from the kernel's page allocator; its address."""
        return self._calls.must(GET_FREE_PAGES, GFP_KERNEL, order)

    def gfn(self, address: int) -> int:
        return address - self._guest.direct_map >> PAGE_SHIFT

    def range_of(self, variant: Variant) -> tuple[int, int]:
        """Address and pages of what is converted; its last page is the one that is filled."""
        if variant.chunked:
            return int(self._guest.gva(Region.L, 0)), _CHUNKED_PAGES
        return self.large_leaf_page() if variant.split else self.small_leaf_page(), 1

    def _level(self, address: int) -> int:
        guest = self._guest
        machine = guest.machine
        return walk(machine.ram, machine.pte_cbit, Gpa(guest.root), Gva(address)).level

    def large_leaf_page(self) -> int:
        """A page inside a 2 MiB leaf."""
        page = self.page()
        if self._level(page) != 2:
            page = int(self._guest.gva(Region.L, 0))
        if self._level(page) != 2:
            raise InputError(f"{self._guest.name}: no page in a 2 MiB leaf; give it more memory")
        return page

    def small_leaf_page(self) -> int:
        """A page whose leaf is a 4 KiB one: converted there and back beforehand."""
        page = self.page()
        for function in ("set_memory_decrypted", "set_memory_encrypted"):
            outcome = self._calls.int_call(function, page, 1)
            if outcome.value != 0:
                raise InputError(f"{self._guest.name}: {function} failed: {outcome}")
        return page

    def device(self) -> int:
        """The smallest struct device that dma_alloc_attrs() takes, as in guest/linux/dma.py."""
        calls, vcpu = self._calls, self._guest.machine.current
        btf = self._guest.kernel.btf
        device = calls.must(_KMALLOC, btf.size("device"), GFP_KERNEL | _GFP_ZERO)
        mask = calls.must(_KMALLOC, 8, GFP_KERNEL | _GFP_ZERO)
        ones = struct.pack("<Q", _ALL_ONES)
        vcpu.write_memory(Gva(mask), ones)
        vcpu.write_memory(Gva(device + btf.offset("device.coherent_dma_mask")), ones)
        pointer = struct.pack("<Q", mask)
        vcpu.write_memory(Gva(device + btf.offset("device.dma_mask")), pointer)
        return device
