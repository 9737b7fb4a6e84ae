# SPDX-License-Identifier: GPL-2.0-or-later
"""What a conversion costs: one conversion as a record, and sums over many."""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, PMD_SIZE

FLUSH_CEILING: Final = 33
"""Pages above which cpa_flush() flushes the whole TLB (A26; tlb_single_page_flush_ceiling)."""
LEAF_PAGES: Final = PMD_SIZE // PAGE_SIZE


class Conversion(msgspec.Struct, frozen=True, gc=False):
    """One call of set_memory_encrypted (`private`) or set_memory_decrypted and what it did.

    `pages` from frame `gfn` on were asked for and `changed` of them changed their C-bit, by
    `leaf_changes` stores into page tables. `calls_4k`, `calls_2m` and `calls_1g` are hypercalls by
    the leaf they report; `splits` large leaves were split (A24).
    """

    gfn: int
    pages: int
    private: bool
    changed: int
    leaf_changes: int
    calls_4k: int
    calls_2m: int
    calls_1g: int
    splits: int

    @property
    def hypercalls(self) -> int:
        """Hypercalls made."""
        return self.calls_4k + self.calls_2m + self.calls_1g


class Cost(msgspec.Struct):
    """Sums over conversions; a changing record, `add` and `merge` are its only changes.

    `decryptions` and `encryptions` are calls, `pages_decrypted` and `pages_encrypted` pages whose
    C-bit changed. `extra_calls` are hypercalls that unsplit 2 MiB leaves would have saved (A28).
    `tlb_flushes` and `tlb_pages` are full and single-page TLB flushes: two rounds per conversion,
    by page or, above 33 pages, whole (A2, A26), and a whole one for each split. `cache_bytes`
    are flushed by clflush before the change, on a CPU without coherent encryption (A26).
    `exposed_pages` were shared before they were cleared (A54), `never_cleared_pages` stayed so
    (A55).
    """

    decryptions: int = 0
    encryptions: int = 0
    pages_decrypted: int = 0
    pages_encrypted: int = 0
    leaf_changes: int = 0
    calls_4k: int = 0
    calls_2m: int = 0
    calls_1g: int = 0
    extra_calls: int = 0
    splits: int = 0
    tlb_flushes: int = 0
    tlb_pages: int = 0
    cache_bytes: int = 0
    exposed_pages: int = 0
    never_cleared_pages: int = 0

    @property
    def conversions(self) -> int:
        """Calls that convert."""
        return self.decryptions + self.encryptions

    @property
    def hypercalls(self) -> int:
        """Hypercalls of all leaf sizes."""
        return self.calls_4k + self.calls_2m + self.calls_1g

    @property
    def pages_converted(self) -> int:
        """Pages whose C-bit changed, in both directions."""
        return self.pages_decrypted + self.pages_encrypted

    def add(self, conversion: Conversion) -> None:
        """Counts one conversion."""
        pages = conversion.pages
        if conversion.private:
            self.encryptions += 1
            self.pages_encrypted += conversion.changed
        else:
            self.decryptions += 1
            self.pages_decrypted += conversion.changed
            self.exposed_pages += conversion.changed
        self.leaf_changes += conversion.leaf_changes
        self.calls_4k += conversion.calls_4k
        if conversion.calls_4k != pages or pages >= LEAF_PAGES:
            self._add_large(conversion)
        if pages > FLUSH_CEILING:
            self.tlb_flushes += 2
        else:
            self.tlb_pages += 2 * pages
        if conversion.splits:
            self.splits += conversion.splits
            self.tlb_flushes += conversion.splits
        self.cache_bytes += pages * PAGE_SIZE

    def add_plain(self, pages: int, private: bool, calls: int, times: int) -> None:
        """Counts `times` conversions of `pages` pages that all changed, each by one 4 KiB leaf with
        `calls` hypercalls in all, without any split."""
        self.add_all(Conversion(0, pages, private, pages, pages, calls, 0, 0, 0), times)

    def add_all(self, conversion: Conversion, times: int) -> None:
        """Counts one conversion `times` times."""
        once = Cost()
        once.add(conversion)
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + times * getattr(once, name))

    def _add_large(self, conversion: Conversion) -> None:
        self.calls_2m += conversion.calls_2m
        self.calls_1g += conversion.calls_1g
        calls = conversion.hypercalls
        if calls:
            first = -(-conversion.gfn // LEAF_PAGES)
            whole = max(0, (conversion.gfn + conversion.pages) // LEAF_PAGES - first)
            self.extra_calls += max(0, calls - conversion.pages + whole * (LEAF_PAGES - 1))

    def merge(self, other: Cost) -> None:
        """Adds another sum."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
