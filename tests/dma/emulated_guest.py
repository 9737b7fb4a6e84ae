# SPDX-License-Identifier: GPL-2.0-or-later
"""A testbed for DMA traces, and one whose guest has forgotten its hypercalls."""

from __future__ import annotations

import msgspec
import pytest

from guestemu.guest.snippet import guest as snippet
from guestemu.guest.snippet.elf import SnippetImage, load_snippet
from guestemu.program.program import Header
from guestemu.runner.testbed import Testbed, build_testbed

VMMCALL = b"\x0f\x01\xd9"
NOPS = b"\x90\x90\x90"


def dma_testbed(guest: str = "snippet:6.1") -> Testbed:
    return build_testbed(Header(guest=guest, memory=256))


def load_without_vmmcall(generation: str) -> SnippetImage:
    """The generation's code with NOPs in place of every VMMCALL."""
    image = load_snippet(generation)
    segments = tuple(
        msgspec.structs.replace(segment, data=segment.data.replace(VMMCALL, NOPS))
        for segment in image.segments
    )
    assert segments != image.segments
    return msgspec.structs.replace(image, segments=segments)


def remove_vmmcall(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snippet guests booted from now on tell the host nothing."""
    monkeypatch.setattr(snippet, "load_snippet", load_without_vmmcall)
