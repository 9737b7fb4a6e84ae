# SPDX-License-Identifier: GPL-2.0-or-later
"""Events as JSON lines, and back.

A line has `event` and `op`, the operation during which it happened, then `where` if the event has a
place, then the event's fields. An exit is two lines, `exit` and `answer`, both with its `kind`; the
answer to a hypercall is RAX as the signed number that it is. Nothing is left out: `read_lines`
gives back the events that were written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, TypeAlias

import msgspec

from guestemu.abi.addresses import U64_MASK, to_signed
from guestemu.abi.errors import InputError
from guestemu.events.base import Event, event_kinds, kind_of
from guestemu.events.exits import AnsweredExit

Line: TypeAlias = dict[str, object]
Where: TypeAlias = Callable[[Event], str]
"""Names the place of an event, as "D[3]"."""

PLACE: Final = frozenset({"gfn", "gva", "is_alias"})
"""Fields beside which a line has `where`: they differ between guests that place regions
differently."""

_SIGN: Final = 63

EXIT: Final = "exit"
ANSWER: Final = "answer"


def answer_of(record: AnsweredExit) -> int | None:
    """RAX of a hypercall as the signed 64-bit value it is; an MSR's value as it is."""
    ret = record.ret
    if ret is None or not ret >> _SIGN or not record.is_hypercall:
        return ret
    return to_signed(ret, 64)


def lines_of(op: int, event: Event, where: Where) -> Iterator[Line]:
    """The line or lines of an event of operation `op`."""
    fields: Line = {name: getattr(event, name) for name in event.__struct_fields__}
    fields.pop("op", None)
    kind = kind_of(event)
    if isinstance(event, AnsweredExit):
        del fields["ret"]
        yield {"event": EXIT, "op": op, "kind": kind, **fields}
        yield {"event": ANSWER, "op": op, "kind": kind, "ret": answer_of(event)}
        return
    head: Line = {"event": kind, "op": op}
    if "gfn" in fields:
        head["where"] = where(event)
    yield head | fields


def hashed_part(line: Line, kinds: Mapping[str, type[Event]]) -> Line:
    """What a trace's hash takes of a line, `kinds` being `event_kinds()`."""
    name = str(line["kind"] if line["event"] in {EXIT, ANSWER} else line["event"])
    kind = kinds[name]
    return {
        key: ("" if isinstance(value, str) else 0) if key in kind.blank else value
        for key, value in line.items()
        if key not in kind.unhashed and key not in PLACE
    }


def read_lines(lines: Iterable[Line]) -> Iterator[tuple[int, Event]]:
    """The events of `lines` with their operations. Raises `InputError` for any other line."""
    kinds = event_kinds()
    left: Line | None = None
    for number, line in enumerate(lines, 1):
        if line.get("event") == EXIT:
            left = line
            continue
        if line.get("event") == ANSWER and left is not None:
            ret = line.get("ret")
            answer = ret & U64_MASK if isinstance(ret, int) else ret
            line, left = {**left, "event": left.get("kind"), "ret": answer}, None
        name = line.get("event")
        kind = kinds.get(str(name))
        op = line.get("op")
        if kind is None or not isinstance(op, int):
            raise InputError(f"line {number}: no event {name!r}; use one of {', '.join(kinds)}")
        try:
            yield op, msgspec.convert(line, kind)
        except msgspec.ValidationError as error:
            raise InputError(f"line {number}: {name}: {error}") from error
