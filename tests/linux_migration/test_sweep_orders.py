# SPDX-License-Identifier: GPL-2.0-or-later
"""What the orders of a sweep make of a page, without a kernel: one store, one conversion."""

from __future__ import annotations

import pytest

from guestemu.migration.sweep.orders import ORDERS, LastPacket

BY_NAME = {order.name: order for order in ORDERS}


def packet(name: str, at: tuple[int, ...], stored_at: set[int], shared_from: int) -> LastPacket:
    """The page is stored to right after each instant of `stored_at` and shared from one on."""
    return BY_NAME[name].last_packet(
        at,
        lambda first, end: any(first <= one < end for one in stored_at),
        lambda instant: instant < shared_from,
    )


@pytest.mark.parametrize(
    ("name", "at", "stored_at", "expected"),
    [
        # nothing was stored: the first pass's packet stays
        ("D E S STOP", (1, 2, 3, 4), set(), None),
        # stored before D: sent at S by the status as of E
        ("D E S STOP", (2, 4, 6, 8), {1}, (6, True)),
        ("D E S STOP", (2, 6, 7, 8), {1}, (7, False)),
        ("E D S STOP", (2, 6, 7, 8), {1}, (7, True)),
        # stored after D: the final pass sends it, by the status of then
        ("D E S STOP", (2, 4, 6, 8), {3}, (8, False)),
        ("E D+S STOP", (2, 4, 8), {6}, (8, False)),
        # in the log and never sent before the stop
        ("D STOP", (2, 8), {1}, (8, False)),
        # the final pass takes the first copy
        ("E STOP final-reuses-status", (2, 8), {6}, (8, True)),
        ("D+E+S STOP final-reuses-status", (2, 8), {1}, (2, True)),
        # a store between fetch and clear is forgotten
        ("G+E+S C STOP clear-is-unconditional", (2, 6, 8), {4}, None),
        ("G+E+S C STOP clear-is-unconditional", (2, 6, 8), {7}, (8, False)),
    ],
)
def test_the_last_packet_of_a_page_that_becomes_shared_at_5(
    name: str, at: tuple[int, ...], stored_at: set[int], expected: LastPacket
) -> None:
    assert packet(name, at, stored_at, 5) == expected


def test_orders_are_named_in_the_notation() -> None:
    assert len(BY_NAME) == len(ORDERS)
    assert [order.instants for order in ORDERS] == [2, 2, 2, 2, 3, 3, 3, 4, 4]
