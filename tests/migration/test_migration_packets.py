# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets of the firmware again, in another order, at another address: accepted (E15), reported."""

from __future__ import annotations

import pytest
from test_migration_program import names, run, values

from guestemu.abi.errno import EINVAL
from guestemu.events.base import Event
from guestemu.events.memory import PacketArrived
from guestemu.migration.links import Packet
from guestemu.migration.wire import Wire

PASS = "host_dirty_fetch\nhost_status_copy\nhost_send\n"
START = "write D[0] value=1\nwrite D[1] value=2\nmigrate_start D[0] pages=2 firmware=1\n"
PACKETS = ("packet_replayed", "packet_reordered", "packet_moved")


def test_an_undisturbed_migration_has_nothing_to_report() -> None:
    outcome = run(f"{START}{PASS}write D[0] value=3\n{PASS}migrate_stop\nread D[0]\nread D[1]\n")
    assert names(outcome) == []


def test_an_old_packet_takes_a_page_back_in_time() -> None:
    outcome = run(
        f"{START}{PASS}write D[0] value=3\n{PASS}link_replay D[0] packet=0\nmigrate_stop\nread D[0]"
    )
    replay = 10
    assert values(outcome)[replay] == 0
    assert ("packet_replayed", replay) in names(outcome)
    assert values(outcome)[-1] == 0x0101010101010101
    assert ("lost_defined", replay + 2) in names(outcome)


def test_a_packet_is_accepted_at_another_address() -> None:
    outcome = run(f"{START}{PASS}link_replay D[1] packet=0 moved=1\nmigrate_stop\nread D[1]\n")
    assert {"packet_replayed", "packet_moved"} <= {name for name, _ in names(outcome)}
    assert values(outcome)[-1] == 0x0101010101010101


def test_packets_in_reverse_order_are_accepted_and_reported_once() -> None:
    outcome = run(f"{START}link_reverse count=2\n{PASS}{PASS}migrate_stop\nread D[0]\nread D[1]\n")
    assert names(outcome) == [("packet_reordered", 6)]
    assert values(outcome)[-2:] == [0x0101010101010101, 0x0202020202020202]


def test_what_is_held_back_arrives_before_the_end() -> None:
    outcome = run(f"{START}link_reverse count=9\n{PASS}migrate_stop\nread D[0]\nread D[1]\n")
    assert values(outcome)[-2:] == [0x0101010101010101, 0x0202020202020202]
    assert [name for name, _ in names(outcome)] == ["packet_reordered"]


def test_shared_pages_have_no_packets_of_the_firmware() -> None:
    outcome = run(
        "set_memory_decrypted D[0] pages=2\nmigrate_start D[0] pages=2 firmware=1\n"
        f"{PASS}link_replay D[0]\nmigrate_stop\n"
    )
    assert values(outcome)[5] == -EINVAL
    assert names(outcome) == []


@pytest.mark.parametrize("op", ["link_replay D[0]", "link_reverse"])
def test_without_a_migration_there_is_no_wire(op: str) -> None:
    assert values(run(op)) == [-EINVAL]


def test_a_refused_packet_is_no_delivery() -> None:
    def refuse(packet: Packet) -> None:
        raise ValueError("refused")

    arrived: list[Event] = []
    wire = Wire(refuse, arrived.append)
    with pytest.raises(ValueError, match="refused"):
        wire.send(Packet(1, True, b"", b"header"))
    assert arrived == []


def test_a_trace_says_which_packet_arrived_where() -> None:
    outcome = run(f"{START}{PASS}link_replay D[1] packet=0 moved=1\nmigrate_stop\n")
    arrived = [
        (event.number, event.gfn - event.sent_from)
        for result in outcome.results
        for event in result.events
        if isinstance(event, PacketArrived)
    ]
    assert arrived[:3] == [(0, 0), (1, 0), (0, 1)]


def test_what_arrives_when_the_migration_ends_is_in_the_trace() -> None:
    outcome = run(f"{START}link_reverse count=9\n{PASS}migrate_stop\n")
    last = [
        event.number for event in outcome.results[-1].events if isinstance(event, PacketArrived)
    ]
    assert last == sorted(last, reverse=True) != []
