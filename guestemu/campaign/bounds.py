# SPDX-License-Identifier: GPL-2.0-or-later
"""How much an exhaustive campaign means by "everything"."""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi.errors import InputError

MAX_VALUES: Final = 64


class Bounds(msgspec.Struct, frozen=True):
    """Programs of 1 to `ops` ops, with at most `values` values for each argument and pages."""

    ops: int = 1
    values: int = 4


def parse_bounds(text: str | None, max_ops: int) -> Bounds:
    """`OPS` or `OPS,VALUES`, as in --bounds. Raises `InputError`."""
    if text is None:
        return Bounds()
    words = text.split(",")
    try:
        numbers = [int(word) for word in words]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 2 or len(words) > 2:
        raise InputError(f"--bounds {text}: write OPS or OPS,VALUES, such as 2,3")
    bounds = Bounds(*numbers)
    if not 1 <= bounds.ops <= max_ops:
        raise InputError(f"--bounds {text}: OPS is from 1 to {max_ops} for this target")
    if not 1 <= bounds.values <= MAX_VALUES:
        raise InputError(f"--bounds {text}: VALUES is from 1 to {MAX_VALUES}")
    return bounds
