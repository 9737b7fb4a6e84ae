# SPDX-License-Identifier: GPL-2.0-or-later
"""The events of a trace. Each has `event`, its kind in the JSON lines, and `op`, the operation.

Order inside an operation: op-begin; exits, answers and page-table changes as they happened;
warnings; what ended it, if it did not return; op-end; violations.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class OpBegin(msgspec.Struct, frozen=True, tag="op-begin", tag_field="event"):
    """An operation starts; `text` is its line."""

    op: int
    text: str


class Exit(msgspec.Struct, frozen=True, tag="exit", tag_field="event"):
    """The guest left for the host: "hypercall", "rdmsr" or "wrmsr" with the number and raw
    arguments (RBX, RCX, RDX, RSI; or the value of a WRMSR)."""

    op: int
    kind: str
    nr: int
    args: tuple[int, ...]
    cpl: int
    is_64bit: bool


class Answer(msgspec.Struct, frozen=True, tag="answer", tag_field="event"):
    """The host's answer to the exit before it: RAX (signed) or the MSR's value; None where the
    guest got an exception instead."""

    op: int
    kind: str
    ret: int | None


class Flip(msgspec.Struct, frozen=True, tag="flip", tag_field="event"):
    """A page-table leaf got another C-bit: `pages` of 4 KiB called `where`."""

    op: int
    where: str
    pages: int
    private: bool


class Warned(msgspec.Struct, frozen=True, tag="warning", tag_field="event"):
    """The guest reached a WARN."""

    op: int
    name: str


class Raised(msgspec.Struct, frozen=True, tag="exception", tag_field="event"):
    """A raw instruction ended in an exception."""

    op: int
    vector: int
    error_code: int | None
    rip: int
    cr2: int


class Oops(msgspec.Struct, frozen=True, tag="oops", tag_field="event"):
    """The guest's own handler gave up on an exception."""

    op: int
    vector: int
    error_code: int
    rip: int
    cr2: int


class Stopped(msgspec.Struct, frozen=True, tag="stopped", tag_field="event"):
    """An operation did not return for another reason: `word` as in `words.op_word`."""

    op: int
    word: str
    detail: str
    rip: int


class OpEnd(msgspec.Struct, frozen=True, tag="op-end", tag_field="event"):
    """An operation ended; `value` is what it gave back, if it gives anything."""

    op: int
    word: str
    value: int | None


class Violated(msgspec.Struct, frozen=True, tag="violation", tag_field="event"):
    """A check failed; `fact` is the item of the reference that demands otherwise."""

    op: int
    check: str
    message: str
    fact: str


Event: TypeAlias = (
    OpBegin | Exit | Answer | Flip | Warned | Raised | Oops | Stopped | OpEnd | Violated
)


def kind_of(event: Event) -> str:
    """The event's kind, as in the JSON lines."""
    return str(event.__struct_config__.tag)
