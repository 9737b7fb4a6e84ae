# SPDX-License-Identifier: GPL-2.0-or-later
"""What guest and host do in the order model: guest steps, host steps, scripts and orders (G.2)."""

from __future__ import annotations

import enum
from typing import Final, Protocol, TypeAlias, TypeVar

import msgspec


class Pte(msgspec.Struct, frozen=True):
    """The guest changes the C-bit of its leaf; `to_shared` clears it. No byte changes."""

    to_shared: bool


class StatusHypercall(msgspec.Struct, frozen=True):
    """The guest notifies: the host's status of the page becomes shared or private."""

    to_shared: bool


class Write(msgspec.Struct, frozen=True):
    """The guest writes the value `token` (a number from 0 on) through its current PTE."""

    token: int


class Chunk(msgspec.Struct, frozen=True):
    """KVM asks user space for a chunk of a TD's MapGPA that the page is not in (T26); the page's
    own chunk is the `StatusHypercall` behind it. Nothing of the page changes."""

    to_shared: bool


GuestStep: TypeAlias = Pte | StatusHypercall | Write | Chunk


class HostStep(enum.Enum):
    """One atomic step of a migration pass over the page; the value is its letter."""

    AUTO_CLEAR = "D"
    """Fetch of a dirty log that clears itself: into the snapshot, log empty."""

    GET = "G"
    """Fetch of a log with manual protect: into the snapshot, log unchanged."""

    CLEAR = "C"
    """The log of the page is cleared if it is in the snapshot."""

    ENC = "E"
    """The status (private or shared) is copied."""

    SEND = "S"
    """If in the snapshot, the page is sent by the copied status and leaves the snapshot."""

    SEND_LIVE = "L"
    """As `SEND`, by the status as it is now."""


_Said = TypeVar("_Said")
_SaidOut = TypeVar("_SaidOut", covariant=True)


class World(Protocol[_SaidOut]):
    """Something that a host can migrate: one page of tokens (`order_model`), a machine's memory
    (`migration.steps`), what a kernel did between recorded instants (`sweep.orders`)."""

    def fetch(self, clear: bool) -> _SaidOut:
        """What the dirty log has comes into the snapshot; with `clear` it leaves the log."""

    def clear(self) -> _SaidOut:
        """The log is cleared of what is in the snapshot."""

    def copy_status(self) -> _SaidOut:
        """The host's record is copied."""

    def send(self, live: bool) -> _SaidOut:
        """What is in the snapshot is sent and leaves it, by the copied status or (`live`) by the
        record as it is now."""


def perform(step: HostStep, world: World[_Said]) -> _Said:
    """One step of a host in `world`; returns what the world's method does."""
    match step:
        case HostStep.AUTO_CLEAR | HostStep.GET:
            return world.fetch(step is HostStep.AUTO_CLEAR)
        case HostStep.CLEAR:
            return world.clear()
        case HostStep.ENC:
            return world.copy_status()
        case HostStep.SEND | HostStep.SEND_LIVE:
            return world.send(step is HostStep.SEND_LIVE)


SENDS: Final = frozenset({HostStep.SEND, HostStep.SEND_LIVE})


class Script(msgspec.Struct, frozen=True):
    """The guest's steps, in their order."""

    name: str
    steps: tuple[GuestStep, ...]


class Order(msgspec.Struct, frozen=True):
    """The steps of every pass. `row` is the row of the G.2 table, None for a user's own order."""

    name: str
    steps: tuple[HostStep, ...]
    row: int | None = None


_TO_SHARED: Final = (Pte(True), StatusHypercall(True))
_TO_PRIVATE: Final = (Pte(False), StatusHypercall(False))

SCRIPTS: Final = (
    Script("S1", (*_TO_SHARED, Write(1))),
    Script("S1b", (StatusHypercall(True), Pte(True), Write(1))),
    Script("S1c", (Pte(True), Write(1), StatusHypercall(True))),
    Script("S2", (*_TO_SHARED, Write(1), *_TO_PRIVATE, Write(2))),
    Script("S3", (Write(1), *_TO_SHARED, *_TO_PRIVATE)),
    Script("S0", (Pte(True), Write(1), Write(2), StatusHypercall(True))),
)
"""The scripts of G.2: S1 PTE, hypercall, write; S1b hypercall first; S1c write before the
hypercall; S2 there and back with a write each; S3 there and back without rewriting; S0 two writes
before the hypercall (G.1 R4, first scenario)."""

_D: Final = HostStep.AUTO_CLEAR
_G: Final = HostStep.GET
_C: Final = HostStep.CLEAR
_E: Final = HostStep.ENC
_S: Final = HostStep.SEND
_L: Final = HostStep.SEND_LIVE

ORDERS: Final = (
    Order("auto, enc, send", (_D, _E, _S), 1),
    Order("enc, auto, send", (_E, _D, _S), 2),
    Order("GET, enc, CLEAR, send", (_G, _E, _C, _S), 3),
    Order("GET, CLEAR, enc, send", (_G, _C, _E, _S), 4),
    Order("auto, send-live", (_D, _L), 5),
    Order("GET, CLEAR, send-live", (_G, _C, _L), 6),
)
"""The six host orders of G.2, in the order of its rows."""
