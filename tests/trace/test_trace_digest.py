# SPDX-License-Identifier: GPL-2.0-or-later
"""What the trace hash depends on, and what it does not."""

from __future__ import annotations

import msgspec
import pytest

from guestemu.abi.addresses import Gva
from guestemu.events.base import Event, kind_of
from guestemu.events.exits import HypercallExit
from guestemu.events.lines import Line, lines_of
from guestemu.events.memory import LeafChange
from guestemu.events.operations import (
    Oops,
    OpBegin,
    OpEnd,
    Raised,
    Stopped,
    Violation,
    Warned,
)
from guestemu.program.text import parse_text
from guestemu.report.trace.derive import events_of
from guestemu.report.trace.digest import trace_hash
from guestemu.report.trace.run import run_program

EVENTS: tuple[Event, ...] = (
    OpBegin("read D[0] offset=0"),
    HypercallExit(12, (0x1000, 1, 16, 0), -22 & 2**64 - 1, 5),
    LeafChange(Gva(0x403000), 0x403, 1, False, 1, False),
    Warned("misaligned"),
    Raised(13, 0, 0x8000, 0),
    Oops(14, 2, 0x11000, 0xFFFF888000403000),
    Stopped("shutdown", "no stack", 0x11000),
    OpEnd("ok", 7),
    Violation("status", 0, "host: frame 3", "H.4 item 1"),
)
IGNORED = {"rip", "detail", "message", "fact", "table_writes", "changed"}
PLACE = {"gva", "gfn", "is_alias", "op"}


def lines(events: tuple[Event, ...]) -> list[Line]:
    return [line for event in events for line in lines_of(0, event, lambda _event: "D[3]")]


def others(event: Event) -> list[tuple[str, Event]]:
    """`event` with each field changed in turn, but for those of a place, which have a name."""
    changed = []
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if name in PLACE:
            continue
        other = (9,) if isinstance(value, tuple) else not value if value in (True, False) else None
        if other is None:
            other = f"{value}x" if isinstance(value, str) else value + 1
        changed.append((name, msgspec.structs.replace(event, **{name: other})))
    return changed


@pytest.mark.parametrize("index", range(len(EVENTS)), ids=[kind_of(event) for event in EVENTS])
def test_every_field_counts_but_addresses_of_code_and_wording(index: int) -> None:
    for name, other in others(EVENTS[index]):
        changed = (*EVENTS[:index], other, *EVENTS[index + 1 :])
        is_equal = trace_hash(lines(changed)) == trace_hash(lines(EVENTS))
        assert is_equal == (name in IGNORED), name


def test_the_name_of_a_place_counts() -> None:
    other = [line for event in EVENTS for line in lines_of(0, event, lambda _event: "D[4]")]
    assert trace_hash(other) != trace_hash(lines(EVENTS))


def test_order_and_number_count() -> None:
    assert trace_hash(lines(EVENTS[::-1])) != trace_hash(lines(EVENTS))
    assert trace_hash(lines(EVENTS[:-1])) != trace_hash(lines(EVENTS))


def test_events_of_a_conversion_stand_in_the_order_of_time() -> None:
    ops = "answer value=-7\nset_memory_decrypted D[3] pages=1 offset=8\nunmap D[9]\nread D[9]\n"
    run = run_program(parse_text(f"guestemu-program 1\n---\n{ops}", "test"))
    events = list(events_of(run))
    second = [event for event in events if event["op"] == 1]
    assert [event["event"] for event in second] == [
        "op-begin",
        "flip",
        "exit",
        "answer",
        "warning",
        "op-end",
        "violation",
    ]
    assert (second[1]["where"], second[1]["private"]) == ("D[3]", False)
    assert second[3] == {"event": "answer", "op": 1, "kind": "hypercall", "ret": -7}
    assert [event["event"] for event in events if event["op"] == 3] == [
        "op-begin",
        "oops",
        "op-end",
    ]


def test_the_alias_region_has_its_own_name() -> None:
    run = run_program(
        parse_text("guestemu-program 1\n---\nset_memory_decrypted V[5] pages=1\n", "test")
    )
    flips = {event["where"] for event in events_of(run) if event["event"] == "flip"}
    assert flips == {"V[5]", "D[5]"}
