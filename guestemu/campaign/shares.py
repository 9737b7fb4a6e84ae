# SPDX-License-Identifier: GPL-2.0-or-later
"""How many inputs of a campaign are new programs, and how many are changes of known ones.

Both find what the other does not: an argument that stands in a palette is drawn sooner than it is
mutated towards, a sequence of ops grows by mutation. So the kind whose inputs cover something new
more often gets the larger share, weighed every `WEIGH_EVERY` inputs over the last few thousand. The
first `OPENING` are all new programs: a bug that one argument shows is among them as soon as without
any feedback, and one that takes a sequence waits for little. Neither kind ever stops. Where neither
covers anything new any more, both get a half. `native/mutator.c` has the same.
"""

from __future__ import annotations

from typing import Final

ALL: Final = 1 << 16
OPENING: Final = 2048
WEIGH_EVERY: Final = 256
ASSUMED: Final = 64
"""Inputs beside those that were made, one of which covered something new."""

FORGET_AT: Final = 8192
"""Inputs at which what is known counts half."""

LEAST: Final = ALL // 64
MOST: Final = ALL // 2

WORDS: Final = 6
_BELOW, _MADE, _GAINED, _LAST = 0, 1, 3, 5


class Shares:
    """The record of both kinds, changed (0) and new (1), in `words`: the share of new programs of
    `ALL`, inputs made, inputs that covered something new, the kind of the last one."""

    def __init__(self, words: memoryview | None = None) -> None:
        self._words = memoryview(bytearray(WORDS * 8)).cast("Q") if words is None else words
        for place in range(WORDS):
            self._words[place] = 0
        self._words[_BELOW] = ALL

    @property
    def fresh_below(self) -> int:
        """An input is a new program for so many of `ALL` numbers."""
        return self._words[_BELOW]

    def note(self, is_new: bool) -> None:
        """An input of a kind was made."""
        words = self._words
        words[_LAST] = is_new
        words[_MADE + is_new] += 1
        total = words[_MADE] + words[_MADE + 1]
        if total < OPENING or total % WEIGH_EVERY:
            return
        old, new = (
            (words[_GAINED + kind] + 1 << 32) // (words[_MADE + kind] + ASSUMED) for kind in (0, 1)
        )
        words[_BELOW] = min(max((new << 16) // (old + new), LEAST), MOST)
        if total >= FORGET_AT:
            for place in range(_MADE, _LAST):
                words[place] //= 2

    def gain(self) -> None:
        """The last input that was made covered something new; nothing before the first."""
        words = self._words
        last = words[_LAST]
        if words[_MADE + last]:
            words[_GAINED + last] += 1
