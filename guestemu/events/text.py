# SPDX-License-Identifier: GPL-2.0-or-later
"""An event of any kind as one line for people, made from its fields."""

from __future__ import annotations

from typing import Final

from guestemu.events.base import TABLE_WRITES, Event, kind_of
from guestemu.events.lines import PLACE, Where

_SMALL: Final = 10


def describe(event: Event, where: Where) -> str:
    """`event` as "kind place field=value …"."""
    names = event.__struct_fields__
    words = [kind_of(event)]
    if "gfn" in names:
        words.append(where(event))
    words += [
        f"{name}={_value(getattr(event, name))}"
        for name in names
        if name not in PLACE and name not in TABLE_WRITES
    ]
    return " ".join(words)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:#x}" if value >= _SMALL else str(value)
    if isinstance(value, tuple):
        return ",".join(map(_value, value)) or "-"
    return "-" if value is None else str(value)
