# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory-slot test that v6 to v10 make of a range: both ends are translated, nothing between.

Source: K1-e 4 and 5, M33; svm_page_enc_status_hc() as posted on 30 March 2020 (v6), 5 May 2020 (v8)
and 3 February 2021 (v10).
"""

from __future__ import annotations

END_FRAME = "end-frame"


class SlotTranslation:
    """gfn_to_pfn for a VM with one slot, [0, frames).

    `error_frames` are gfns whose translation fails (a poisoned page); none at first.
    `leaked_references` counts the page references that translations took and did not release.
    Repaired, the last page is translated instead of the one behind it and references are released.
    """

    __slots__ = ("_frames", "_is_repaired", "error_frames", "leaked_references")

    def __init__(self, frames: int, *, repaired: bool) -> None:
        self._frames = frames
        self._is_repaired = repaired
        self.error_frames: set[int] = set()
        self.leaked_references = 0

    def accepts(self, start: int, end: int) -> bool:
        """Whether [start, end) passes: no error pfn at either end; no slot at all (MMIO) is fine.

        As posted both ends are translated before either is looked at.
        """
        is_start_good = self._translate(start)
        return self._translate(end - 1 if self._is_repaired else end) and is_start_good

    def _translate(self, gfn: int) -> bool:
        if gfn in self.error_frames:
            return False
        if gfn < self._frames and not self._is_repaired:
            self.leaked_references += 1
        return True
