# SPDX-License-Identifier: GPL-2.0-or-later
"""What the trace hash depends on, and what it does not."""

from __future__ import annotations

import msgspec
import pytest

from guestemu.program.text import parse_text
from guestemu.trace.derive import events_of
from guestemu.trace.digest import trace_hash
from guestemu.trace.events import (
    Answer,
    Event,
    Exit,
    Flip,
    Oops,
    OpBegin,
    OpEnd,
    Raised,
    Stopped,
    Violated,
    Warned,
    kind_of,
)
from guestemu.trace.run import run_program

EVENTS: tuple[Event, ...] = (
    OpBegin(0, "read D[0] offset=0"),
    Exit(0, "hypercall", 12, (0x1000, 1, 16, 0), 0, True),
    Answer(0, "hypercall", -22),
    Flip(0, "D[3]", 1, False),
    Warned(0, "misaligned"),
    Raised(0, 13, 0, 0x8000, 0),
    Oops(0, 14, 2, 0x11000, 0xFFFF888000403000),
    Stopped(0, "shutdown", "no stack", 0x11000),
    OpEnd(0, "ok", 7),
    Violated(0, "status", "host: frame 3", "H.4 item 1"),
)
IGNORED = {"rip", "detail", "message", "fact"}


def others(event: Event) -> list[tuple[str, Event]]:
    """`event` with each field changed in turn."""
    changed = []
    for name in event.__struct_fields__:
        value = getattr(event, name)
        other = (9,) if isinstance(value, tuple) else not value if value in (True, False) else None
        if other is None:
            other = f"{value}x" if isinstance(value, str) else value + 1
        changed.append((name, msgspec.structs.replace(event, **{name: other})))
    return changed


@pytest.mark.parametrize("index", range(len(EVENTS)), ids=[kind_of(event) for event in EVENTS])
def test_every_field_counts_but_addresses_of_code_and_wording(index: int) -> None:
    for name, other in others(EVENTS[index]):
        changed = (*EVENTS[:index], other, *EVENTS[index + 1 :])
        assert (trace_hash(changed) == trace_hash(EVENTS)) == (name in IGNORED), name


def test_order_and_number_count() -> None:
    assert trace_hash(EVENTS[::-1]) != trace_hash(EVENTS)
    assert trace_hash(EVENTS[:-1]) != trace_hash(EVENTS)


def test_events_of_a_conversion_stand_in_the_order_of_time() -> None:
    ops = "answer value=-7\nset_memory_decrypted D[3] pages=1 offset=8\nunmap D[9]\nread D[9]\n"
    run = run_program(parse_text(f"guestemu-program 1\n---\n{ops}", "test"))
    events = list(events_of(run))
    second = [event for event in events if event.op == 1]
    assert [kind_of(event) for event in second] == [
        "op-begin",
        "flip",
        "exit",
        "answer",
        "warning",
        "op-end",
        "violation",
    ]
    assert second[1] == Flip(1, "D[3]", 1, False)
    assert second[3] == Answer(1, "hypercall", -7)
    assert [kind_of(event) for event in events if event.op == 3] == ["op-begin", "oops", "op-end"]


def test_the_alias_region_has_its_own_name() -> None:
    run = run_program(
        parse_text("guestemu-program 1\n---\nset_memory_decrypted V[5] pages=1\n", "test")
    )
    flips = {event.where for event in events_of(run) if isinstance(event, Flip)}
    assert flips == {"V[5]", "D[5]"}
