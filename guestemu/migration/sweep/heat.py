# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of a try at each place of a run, grouped by function.

A place is kept, undefined (only bytes without a defined content differ) or lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

KEPT: Final = "."
UNDEFINED: Final = "u"
LOST: Final = "L"


class Heat(msgspec.Struct, frozen=True):
    """The tries in one function, in the order of time: a letter of this module each."""

    function: str
    places: str


def heat_of(tries: Iterable[tuple[str, str]]) -> tuple[Heat, ...]:
    """Heats by function, in the order in which the functions come first, of (function, letter)."""
    found: dict[str, list[str]] = {}
    for function, letter in tries:
        found.setdefault(function, []).append(letter)
    return tuple(Heat(function, "".join(letters)) for function, letters in found.items())
