# SPDX-License-Identifier: GPL-2.0-or-later
"""Orders of a host's steps, as what they make of one page: the last packet that was sent of it.

An order is evaluated on tuples of instants, one for each of its steps and the last one for the
stop. It says which packet the destination has of the page when it starts: the content as of one
instant, sent by the status as of that or an earlier one. Steps: D the dirty log is fetched and
cleared, E the status is copied, S the page is sent if D had it, by E. Joined by "+" they share an
instant. Before the first step a first pass has sent the page as it was when the window began. At
the stop a page that was written since D is sent by the status of then, if the order does not say
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

LastPacket = tuple[int, bool] | None
"""Instant of the content and whether it was sent as private; None: the first pass's."""

Stored = Callable[[int, int], bool]
"""Whether the page was stored to between two instants."""

Status = Callable[[int], bool]
"""Whether the host takes the page for private at an instant."""

_Choose = Callable[[tuple[int, ...], Stored, Status], LastPacket]


class SweepOrder(msgspec.Struct, frozen=True):
    """One order. `is_right`: no tuple of it may lose. `steps` instants make a tuple."""

    name: str
    steps: int
    is_right: bool
    choose: _Choose


def _passes(live: LastPacket, seen: int, stop: int, stored: Stored, status: Status) -> LastPacket:
    """The packet of a live pass, unless the final pass sends the page once more."""
    return (stop, status(stop)) if stored(seen, stop) else live


def _at_once(at: tuple[int, ...], stored: Stored, status: Status) -> LastPacket:
    first, stop = at
    live = (first, status(first)) if stored(0, first) else None
    return _passes(live, first, stop, stored, status)


def _log_then_stop(at: tuple[int, ...], stored: Stored, status: Status) -> LastPacket:
    _, stop = at
    return (stop, status(stop)) if stored(0, stop) else None


def _status_then_stop(at: tuple[int, ...], stored: Stored, status: Status) -> LastPacket:
    first, stop = at
    return (stop, status(first)) if stored(0, stop) else None


def _status_reused(at: tuple[int, ...], stored: Stored, status: Status) -> LastPacket:
    first, stop = at
    live = (first, status(first)) if stored(0, first) else None
    return (stop, status(first)) if stored(first, stop) else live


def _log_first(at: tuple[int, ...], stored: Stored, status: Status) -> LastPacket:
    log, copied, stop = at
    live = (copied, status(copied)) if stored(0, log) else None
    return _passes(live, log, stop, stored, status)


def _status_first(at: tuple[int, ...], stored: Stored, status: Status) -> LastPacket:
    copied, log, stop = at
    live = (log, status(copied)) if stored(0, log) else None
    return _passes(live, log, stop, stored, status)


def _log_first_send_apart(at: tuple[int, ...], stored: Stored, status: Status) -> LastPacket:
    log, copied, sent, stop = at
    live = (sent, status(copied)) if stored(0, log) else None
    return _passes(live, log, stop, stored, status)


def _status_first_send_apart(at: tuple[int, ...], stored: Stored, status: Status) -> LastPacket:
    copied, log, sent, stop = at
    live = (sent, status(copied)) if stored(0, log) else None
    return _passes(live, log, stop, stored, status)


def _cleared_late(at: tuple[int, ...], stored: Stored, status: Status) -> LastPacket:
    first, cleared, stop = at
    live = (first, status(first)) if stored(0, first) else None
    return _passes(live, cleared, stop, stored, status)


ORDERS: Final = (
    SweepOrder("D+E+S, stop", 2, True, _at_once),
    SweepOrder("D, E+S at the stop", 2, True, _log_then_stop),
    SweepOrder("E, D+S at the stop", 2, False, _status_then_stop),
    SweepOrder("D+E+S, stop by the first E", 2, False, _status_reused),
    SweepOrder("D, E+S, stop", 3, True, _log_first),
    SweepOrder("E, D+S, stop", 3, False, _status_first),
    SweepOrder("D+E+S, log cleared after S, stop", 3, False, _cleared_late),
    SweepOrder("D, E, S, stop", 4, True, _log_first_send_apart),
    SweepOrder("E, D, S, stop", 4, False, _status_first_send_apart),
)
"""As the tables show them."""
