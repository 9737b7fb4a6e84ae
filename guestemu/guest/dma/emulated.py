# SPDX-License-Identifier: GPL-2.0-or-later
"""dma_alloc_coherent on an emulated guest.

Which frames are taken is the allocator model's choice; the conversions and the memset are the
guest's own code on the CPU.
"""

from __future__ import annotations

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, Gfn, Gpa, Gva
from guestemu.abi.errno import EIO, ENOMEM
from guestemu.guest.base import CallOutcome, Guest
from guestemu.guest.dma.allocator import Block, FreeResult
from guestemu.guest.dma.coherent import AllocOutcome, CoherentDma, FreeOutcome
from guestemu.guest.dma.gfp import GFP_ATOMIC, GFP_KERNEL
from guestemu.guest.dma.policy import policy_named
from guestemu.guest.dma.zones import DMA_BIT_MASK_64, Zone, ZonedAllocator


class TrackedAllocator(ZonedAllocator):
    """The allocator over a guest's DMA arena that also says which frames are free.

    `free_frames` has one bit per frame of RAM: 1 = in the free lists. Callers do not change it.
    """

    def __init__(self, guest: Guest) -> None:
        arena = guest.dma_frames
        super().__init__(Gfn(arena.start), len(arena))
        self._pages: dict[Gfn, int] = {}
        self.free_frames = bitarray(guest.machine.config.frames, endian="little")
        self.free_frames[arena.start : arena.stop] = True

    def allocate(
        self, order: int, mask: int = DMA_BIT_MASK_64, preferred: Zone = Zone.NORMAL
    ) -> Block | None:
        """See `ZonedAllocator`."""
        block = super().allocate(order, mask, preferred)
        if block is not None:
            self._pages[block.gfn] = block.pages
            self.free_frames[block.gfn : block.gfn + block.pages] = False
        return block

    def reserve(self, pages: int) -> Gfn | None:
        """See `ZonedAllocator`."""
        gfn = super().reserve(pages)
        if gfn is not None:
            self.free_frames[gfn : gfn + pages] = False
        return gfn

    def free(self, gfn: Gfn) -> FreeResult:
        """See `ZonedAllocator`."""
        result = super().free(gfn)
        if result is FreeResult.FREED:
            self.free_frames[gfn : gfn + self._pages.pop(gfn)] = True
        return result


class GuestConversions:
    """`CoherentGuest` over an emulated guest: frames of the direct map.

    `stopped` is the outcome of a call that did not return (budget, oops): its caller gets -EIO.
    `warnings` are the WARN sites hit since they were last taken.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self.stopped: CallOutcome | None = None
        self.warnings: tuple[str, ...] = ()

    def _result(self, outcome: CallOutcome) -> int:
        self.warnings += outcome.warnings
        if outcome.value is None:
            self.stopped = outcome
            return -EIO
        return outcome.value

    def _gva(self, gfn: Gfn) -> Gva:
        return Gva(self._guest.direct_map + (gfn << PAGE_SHIFT))

    def set_memory_decrypted(self, gfn: Gfn, pages: int, /) -> int:
        """See `CoherentGuest`."""
        return self._result(self._guest.set_memory_decrypted(self._gva(gfn), pages))

    def set_memory_encrypted(self, gfn: Gfn, pages: int, /) -> int:
        """See `CoherentGuest`."""
        return self._result(self._guest.set_memory_encrypted(self._gva(gfn), pages))

    def memset(self, gfn: Gfn, size: int, /) -> None:
        """See `CoherentGuest`."""
        self._result(self._guest.memset(self._gva(gfn), 0, size))


class GuestDma:
    """The coherent allocator of an emulated guest.

    The allocator owns the guest's DMA arena; `boot` (at construction) makes the atomic pools,
    which decrypts their pages.
    """

    def __init__(self, guest: Guest) -> None:
        self.conversions = GuestConversions(guest)
        self.memory = TrackedAllocator(guest)
        self.coherent = CoherentDma(self.conversions, self.memory, policy_named(guest.generation))
        self.coherent.boot()

    def alloc(self, size: int, may_block: bool) -> CallOutcome:
        """dma_alloc_coherent: the value is the buffer's GPA, or a negative errno."""
        record = self.coherent.alloc(size, GFP_KERNEL if may_block else GFP_ATOMIC)
        if record.outcome is AllocOutcome.DECRYPT_FAILED:
            return self._outcome(record.error)
        if record.buffer is None:
            return self._outcome(-ENOMEM)
        return self._outcome(record.buffer.gfn << PAGE_SHIFT)

    def free(self, gpa: Gpa) -> CallOutcome:
        """dma_free_coherent of the buffer at `gpa`; also 0 where there is none."""
        record = self.coherent.free(Gfn(gpa >> PAGE_SHIFT))
        return self._outcome(record.error if record.outcome is not FreeOutcome.FREED else 0)

    def _outcome(self, value: int) -> CallOutcome:
        self.coherent.pools.run_work()
        stopped, self.conversions.stopped = self.conversions.stopped, None
        warnings, self.conversions.warnings = self.conversions.warnings, ()
        if stopped is not None:
            return CallOutcome(None, stopped.end, warnings)
        return CallOutcome(value, None, warnings)

    def free_frames(self) -> bitarray:
        """One bit per frame of RAM: 1 = in the page allocator's free lists."""
        return self.memory.free_frames
