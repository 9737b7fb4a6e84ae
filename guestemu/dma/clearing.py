# SPDX-License-Identifier: GPL-2.0-or-later
"""Which paths that convert pages write them anew, measured on a guest's memory (A.9, A54, A55).

A page that was converted and not written reads as ciphertext or as its decryption; both look
random. A page that a kernel has cleared or poisoned holds one byte over and over. So each path is
run, and the pages are looked at through their new view right after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa
from guestemu.dma.cost import Conversion
from guestemu.dma.emulate import Emulation
from guestemu.dma.events import Alloc, Event, Free
from guestemu.guest.dma.coherent import Origin
from guestemu.guest.dma.gfp import GFP_ATOMIC, GFP_KERNEL
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.kernel import KERNEL_MAP
from guestemu.program.program import Header
from guestemu.runner.testbed import Testbed, build_testbed

BUFFER_BYTES: Final = 3 * PAGE_SIZE
"""Three pages: 5.10 converts a fourth (B5)."""
_POOL_PAGE: Final = PAGE_SIZE
_SWIOTLB_BYTES: Final = 64 << 10
_MEMORY: Final = 128
_TAIL: Final = "__start_bss_decrypted_unused"
_TAIL_END: Final = "__end_bss_decrypted"
_FILL: Final = bytes(range(256)) * (PAGE_SIZE // 256)


class ClearingPath(msgspec.Struct, frozen=True):
    """One path of a kernel: `pages` were converted (`to_private` or to shared), `rewritten` of them
    held one byte over and over right after it."""

    name: str
    to_private: bool
    pages: int
    rewritten: int


class _Log:
    """Conversions and clears in their order: ("pool" | "buffer" | "clear", first frame, pages)."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []

    def begin(self, event: Event, /) -> None:
        """See `Observer`."""
        self.steps.clear()

    def converted(self, conversion: Conversion, is_pool: bool, /) -> None:
        """See `Observer`."""
        self.steps.append(("pool" if is_pool else "buffer", conversion.gfn, conversion.pages))

    def cleared(self, gfn: int, size: int, /) -> None:
        """See `Observer`."""
        self.steps.append(("clear", gfn, -(-size >> PAGE_SHIFT)))


class Clearing:
    """The paths of one guest, each measured when it is asked for, in any order.

    `guest` as `--guest` takes it, without `model:`. Raises what booting a guest raises.
    """

    def __init__(self, guest: str) -> None:
        header = Header(guest=guest, host="map-gpa-range", memory=_MEMORY)
        self._testbed: Testbed = build_testbed(header)
        self._log = _Log()
        self._run = Emulation(self._testbed, observers=(self._log,))
        self._pool = [step[1:] for step in self._log.steps if step[0] == "pool"]
        self._line = 0

    def paths(self) -> tuple[ClearingPath, ...]:
        """All paths that this guest has. A real kernel's swiotlb is left out: it was shared while
        the kernel booted, where the emulator does not keep two views of a page."""
        guest = self._testbed.guest
        if isinstance(guest, LinuxGuest):
            own = self._bss_tail(guest)
        else:
            own = (
                self._shared("swiotlb at boot", _SWIOTLB_BYTES, Origin.BOOT),
                self._shared("sev-guest's own pages", PAGE_SIZE, Origin.PAGES),
            )
        return (self.expansion(), self.hand_out(), *self.coherent(), *own)

    def coherent(self) -> tuple[ClearingPath, ClearingPath]:
        """dma_alloc_coherent of three pages, and its free after the buffer was written."""
        self._step(self._alloc(BUFFER_BYTES))
        frames = self._converted()
        made = ClearingPath(
            "dma_alloc_coherent", False, len(frames), self._rewritten(frames, False)
        )
        ram = self._testbed.guest.machine.ram
        for gfn in frames:
            ram.write(Gpa(gfn << PAGE_SHIFT), _FILL, private=False)
        self._line += 1
        self._run.step(Free(self._line, 0, 0, "t", "dev", "", self._line - 1 << 24, BUFFER_BYTES))
        frames = self._converted()
        freed = ClearingPath("dma_free_coherent", True, len(frames), self._rewritten(frames, True))
        return made, freed

    def expansion(self) -> ClearingPath:
        """The atomic pools, when they were made."""
        frames = [gfn for first, pages in self._pool for gfn in range(first, first + pages)]
        return ClearingPath(
            "atomic pool expansion", False, len(frames), self._rewritten(frames, False)
        )

    def hand_out(self) -> ClearingPath:
        """An allocation that may not sleep: a page of the pool, which converts nothing."""
        frames = [gfn for first, pages in self._pool for gfn in range(first, first + pages)]
        before = set(self._uniform(frames, False))
        self._step(self._alloc(_POOL_PAGE, gfp=GFP_ATOMIC))
        fresh = set(self._uniform(frames, False)) - before
        return ClearingPath("atomic pool hand-out", False, 1, len(fresh))

    def _shared(self, name: str, size: int, origin: Origin) -> ClearingPath:
        self._step(self._alloc(size, origin=origin))
        frames = self._converted()
        return ClearingPath(name, False, len(frames), self._rewritten(frames, False))

    def _bss_tail(self, guest: LinuxGuest) -> tuple[ClearingPath, ...]:
        """The unused part of .bss..decrypted, given back at the end of boot (A36)."""
        symbols = guest.calls.kernel.symbols
        if not {_TAIL, _TAIL_END} <= symbols.keys():
            return ()
        first, end = (symbols[name] - KERNEL_MAP >> PAGE_SHIFT for name in (_TAIL, _TAIL_END))
        guest.call("mem_encrypt_free_decrypted_mem")
        frames = list(range(first, end))
        return (
            ClearingPath(".bss..decrypted tail", True, len(frames), self._rewritten(frames, True)),
        )

    def _alloc(
        self, size: int, gfp: frozenset[str] = GFP_KERNEL, origin: Origin = Origin.DMA
    ) -> Callable[[int], Alloc]:
        return lambda line: Alloc(line, 0, 0, "t", "dev", "", line << 24, size, gfp, origin=origin)

    def _step(self, make: Callable[[int], Alloc]) -> None:
        self._line += 1
        self._run.step(make(self._line))

    def _converted(self) -> list[int]:
        return [
            gfn
            for kind, first, pages in self._log.steps
            if kind == "buffer"
            for gfn in range(first, first + pages)
        ]

    def _uniform(self, frames: list[int], private: bool) -> list[int]:
        ram = self._testbed.guest.machine.ram
        found = []
        for gfn in frames:
            page = ram.read(Gpa(Gfn(gfn) << PAGE_SHIFT), PAGE_SIZE, private=private)
            if page.count(page[0]) == PAGE_SIZE:
                found.append(gfn)
        return found

    def _rewritten(self, frames: list[int], private: bool) -> int:
        return len(self._uniform(frames, private))
