# SPDX-License-Identifier: GPL-2.0-or-later
"""dma_alloc_coherent by the real kernel: dma_alloc_attrs() for a real struct device.

The device is the smallest that `dma_alloc_attrs` (kernel/dma/mapping.c) accepts: zeroed memory of
`struct device`'s size with both DMA masks set to 64 bits. Placement, splits, conversions, memset
and the atomic pools are the kernel's.
"""

from __future__ import annotations

import struct
from typing import Final

from guestemu.abi.addresses import Gpa, Gva
from guestemu.abi.errno import ENOMEM
from guestemu.guest.base import CallOutcome
from guestemu.guest.linux.boot import BootedKernel
from guestemu.guest.linux.calls import KernelCalls

GFP_KERNEL: Final = 0xCC0
GFP_NOWAIT_BITS: Final = 0x820
"""__GFP_HIGH and __GFP_KSWAPD_RECLAIM: may not block, so the atomic pool serves it (B2)."""
_GFP_ZERO: Final = 0x100
_ALL_ONES: Final = (1 << 64) - 1
_KMALLOC: Final = ("__kmalloc", "__kmalloc_noprof")
_DMA_BIDIRECTIONAL: Final = 0
_POOL_INIT: Final = "dma_atomic_pool_init"


class KernelDma:
    """One struct device of a booted kernel and the buffers allocated for it.

    Making it allocates the device and, as a postcore initcall would, the atomic pools. A guest that
    does not survive that (an SNP guest whose page-state change is refused) allocates nothing more:
    each request ends as the pools did.
    """

    def __init__(self, booted: BootedKernel, calls: KernelCalls) -> None:
        kernel = booted.kernel
        self._calls = calls
        self._vcpu = booted.machine.current
        self._cbit = booted.machine.pte_cbit
        self._buffers: dict[Gpa, tuple[int, int]] = {}
        self._pages: dict[Gpa, tuple[int, int]] = {}
        btf = kernel.btf
        zeroed = GFP_KERNEL | _GFP_ZERO
        self.device = calls.must(_KMALLOC, btf.size("device"), zeroed)
        mask = calls.must(_KMALLOC, 8, zeroed)
        self._handle = calls.must(_KMALLOC, 8, zeroed)
        self._store(mask, _ALL_ONES)
        self._store(self.device + btf.offset("device.coherent_dma_mask"), _ALL_ONES)
        self._store(self.device + btf.offset("device.dma_mask"), mask)
        self._end: CallOutcome | None = None
        if _POOL_INIT in kernel.symbols:
            pools = calls.call(_POOL_INIT)
            self._end = pools if pools.value is None else None

    def _store(self, address: int, value: int) -> None:
        self._vcpu.write_memory(Gva(address), struct.pack("<Q", value))

    def alloc(self, size: int, may_block: bool) -> CallOutcome:
        """The value is the buffer's GPA, or -ENOMEM."""
        if self._end is not None:
            return self._end
        gfp = GFP_KERNEL if may_block else GFP_NOWAIT_BITS
        outcome = self._calls.call("dma_alloc_attrs", self.device, size, self._handle, gfp, 0)
        if outcome.value is None:
            return outcome
        if outcome.value == 0:
            return CallOutcome(-ENOMEM, None, outcome.warnings)
        handle = self._calls.read_u64(self._handle)
        gpa = Gpa(handle & ~self._cbit)
        self._buffers[gpa] = (outcome.value, size)
        return CallOutcome(gpa, None, outcome.warnings)

    def struct_page(self, size: int, may_block: bool) -> CallOutcome:
        """dma_alloc_pages() of `size` bytes (kernel/dma/mapping.c); the value is what the kernel
        returned, a struct page or 0."""
        if self._end is not None:
            return self._end
        gfp = GFP_KERNEL if may_block else GFP_NOWAIT_BITS
        return self._calls.call(
            "dma_alloc_pages", self.device, size, self._handle, _DMA_BIDIRECTIONAL, gfp
        )

    def alloc_pages(self, size: int, may_block: bool) -> CallOutcome:
        """As `struct_page`; the value is the buffer's GPA, or -ENOMEM."""
        outcome = self.struct_page(size, may_block)
        if outcome.value is None:
            return outcome
        if outcome.value == 0:
            return CallOutcome(-ENOMEM, None, outcome.warnings)
        gpa = Gpa(self._calls.read_u64(self._handle) & ~self._cbit)
        self._pages[gpa] = (outcome.value, size)
        return CallOutcome(gpa, None, outcome.warnings)

    def free_pages(self, gpa: Gpa) -> CallOutcome:
        """dma_free_pages() with what dma_alloc_pages() returned; 0 also for a buffer that is not
        allocated."""
        buffer = self._pages.pop(gpa, None)
        if buffer is None:
            return CallOutcome(0)
        page, size = buffer
        outcome = self._calls.call(
            "dma_free_pages", self.device, size, page, gpa, _DMA_BIDIRECTIONAL
        )
        if outcome.value is None:
            return outcome
        return CallOutcome(0, None, outcome.warnings)

    def free(self, gpa: Gpa) -> CallOutcome:
        """dma_free_attrs() of the buffer at `gpa`; 0 also for one that is not allocated."""
        buffer = self._buffers.pop(gpa, None)
        if buffer is None:
            return CallOutcome(0)
        address, size = buffer
        outcome = self._calls.call("dma_free_attrs", self.device, size, address, gpa, 0)
        if outcome.value is None:
            return outcome
        return CallOutcome(0, None, outcome.warnings)
