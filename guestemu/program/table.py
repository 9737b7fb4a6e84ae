# SPDX-License-Identifier: GPL-2.0-or-later
"""What the numbers of the binary form mean, as digests: two tables can be compared without either.

An op's number is written out in `OpKind` and never used for another op. Its *meaning* is what its
bytes decode to: mode and CPL, the page operand, the arguments' palettes and masks. A campaign's
directory holds the meanings of its target's ops, so a later guestemu can tell whether the bytes of
the corpus still say the same (`campaign.conversion`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from typing import Final

from guestemu.program.ops import ARGUMENT_MASKS, REGIONS, SPECS, OpKind
from guestemu.program.validity import GIANT_MEMORY, regions_of
from guestemu.program.values import page_palette, palette_of

RECORD: Final = "record"
"""The entry of a table that is about every op: the layout of a record and the regions."""
_DIGITS: Final = 12


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:_DIGITS]


@cache
def meaning_of(kind: OpKind) -> str:
    """A digest of what the bytes of an op of `kind` mean, its number included."""
    spec = SPECS[kind]
    arguments = tuple(
        (tuple(map(int, palette_of(kind, position))), ARGUMENT_MASKS[argument.sort])
        for position, argument in enumerate(spec.arguments)
    )
    return _digest(int(kind), spec.has_page, spec.has_mode, arguments)


@cache
def record_meaning() -> str:
    """A digest of what all ops have in common: regions, their sizes and the hot pages of each."""
    regions = [(int(r), REGIONS[r].pages, tuple(page_palette(r))) for r in sorted(REGIONS)]
    offered = [tuple(map(int, regions_of(memory))) for memory in (0, GIANT_MEMORY)]
    return _digest(48, regions, offered)


def op_table(kinds: Iterable[OpKind]) -> dict[str, str]:
    """The meanings of `kinds` by number in decimal, and that of the record."""
    table = {str(int(kind)): meaning_of(kind) for kind in sorted(kinds)}
    return {RECORD: record_meaning(), **table}


def table_digest() -> str:
    """One digest of the whole table, names included: equal where texts and bytes mean the same."""
    lines = [(int(kind), spec.name, spec.arguments) for kind, spec in sorted(SPECS.items())]
    return _digest(op_table(SPECS), lines)
