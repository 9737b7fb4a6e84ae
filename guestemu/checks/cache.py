# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a cache that tags its lines with the C-bit lost what was written: `cache_loss` (E32).

Only on machines with such a cache. The check keeps, byte by byte, what was last written to a page
through its present mapping: by the guest, or by the VMM through its own mapping of any page. After
every operation those bytes are read as their writer would read them. A byte that differs
was overwritten by the write-back of a stale line of the other alias, or a stale line hides it.

Not judged: pages that were written through an alias window whose C-bit is not that of the direct
map, or by the VMM while private (both break the rules); pages that an unaligned store reached from
the page before (the machine is not exact there); bytes from before the last change of a page's
C-bit by set_memory_encrypted and _decrypted, which keep nothing (A54). Early conversions keep all
(A37) and are judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa, gpa_text
from guestemu.abi.regions import Region
from guestemu.checks.base import OpView, Oracle, Violation
from guestemu.machine.cache import CachedRam
from guestemu.program.ops import Op, OpKind

CACHE_LOSS: Final = "cache_loss"

_EARLY: Final = frozenset({OpKind.EARLY_SET_MEMORY_ENCRYPTED, OpKind.EARLY_SET_MEMORY_DECRYPTED})
_DMA: Final = frozenset(
    {OpKind.DMA_ALLOC, OpKind.DMA_FREE, OpKind.DMA_ALLOC_PAGES, OpKind.DMA_FREE_PAGES}
)
_ONES: Final = b"\1" * PAGE_SIZE


@dataclass(slots=True)
class _Written:
    """What one writer expects of a page: its bytes, and 1 for each that is defined."""

    content: bytearray = field(default_factory=lambda: bytearray(PAGE_SIZE))
    defined: bytearray = field(default_factory=lambda: bytearray(PAGE_SIZE))

    def store(self, value: int, first: int, last: int) -> None:
        self.content[first:last] = bytes([value]) * (last - first)
        self.defined[first:last] = _ONES[first:last]

    def forget(self, first: int = 0, last: int = PAGE_SIZE) -> None:
        self.defined[first:last] = bytes(last - first)


class CacheCheck(Oracle):
    """See the module's docstring. Its ledger starts anew with the first operation of a run."""

    name = CACHE_LOSS
    kinds: frozenset[OpKind] | None = None

    demands: ClassVar[Mapping[str, str]] = {
        CACHE_LOSS: "A page holds what was written last through its present mapping.",
    }
    explanations: ClassVar[Mapping[str, str]] = {
        CACHE_LOSS: (
            "A stale cache line of the page's other mapping hides what was written, or is "
            "written over it."
        ),
    }

    def __init__(self) -> None:
        self._guest: dict[int, _Written] = {}
        self._vmm: dict[int, _Written] = {}
        self._spoilt: set[int] = set()

    def after(self, view: OpView) -> Iterable[Violation]:
        """Notes stores and flips, then looks at every page that was written."""
        ram = view.guest.machine.ram
        if not isinstance(ram, CachedRam):
            return
        op = view.op
        if not view.index or op.kind in _DMA or op.kind is OpKind.MIGRATE_STOP:
            self._guest.clear()
            self._vmm.clear()
            self._spoilt.clear()
        is_kept = op.kind in _EARLY and view.outcome.value == 0
        for flip in view.flips:
            self._flipped(flip.gfn, flip.pages, is_kept)
        if op.kind is OpKind.WRITE:
            self._guest_store(view)
        elif op.kind is OpKind.HOST_WRITE:
            self._vmm_store(view)
        yield from self._judge(view, ram)

    def _flipped(self, gfn: int, pages: int, is_kept: bool) -> None:
        for frame, written in self._guest.items():
            if gfn <= frame < gfn + pages and not is_kept:
                written.forget()
        for frame, written in self._vmm.items():
            if gfn <= frame < gfn + pages:
                written.forget()

    def _guest_store(self, view: OpView) -> None:
        value, offset, size = view.op.arguments
        if view.outcome.value is None:  # who knows how far it came
            self._guest.clear()
            self._vmm.clear()
            return
        for gfn, first, last in _pages(view, view.op, offset, size):
            if gfn in self._vmm:
                self._vmm[gfn].forget(first, last)
            if _disagrees(view, gfn) or (not first and offset & 7):
                self._spoilt.add(gfn)
            self._guest.setdefault(gfn, _Written()).store(value, first, last)

    def _vmm_store(self, view: OpView) -> None:
        value, offset, size = view.op.arguments
        for gfn, first, last in _pages(view, view.op, offset, min(size, PAGE_SIZE - offset)):
            self._vmm.setdefault(gfn, _Written()).store(value, first, last)
            if view.guest.leaf_map.private[gfn]:
                self._spoilt.add(gfn)
            elif gfn in self._guest:
                self._guest[gfn].forget(first, last)

    def _judge(self, view: OpView, ram: CachedRam) -> Iterable[Violation]:
        private = view.guest.leaf_map.private
        for who, ledger in (("the guest", self._guest), ("the VMM", self._vmm)):
            for gfn, written in ledger.items():
                is_private = who == "the guest" and bool(private[gfn])
                if who == "the guest" and gfn in self._spoilt:
                    continue
                shown = ram.peek(Gpa(gfn << PAGE_SHIFT), PAGE_SIZE, is_private)
                if shown == written.content:
                    continue
                wrong = [
                    place
                    for place in range(PAGE_SIZE)
                    if written.defined[place] and shown[place] != written.content[place]
                ]
                if wrong:
                    place = wrong[0]
                    written.forget()
                    message = (
                        f"{gpa_text(gfn)}, read with C={int(is_private)}: byte {place:#x} is "
                        f"{shown[place]:#04x}, {who} wrote {written.content[place]:#04x} "
                        f"({len(wrong)} bytes differ)"
                    )
                    yield Violation(CACHE_LOSS, view.index, message, "E32")


def _disagrees(view: OpView, gfn: int) -> bool:
    """The operation stores through the alias window, whose C-bit for this frame is another one."""
    if view.op.region is not Region.V:
        return False
    leaf_map = view.guest.leaf_map
    place = gfn - (view.guest.gpa(Region.V, 0) >> PAGE_SHIFT)
    return place < len(leaf_map.alias) and leaf_map.alias[place] != leaf_map.private[gfn]


def _pages(view: OpView, op: Op, offset: int, size: int) -> Iterable[tuple[int, int, int]]:
    """What a store to consecutive frames touches: (frame, first byte, byte behind the last)."""
    start = view.guest.gpa(op.region, op.page) + offset
    end = start + size
    frames = view.guest.machine.ram.frames
    while start < end:
        base = start & ~(PAGE_SIZE - 1)
        last = min(end - base, PAGE_SIZE)
        if base >> PAGE_SHIFT < frames:
            yield base >> PAGE_SHIFT, start - base, last
        start = base + PAGE_SIZE
