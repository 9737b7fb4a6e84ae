# SPDX-License-Identifier: GPL-2.0-or-later
"""Something happened to pages: a mapping changed, a state, an access that was stopped."""

from __future__ import annotations

from typing import ClassVar

from guestemu.abi.addresses import Gva
from guestemu.events.base import Event


class LeafChange(Event, frozen=True, tag="flip"):
    """A page-table leaf got another C-bit: `pages` of 4 KiB from `gva`, now private or shared.

    `changed` counts the pages whose bit differed; `is_alias` tells an alias window from the direct
    map.
    """

    unhashed: ClassVar[frozenset[str]] = frozenset({"changed"})

    gva: Gva
    gfn: int
    pages: int
    private: bool
    changed: int
    is_alias: bool


class PacketArrived(Event, frozen=True, tag="packet-arrived"):
    """The destination of a migration accepted a packet of the SEV firmware for the frame `gfn`: the
    packet's number in the order of sending, and the frame that it was made of (E13)."""

    number: int
    sent_from: int
    gfn: int
