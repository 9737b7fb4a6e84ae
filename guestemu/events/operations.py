# SPDX-License-Identifier: GPL-2.0-or-later
"""An operation of a program began, ended, warned, failed, or broke a check's rule."""

from __future__ import annotations

from typing import ClassVar

from guestemu.events.base import Event


class OpBegin(Event, frozen=True, tag="op-begin"):
    """An operation starts; `text` is its line."""

    text: str


class OpEnd(Event, frozen=True, tag="op-end"):
    """An operation ended; `word` says how, `value` is what it returned, if anything."""

    word: str
    value: int | None


class Warned(Event, frozen=True, tag="warning"):
    """The guest reached a WARN."""

    name: str


class Raised(Event, frozen=True, tag="exception"):
    """A raw instruction ended in an exception."""

    blank: ClassVar[frozenset[str]] = frozenset({"rip"})

    vector: int
    error_code: int | None
    rip: int
    cr2: int


class Oops(Event, frozen=True, tag="oops"):
    """The guest's own handler gave up on an exception."""

    blank: ClassVar[frozenset[str]] = frozenset({"rip"})

    vector: int
    error_code: int
    rip: int
    cr2: int


class Stopped(Event, frozen=True, tag="stopped"):
    """An operation did not return for another reason: `word` as in `OpEnd`."""

    blank: ClassVar[frozenset[str]] = frozenset({"rip", "detail"})

    word: str
    detail: str
    rip: int


class Violation(Event, frozen=True, tag="violation"):
    """A property that does not hold.

    `check` names it, `op` is the index of the operation after which it was seen, `message` says
    what was expected and what there is, `fact` the item of the reference that demands it.
    """

    blank: ClassVar[frozenset[str]] = frozenset({"message", "fact"})

    check: str
    op: int
    message: str
    fact: str = ""
