# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VMM sees of a migration handler and of the mirror VM that it runs in."""

from __future__ import annotations

import enum
from typing import Protocol

import msgspec

from guestemu.abi.addresses import Gpa, RamAddr
from guestemu.abi.errors import GuestemuError


class MirrorSlot(msgspec.Struct, frozen=True):
    """A memory slot of the mirror: `pages` pages of the source's RAM from `ram_addr` on (bytes;
    the frame of `GuestRam` times 4096) appear at `mirror_gpa`. The same page may appear at several
    mirror GPAs (F4)."""

    mirror_gpa: Gpa
    ram_addr: RamAddr
    pages: int


class StopCause(enum.Enum):
    """Why a handler did not answer.

    `timeout`: it ran for the whole time without setting `done`, or halts with nothing to do.
    `shutdown`: an exception, and a handler has no IDT (triple fault).
    `mmio`: an access to a mirror GPA without slot (KVM_EXIT_MMIO, which ends a mirror).
    """

    TIMEOUT = "timeout"
    SHUTDOWN = "shutdown"
    MMIO = "mmio"


class HandlerStop(msgspec.Struct, frozen=True):
    """Record of a command that was not answered: `nr` and `address` of the command, where the vCPU
    stood, `detail`: the blocks it ran (timeout), the vector (shutdown), the mirror GPA (mmio)."""

    cause: StopCause
    nr: int
    address: int
    rip: int
    detail: int


class HandlerError(GuestemuError):
    """The handler did not answer; QEMU's migration fails with -EIO (F13)."""

    def __init__(self, record: HandlerStop) -> None:
        super().__init__(
            f"migration handler, command {record.nr} for {record.address:#x}: "
            f"{record.cause.value} at {record.rip:#x} ({record.detail:#x})"
        )
        self.record = record


class Saved(msgspec.Struct, frozen=True):
    """Answer to SAVE: `ret` (mailbox.Ret, or what another handler gives), the header's bytes and
    4096 bytes of page; both empty unless `ret` is 0."""

    ret: int
    header: bytes
    page: bytes


class Handler(Protocol):
    """A running migration handler. `address` is what the mailbox's `gpa` field gets: the meaning
    (GPA or ram_addr_t) is the handler's configuration (F6, F7). Every call may raise
    `HandlerError`; results are the `ret` of F10."""

    def init(self) -> int:
        """INIT: begins a session with the key that the owner put into private memory."""

    def save(self, address: int) -> Saved:
        """SAVE: the page at `address`, read with C=1, under the transport key."""

    def restore(self, address: int, header: bytes, page: bytes) -> int:
        """RESTORE: stores `page` at `address` with C=1. Nothing is written unless it gives 0."""

    def reset(self) -> int:
        """RESET: forgets the session; INIT begins another."""
