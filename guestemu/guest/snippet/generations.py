# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel generations that snippet guests model, in order of age: names and traits.

A generation is its assembly (`snippet-NAME.S`, built into `snippet-NAME.elf`), its own or an older
one's, and one row here. That 7.3 converts as 6.12 does is measured: tests/linux runs programs on
the snippet and on the real kernel and compares each operation.
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
    """One generation. `notifies`: a conversion makes a hypercall. `image` is the ELF file of a
    generation of another package (None: ours, by its name). `assembly` is the generation whose code
    it runs ("": its own), where the functions of a newer kernel do the same."""

    name: str
    summary: str
    notifies: bool = True
    image: Path | None = None
    assembly: str = ""


_ROWS: Final = (
    Generation(
        name="5.10",
        summary="converts and never notifies (Linux 5.10, 5.15)",
        notifies=False,
    ),
    Generation(
        name="2020",
        summary="the patch set of 2020: KVM_HC_PAGE_ENC_STATUS, notifies whatever happened",
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
    Generation(
        name="7.3",
        summary="the code of 6.12: conversions of 7.3 do the same, step by step",
        assembly="6.12",
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
