# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel generations that snippet guests model, in order of age: names and traits.

A generation is its assembly (`snippet-NAME.S`, built into `snippet-NAME.elf`) and one row here.
Source: facts A10, A1 to A9, A11 to A16, A.3 first and last column.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.guest.dma.policy import AllocatorRules, add_policy


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One generation. `notifies`: a conversion tells the host; `has_attributes`: by
    KVM_HC_MAP_GPA_RANGE (5.16 on), not by the patch set's 0 or 1. `image` is the ELF file of a
    generation of another package (None: ours, by its name)."""

    name: str
    summary: str
    notifies: bool = True
    has_attributes: bool = True
    image: Path | None = None


_ROWS: Final = (
    Generation(
        name="5.10",
        summary="converts and never notifies (Linux 5.10, 5.15)",
        notifies=False,
    ),
    Generation(
        name="2020",
        summary="the patch set of 2020: KVM_HC_PAGE_ENC_STATUS, notifies whatever happened",
        has_attributes=False,
    ),
    Generation(
        name="5.17",
        summary="as merged in 5.16: KVM_HC_MAP_GPA_RANGE, notifies whatever happened",
    ),
    Generation(
        name="6.1",
        summary="x86_platform callbacks (5.19 to about 6.5): a failed change is not notified",
    ),
    Generation(
        name="6.12",
        summary="as 6.1 with mem_enc_lock and errors from both callbacks (6.12 on)",
    ),
)

_GENERATIONS: Final = {row.name: row for row in _ROWS}
GENERATIONS: Final[Mapping[str, Generation]] = _GENERATIONS
"""By name, oldest first; those of other packages last."""


def register_generation(generation: Generation, policy: AllocatorRules) -> None:
    """Adds a generation of another package, and how its kernel allocates coherent memory.

    Raises `InputError` for a name that is taken.
    """
    if generation.name in _GENERATIONS:
        raise InputError(f"generation {generation.name!r}: the name is taken; choose another")
    add_policy(generation.name, policy)
    _GENERATIONS[generation.name] = generation
