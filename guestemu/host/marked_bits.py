# SPDX-License-Identifier: GPL-2.0-or-later
"""A record of frames that knows where it was written.

What looks for a wrong bit after an operation has to look at every bit that the operation may have
written, not at those of a guest of any size: a bitmap of 8 GiB has two million.
"""

from __future__ import annotations

from typing import Any, Final

from bitarray import bitarray

_MAX_MARKS: Final = 4096
_MIXED: Final = -1
_BITS: Final = frozenset({0, 1})
_set: Final = bitarray.__setitem__


class MarkedBits(bitarray):
    """A bitarray that notes which ranges were set to one value. Whatever else changes it in place
    counts as a change of everything; writing through its buffer is not seen.

    Slices, copies and results of operators are of this class, too, and note nothing.
    """

    _marks: list[tuple[int, int, int]] | None = None
    """First bit, bit after the last, value, since the last `refill`; None where that is not known.
    `_before` has the first `_noted` of them."""
    _noted = 0
    _is_full = False
    """The last `refill` was with 1."""
    _before: bitarray | None = None

    def begin(self) -> bitarray:
        """The bits as they are now, valid until the next `begin`. Who changes them for a while puts
        them back. Costs what was written since the last one."""
        marks, before = self._marks, self._before
        if marks is None or before is None or len(marks) > _MAX_MARKS:
            before = self._before = bitarray(self)
            self._marks = [(0, len(self), _MIXED)]
            self._noted = 1
            return before
        noted = self._noted
        if len(marks) > noted:
            for first, end, value in marks[noted:]:
                before[first:end] = value
            self._noted = len(marks)
        return before

    def is_as_told(self, before: bitarray, told: list[tuple[int, int, bool]]) -> bool:
        """Whether the bits are those that `begin` gave as `before` with each range of `told` set in
        turn (first bit, bit after the last, value). False may also mean that this is not known."""
        marks = self._marks
        if marks is None or before is not self._before:
            return False
        written = marks[self._noted :]
        if written == told:
            return True
        if len(told) != 1:
            return False
        first, end, value = told[0]
        for start, stop, _ in written:
            if start < first or stop > end:
                return False
        end = min(end, len(self))
        return first >= end or self.count(value, first, end) == end - first

    def refill(self, value: int) -> None:
        """As `setall`, which costs what was written since the last `refill`; `value` is the same
        each time."""
        marks, before = self._marks, self._before
        if marks is None or before is None:
            self.setall(value)
            return
        for first, end, _ in marks:
            _set(self, slice(first, end), value)
            before[first:end] = value
        marks.clear()
        self._noted = 0
        self._is_full = bool(value)

    def all(self) -> bool:
        """See bitarray; known without a look right after `refill(True)`."""
        return (self._marks == [] and self._is_full) or super().all()

    def __setitem__(self, place: Any, value: Any) -> None:
        marks = self._marks
        if marks is not None:
            try:
                first, end = place.start, place.stop
                is_range = 0 <= first <= end and place.step is None and value in _BITS
            except (AttributeError, TypeError, ValueError):
                is_range = False
            if is_range:
                marks.append((first, end, value))
            else:
                self._marks = None
        _set(self, place, value)


def _changes(name: str) -> Any:
    """A method of bitarray that changes it, with a note that anything may have changed."""
    method = getattr(bitarray, name)

    def change(self: MarkedBits, *arguments: Any, **named: Any) -> Any:
        self._marks = None
        return method(self, *arguments, **named)

    return change


for _name in (
    *("append", "bytereverse", "clear", "extend", "fill", "frombytes", "fromfile", "insert"),
    *("invert", "pack", "pop", "remove", "reverse", "setall", "sort", "encode", "rotate"),
    *("__delitem__", "__iadd__", "__iand__", "__ilshift__", "__imul__", "__ior__", "__irshift__"),
    "__ixor__",
):
    if hasattr(bitarray, _name):
        setattr(MarkedBits, _name, _changes(_name))
