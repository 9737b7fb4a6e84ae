# SPDX-License-Identifier: GPL-2.0-or-later
"""What to say about a name that is not known, and a command line that can be pasted."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

_LONGEST: Final = 40
_KNOWN_SHOWN: Final = 240


def nearest(word: str, known: Iterable[str]) -> str:
    """A remedy for an unknown `word`: the nearest of `known`, or as many as fit a line."""
    known = sorted(known)
    close = get_close_matches(word[:_LONGEST], known, 1)
    if not close:
        folded = {name.lower(): name for name in known}
        close = [folded[name] for name in get_close_matches(word[:_LONGEST].lower(), folded, 1)]
    if close:
        return f"did you mean {close[0]}?"
    text = ", ".join(known)
    if len(text) > _KNOWN_SHOWN:
        text = text[:_KNOWN_SHOWN].rpartition(",")[0] + f", ... ({len(known)} in all)"
    return f"use one of {text}"


def command_line(*words: object) -> str:
    """`guestemu WORDS ...`, quoted for a shell."""
    return shlex.join(["guestemu", *map(str, words)])


def plural(count: int, noun: str) -> str:
    """`1 page`, `2 pages`, `1,000 pages`; irregular nouns as "entry/entries"."""
    one, _, many = noun.partition("/")
    return f"{count:,} {one if count == 1 else many or one + 's'}"
