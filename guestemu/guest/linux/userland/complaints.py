# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel prints when something is wrong with it."""

from __future__ import annotations

import re
from typing import Final

_WARNING: Final = re.compile(
    r"\[[ \d.]+\] (?:-+\[ cut here|WARNING: |BUG: |Oops|general protection|UBSAN|"
    r"refcount_t|kernel BUG at|INFO: task)[^\n]*(?:(?:\n[^\n]*){0,2}?\n[^\n]*WARNING:[^\n]*)?"
)
"""From 6.19 on a WARN with a text of its own prints that text between its first two lines."""


def printed_warnings(text: str, start: int = 0) -> list[str]:
    """The WARNs, oopses and reports of sanitizers in console text from `start` on, a line each,
    without the time."""
    return [
        found[0].splitlines()[-1].partition("] ")[2] for found in _WARNING.finditer(text, start)
    ]
