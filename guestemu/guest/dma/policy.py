# SPDX-License-Identifier: GPL-2.0-or-later
"""How each kernel generation converts coherent buffers and what it does when that fails (A.9).

| generation | pages converted | decrypt fails | re-encrypt fails |
| 2020, 5.10 | 1 << get_order(size) | pages freed | ignored, pages freed |
| 5.17, 6.1 | PFN_UP(size) | pages freed | warning, pages leaked |
| 6.12, 7.3 | PFN_UP(size) | pages leaked (CVE-2024-35939) | warning, pages leaked |

Source: kernel/dma/direct.c of Linux 5.10, 5.15, 6.1, 6.12, 7.1 (facts A.9, A55, B5).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

import msgspec

from guestemu.abi.addresses import get_order, pfn_up
from guestemu.abi.errors import InputError


class OnFailure(enum.Enum):
    """What happens to the pages when a conversion fails."""

    FREE = "free"
    """They go back to the page allocator, though some may be shared."""
    LEAK = "leak"
    """They are never used again."""


class AllocatorRules(msgspec.Struct, frozen=True):
    """One generation's rules. `converts_whole_order`: the tail of the order block is converted too
    (B5). `warns`: a failed re-encryption is logged. `clears_swiotlb_late`: swiotlb is cleared after
    its decryption (A.9)."""

    name: str
    converts_whole_order: bool
    decrypt_failure: OnFailure
    encrypt_failure: OnFailure
    warns: bool
    clears_swiotlb_late: bool = False

    def converted_pages(self, size: int) -> int:
        """Pages that alloc and free convert for a buffer of `size` bytes (size >= 1)."""
        return 1 << get_order(size) if self.converts_whole_order else pfn_up(size)


_ORDER_FREE: Final = (True, OnFailure.FREE, OnFailure.FREE, False)
_PAGES_FREE: Final = (False, OnFailure.FREE, OnFailure.LEAK, True)
_PAGES_LEAK: Final = (False, OnFailure.LEAK, OnFailure.LEAK, True)

_POLICIES: Final = {
    "5.10": AllocatorRules("5.10", *_ORDER_FREE, True),
    "2020": AllocatorRules("2020", *_ORDER_FREE, True),
    "5.17": AllocatorRules("5.17", *_PAGES_FREE, True),
    "6.1": AllocatorRules("6.1", *_PAGES_FREE),
    "6.12": AllocatorRules("6.12", *_PAGES_LEAK),
    "7.3": AllocatorRules("7.3", *_PAGES_LEAK),
}
POLICIES: Final[Mapping[str, AllocatorRules]] = _POLICIES
"""Policies by kernel generation; 2020 is the patch set on top of code like 5.10's."""


def add_policy(generation: str, policy: AllocatorRules) -> None:
    """The policy of a kernel generation that another package adds."""
    _POLICIES[generation] = policy


def policy_named(name: str) -> AllocatorRules:
    """The policy of a kernel generation. InputError lists the names when it is none."""
    policy = POLICIES.get(name)
    if policy is None:
        raise InputError(f"policy {name!r}: no such kernel generation; use {', '.join(POLICIES)}")
    return policy
