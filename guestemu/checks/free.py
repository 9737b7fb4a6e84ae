# SPDX-License-Identifier: GPL-2.0-or-later
"""No page is free while it is shared (H.4 item 2; CVE-2024-35939 is what happens otherwise)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

from bitarray import bitarray

from guestemu.abi.addresses import gpa_text
from guestemu.checks.base import OpView, Oracle, Violation
from guestemu.program.ops import OpKind


class FreePagesCheck(Oracle):
    """Frames in the guest's page allocator are private, in the page tables and for the host."""

    name = "free-pages"
    kinds: frozenset[OpKind] | None = frozenset(
        {OpKind.DMA_ALLOC, OpKind.DMA_FREE, OpKind.DMA_ALLOC_PAGES, OpKind.DMA_FREE_PAGES}
    )
    demands: ClassVar[Mapping[str, str]] = {
        "free-pages": (
            "Frames in the guest's page allocator are private, in the page tables and for the host."
        ),
    }
    explanations: ClassVar[Mapping[str, str]] = {
        "free-pages": (
            "The next owner of the page believes it is private and the host can read it."
        ),
    }

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        free = view.free_frames
        return () if free is None else self._judge(view, free)

    def _judge(self, view: OpView, free: bitarray) -> Iterator[Violation]:
        for who, private in (
            ("shared in the page tables", view.guest.leaf_map.private),
            ("shared for the host", view.host.private_map()),
        ):
            wrong = free & ~private
            if wrong.any():
                yield Violation(
                    self.name,
                    view.index,
                    f"{wrong.count()} free frames are {who}, the first at "
                    f"{gpa_text(wrong.index(1))}",
                    "A.9, H.4 item 2, M2",
                )
