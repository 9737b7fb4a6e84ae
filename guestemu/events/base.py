# SPDX-License-Identifier: GPL-2.0-or-later
"""What all events have in common: their name, and which of their fields are for whom."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import ClassVar, Final

import msgspec

_VOCABULARY: Final = ("devices", "exits", "memory", "operations", "snp", "tdx")

TABLE_WRITES: Final = frozenset({"table_writes"})
"""The field by which an event is put in order with changes of leaves: the number of stores into
page tables before it since their log was read last (`GuestRam.table_writes`)."""


class Event(msgspec.Struct, frozen=True, tag_field="event"):
    """One thing that happened. A subclass sets `tag`, its name in JSON lines.

    A field `gfn` with `pages` (and `gva`, `is_alias`) says where in memory it happened; lines and
    texts also name that place as programs do, "D[3]".
    """

    unhashed: ClassVar[frozenset[str]] = frozenset()
    """Fields that a trace's hash leaves out, besides those of a place, which it has by name."""

    blank: ClassVar[frozenset[str]] = frozenset()
    """Fields that it takes for 0 or "": addresses of code and wording, which may change while the
    behaviour does not."""


def kind_of(event: Event | type[Event]) -> str:
    """The event's name in JSON lines."""
    return str(event.__struct_config__.tag)


def is_abstract(kind: type[Event]) -> bool:
    """Whether `kind` only holds fields that its subclasses share."""
    return kind.__struct_config__.tag == kind.__name__


def event_kinds() -> Mapping[str, type[Event]]:
    """Every kind of event that is defined, by its name; those of other packages when they are
    imported."""
    for module in _VOCABULARY:
        importlib.import_module(f"guestemu.events.{module}")
    return {kind_of(kind): kind for kind in _descendants(Event)}


def _descendants(kind: type[Event]) -> Iterator[type[Event]]:
    for child in kind.__subclasses__():
        if not is_abstract(child):
            yield child
        yield from _descendants(child)
