# SPDX-License-Identifier: GPL-2.0-or-later
"""A large table of names and numbers that is read back without making an object of each entry.

A kernel has 150,000 symbols and as many named types, of which a run needs some thirty. As a dict
they take a tenth of a second to decode.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Final

import msgspec

_END: Final = b"\0"


class PackedNames(msgspec.Struct, frozen=True):
    """`names` in their order, each ended by a zero byte; `starts` where each begins and `order` the
    entries sorted by name (32-bit numbers); `values` the 64-bit numbers."""

    names: bytes
    starts: bytes
    order: bytes
    values: bytes


class NameTable(Mapping[str, int]):
    """The names of a `PackedNames`, in their order. Looking up searches; names unpack them all."""

    def __init__(self, packed: PackedNames) -> None:
        """Raises ValueError for tables that do not fit together."""
        self._names = packed.names
        self._starts = array("I", packed.starts)
        self._order = array("I", packed.order)
        self._values = array("Q", packed.values)
        if not len(self._starts) == len(self._order) == len(self._values):
            raise ValueError("a table of names is damaged")
        self._all: dict[str, int] | None = None

    def _name(self, index: int) -> bytes:
        start = self._starts[index]
        return self._names[start : self._names.index(_END, start)]

    def __getitem__(self, name: str) -> int:
        if self._all is not None:
            return self._all[name]
        wanted = name.encode()
        at = bisect_left(self._order, wanted, key=self._name)
        if at == len(self._order) or self._name(self._order[at]) != wanted:
            raise KeyError(name)
        return self._values[self._order[at]]

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[str]:
        return iter(self.unpacked())

    def keys(self) -> KeysView[str]:
        """See `Mapping`."""
        return self.unpacked().keys()

    def items(self) -> ItemsView[str, int]:
        """See `Mapping`."""
        return self.unpacked().items()

    def values(self) -> ValuesView[int]:
        """See `Mapping`; without the names."""
        return _Numbers(self)

    @property
    def numbers(self) -> array[int]:
        """All numbers, in the order of the names."""
        return self._values

    def unpacked(self) -> dict[str, int]:
        """All of them."""
        if self._all is None:
            names = self._names.decode().split("\0")
            self._all = dict(zip(names, self._values, strict=False))
        return self._all


class _Numbers(ValuesView[int]):
    def __init__(self, table: NameTable) -> None:
        super().__init__(table)
        self._numbers = table.numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)


def pack_names(table: Mapping[str, int]) -> PackedNames:
    """What `NameTable` reads."""
    names = [name.encode() for name in table]
    starts = array("I")
    at = 0
    for name in names:
        starts.append(at)
        at += len(name) + 1
    order = array("I", sorted(range(len(names)), key=names.__getitem__))
    return PackedNames(
        names=b"".join(name + _END for name in names),
        starts=starts.tobytes(),
        order=order.tobytes(),
        values=array("Q", table.values()).tobytes(),
    )
