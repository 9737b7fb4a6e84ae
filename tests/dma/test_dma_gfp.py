# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from guestemu.guest.dma.gfp import may_block, parse_gfp


@pytest.mark.parametrize(
    "text",
    [
        "GFP_KERNEL",
        "GFP_KERNEL|__GFP_ZERO",
        "GFP_NOIO",
        "GFP_NOFS",
        "GFP_USER",
        "GFP_DMA|GFP_NOIO",
        "__GFP_HIGH|__GFP_DIRECT_RECLAIM",
        "0xcc0",
        "GFP_KERNEL|0x8000000",
        "__GFP_RECLAIM",
    ],
)
def test_flags_with_direct_reclaim_may_block(text: str) -> None:
    assert may_block(parse_gfp(text))


@pytest.mark.parametrize(
    "text",
    [
        "GFP_ATOMIC",
        "GFP_NOWAIT",
        "GFP_NOWAIT|__GFP_NOWARN",
        "none",
        "",
        "GFP_DMA32",
        "0x820",
        "__GFP_KSWAPD_RECLAIM",
        "GFP_TRANSHUGE_LIGHT",
        "0xzz",
        "0x" + "f" * 5000,
    ],
)
def test_flags_without_direct_reclaim_may_not(text: str) -> None:
    assert not may_block(parse_gfp(text))
