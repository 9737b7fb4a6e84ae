# SPDX-License-Identifier: GPL-2.0-or-later
"""The agreement rule: a step agrees only if what the set-up ioctls returned, every field of every
exit in order, and all of the outcome are equal. The time a step took is not compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from guestemu.conformance.recordings.recording import (
    Event,
    Hex,
    RecordedOutcome,
    RecordedStep,
    SetupResults,
)

Value = int | str | None
"""A field as the recording writes it: wide numbers in hexadecimal, None for a field left out."""


class Disagreement(msgspec.Struct, frozen=True):
    """One field of one step: `expected` is the recording's value, `found` the model's.

    `field` is a path into the recorded line: "rc.exit", "events[0].args[1]", "out.rax". A whole
    exit that only one side has is one entry, "events[1]", with the name of the exit.
    """

    id: int
    step: int
    field: str
    expected: Value
    found: Value


def compare_step(
    step: RecordedStep, rc: SetupResults, events: Sequence[Event], out: RecordedOutcome
) -> list[Disagreement]:
    """Every difference between the recorded `step` and what the model did; empty: they agree."""
    pairs = [
        *_pairs("rc", step.rc, rc),
        *_event_pairs(step.events, events),
        *_pairs("out", step.expected, out),
    ]
    return [
        Disagreement(step.id, step.step, field, expected, found)
        for field, expected, found in pairs
        if expected != found
    ]


def _event_pairs(
    expected: Sequence[Event], found: Sequence[Event]
) -> Iterator[tuple[str, Value, Value]]:
    for index in range(max(len(expected), len(found))):
        left = expected[index] if index < len(expected) else None
        right = found[index] if index < len(found) else None
        path = f"events[{index}]"
        if left is None or right is None or type(left) is not type(right):
            yield path, _exit_name(left), _exit_name(right)
        else:
            yield from _pairs(path, left, right)


def _exit_name(event: Event | None) -> str | None:
    if event is None:
        return None
    return str(type(event).__struct_config__.tag)


def _pairs(
    path: str, expected: msgspec.Struct, found: msgspec.Struct
) -> Iterator[tuple[str, Value, Value]]:
    """Both sides of every field of two records of one type."""
    right = dict(_leaves(path, found))
    left = dict(_leaves(path, expected))
    for field in left | right:
        yield field, left.get(field), right.get(field)


def _leaves(path: str, record: msgspec.Struct) -> Iterator[tuple[str, Value]]:
    for name in record.__struct_fields__:
        value: object = getattr(record, name)
        if isinstance(value, tuple):
            for index, item in enumerate(value):
                yield f"{path}.{name}[{index}]", _written(item)
        else:
            yield f"{path}.{name}", _written(value)


def _written(value: object) -> Value:
    if isinstance(value, Hex):
        return f"{value:#x}"
    if value is None or isinstance(value, int | str):
        return value
    raise TypeError(f"no field of a recording holds a {type(value).__name__}")
