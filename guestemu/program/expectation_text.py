# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run should give, as lines of text.

    expect outcome ok
    expect hypercalls 3
    expect result 0 at 2
    expect violation status-matches-pte at 1

`at` names the op, counted from 0; some names are only about the whole run, some only about one op,
`violation` may be about either. The value stays as written.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from guestemu.program.lexer import Place, Word, nearest, parse_number, quote, shown
from guestemu.program.program import Expectation

KEYWORD: Final = "expect"
_AT: Final = "at"


class ExpectationSpec(msgspec.Struct, frozen=True):
    """One name: whether `at OP` is required (True), forbidden (False) or free (None), and which
    values it takes (`pattern`, in words: `values`)."""

    per_op: bool | None
    pattern: str
    values: str


_NUMBER: Final = r"-?(0x[0-9a-fA-F]{1,16}|0|[1-9][0-9]{0,19})"

EXPECTATIONS: Final[dict[str, ExpectationSpec]] = {
    "outcome": ExpectationSpec(None, r"[a-z0-9_:.-]+", "an outcome such as ok"),
    "violation": ExpectationSpec(None, r"[a-z0-9_:.-]+", "a check's name or none"),
    "hypercalls": ExpectationSpec(False, r"[0-9]{1,20}", "a decimal count of at most 20 digits"),
    "trace_hash": ExpectationSpec(False, r"[0-9a-f]{1,64}", "lower-case hexadecimal digits"),
    "result": ExpectationSpec(True, _NUMBER, "a 64-bit number"),
    "value": ExpectationSpec(True, _NUMBER, "a 64-bit number"),
    "exception": ExpectationSpec(True, r"[0-9]{1,3}|none", "a vector or none"),
    "warning": ExpectationSpec(True, r"[a-z0-9_]+", "the name of a WARN or none"),
}
"""Every name an `expect` line may have."""


def parse_expectation(words: list[Word], place: Place, ops: int) -> Expectation:
    """The expectation that a line's words say (the first is `expect`), in a program of `ops` ops.

    Raises `InputError`.
    """
    if len(words) not in (3, 5) or (len(words) == 5 and words[3] != Word(_AT)):
        raise place.error("an expectation is: expect NAME VALUE, or expect NAME VALUE at OP")
    name, value = words[1].text, words[2].text
    spec = EXPECTATIONS.get(name)
    if spec is None or words[1].quoted:
        raise place.error(f"no expectation {shown(name)}; {nearest(name, EXPECTATIONS)}")
    if not re.fullmatch(spec.pattern, value):
        raise place.error(f"{name} {shown(value)}; give {spec.values}")
    op = parse_number(words[4].text, place, "op") if len(words) == 5 else None
    if op is None and spec.per_op:
        raise place.error(f"{name} is about one op; add: at OP")
    if op is not None and spec.per_op is False:
        raise place.error(f"{name} is about the whole run; remove: at {words[4].text}")
    if op is not None and op >= ops:
        raise place.error(f"there is no op {op}; the program has {ops}, counted from 0")
    return Expectation(name, value, op)


def format_expectation(expectation: Expectation) -> str:
    """The line of `expectation`."""
    line = f"{KEYWORD} {expectation.name} {quote(expectation.value)}"
    return line if expectation.op is None else f"{line} {_AT} {expectation.op}"
