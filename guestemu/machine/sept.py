# SPDX-License-Identifier: GPL-2.0-or-later
"""The Secure EPT of a TD, in the part that a guest can notice: whose a frame is, and accepted.

A conversion changes which host page stands behind a GPA, so there is no relation between what the
two views hold (T10). KVM maps private memory in 4 KiB leaves, so a state belongs to a frame.

| state | the guest's private alias | its shared alias |
| --- | --- | --- |
| accepted | works | the host is asked to convert |
| pending | the VM ends, or #VE | the host is asked to convert |
| shared | the host is asked to convert | works |

Accepted and pending pages can be *blocked* besides, as the export of a live migration does it
(T34): the guest still reads an accepted one, its stores and an ACCEPT exit to the host first.
Sources: td_ept_violation.c of the TDX module, tdx_handle_ept_violation() and
kvm_mmu_faultin_pfn() of KVM (fact T12).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from itertools import compress
from typing import Final

from bitarray import bitarray

from guestemu.abi import tdx
from guestemu.machine.memory import GuestRam
from guestemu.machine.restorable_bytes import RestorableBytes
from guestemu.machine.view_gates import CLOSED, FETCH, OPEN, READ, WRITE, ViewGates, state_runs

ACCEPTED: Final = 0
PENDING: Final = 1
SHARED: Final = 2
BLOCKED: Final = 4
"""A flag beside ACCEPTED or PENDING."""

_NAMES: Final = ("accepted", "pending", "shared")
_ONE_PENDING: Final = bytes([PENDING])
_ONE_SHARED: Final = bytes([SHARED])
_ONE_ACCEPTED: Final = bytes([ACCEPTED])
_TO_PENDING: Final = bytes(PENDING if state == SHARED else state for state in range(256))
_IS_SHARED: Final = bytes(state == SHARED for state in range(256))


_RIGHTS: Final = {
    ACCEPTED: (OPEN, CLOSED),
    ACCEPTED | BLOCKED: (READ | FETCH, CLOSED),
    PENDING: (CLOSED, CLOSED),
    PENDING | BLOCKED: (CLOSED, CLOSED),
    SHARED: (CLOSED, READ | WRITE),
}
"""Rights of the private and of the shared alias."""


class AccessKind(enum.Enum):
    """What the guest does with an address."""

    READ = "read"
    WRITE = "write"
    FETCH = "fetch"


class AccessEnd(enum.Enum):
    """What an access comes to (T12). All but the first end before the access."""

    WORKS = "works"
    VE = "#VE"
    """The guest's own handler runs: MMIO, or a pending page without SEPT_VE_DISABLE."""
    MEMORY_FAULT = "KVM_EXIT_MEMORY_FAULT"
    """KVM_RUN returns -EFAULT; user space converts the page or stops."""
    NOT_ACCEPTED = "guest access before accepting"
    """An EPT violation of kind "pending": KVM ends the VM."""
    WRITE_BLOCKED = "access to a blocked page"
    """A write to an accepted page or any access to a pending one that is blocked for writing: a
    plain EPT violation to the host, which unblocks the page; the access starts again."""
    BUGGED = "VM bugged"
    """An instruction fetch from shared memory: KVM_BUG_ON."""


class SecureEpt:
    """`frames` entries, all accepted at first. `has_ve`: a pending page raises #VE, that is,
    attribute SEPT_VE_DISABLE is off."""

    def __init__(self, frames: int, has_ve: bool = False) -> None:
        self.has_ve = has_ve
        self._states = bytearray(frames)
        self._kept = RestorableBytes(self._states)
        self._gates: ViewGates | None = None
        self._ram: GuestRam | None = None

    @property
    def frames(self) -> int:
        """How many frames there are."""
        return len(self._states)

    def state(self, gfn: int) -> int:
        """ACCEPTED, PENDING or SHARED."""
        return self._states[gfn] & ~BLOCKED

    def is_blocked(self, gfn: int) -> bool:
        """Whether the page is blocked for writing."""
        return bool(self._states[gfn] & BLOCKED)

    def describe(self, gfn: int) -> str:
        """The state in words."""
        name = _NAMES[self.state(gfn)]
        return f"{name}, blocked" if self.is_blocked(gfn) else name

    def shared(self) -> list[int]:
        """Frames that are shared."""
        return list(compress(range(self.frames), self._states.translate(_IS_SHARED)))

    # The host's side --------------------------------------------------------------------------

    def make_shared(self, gfn: int, pages: int) -> None:
        """RANGE.BLOCK, TRACK and PAGE.REMOVE: the private pages are gone."""
        part = self._states[gfn : gfn + pages]
        self._set(gfn, bytes([SHARED]) * len(part))

    def make_private(self, gfn: int, pages: int) -> None:
        """Shared pages become private ones that the guest has to accept; private ones stay.

        KVM adds the page at its next fault or ACCEPT, a difference that the guest cannot see."""
        self._set(gfn, self._states[gfn : gfn + pages].translate(_TO_PENDING))

    def follow(self, gfn: int, pages: int, record: bitarray) -> None:
        """Frames become what the host's `record` says, by gfn, 1 = private; those that are stay."""
        if pages == 1 and gfn < len(self._states):
            is_shared = self._states[gfn] == SHARED
            if is_shared == record[gfn]:
                self._set(gfn, _ONE_PENDING if is_shared else _ONE_SHARED)
            return
        private = record[gfn : gfn + pages]
        if private.all():
            self.make_private(gfn, len(private))
        elif not private.any():
            self.make_shared(gfn, len(private))
        else:
            for index, is_private in enumerate(private):
                convert = self.make_private if is_private else self.make_shared
                convert(gfn + index, 1)

    def block(self, gfn: int, is_blocked: bool) -> None:
        """EXPORT.BLOCKW of one private page, or its UNBLOCK; nothing for a shared one."""
        if self.state(gfn) != SHARED:
            self._set(gfn, bytes([self.state(gfn) | (BLOCKED if is_blocked else 0)]))

    # The guest's side -------------------------------------------------------------------------

    def accept(self, gfn: int, level: int) -> int | None:
        """TDG.MEM.PAGE.ACCEPT of a page at `level` (T14): the completion code, or None where the
        call exits to the host with an EPT violation and starts again afterwards.

        The caller clears an accepted page's content."""
        if level >= tdx.LEVEL_1G:
            return tdx.OPERAND_INVALID | 1
        if level == tdx.LEVEL_2M:
            return tdx.PAGE_SIZE_MISMATCH | level
        if self.state(gfn) == ACCEPTED:
            return tdx.PAGE_ALREADY_ACCEPTED
        if self._states[gfn] != PENDING:
            return None
        self._set(gfn, _ONE_ACCEPTED)
        return tdx.SUCCESS

    def access(self, gfn: int, private: bool, kind: AccessKind) -> AccessEnd:
        """What an access by one alias comes to. A frame without memory slot is MMIO."""
        if gfn >= self.frames:
            return AccessEnd.VE
        state = self.state(gfn)
        if not private:
            if kind is AccessKind.FETCH:
                return AccessEnd.BUGGED
            return AccessEnd.WORKS if state == SHARED else AccessEnd.MEMORY_FAULT
        if state == SHARED:
            return AccessEnd.MEMORY_FAULT
        if state == PENDING and self.is_blocked(gfn):
            return AccessEnd.WRITE_BLOCKED
        if state == PENDING:
            return AccessEnd.VE if self.has_ve else AccessEnd.NOT_ACCEPTED
        if kind is AccessKind.WRITE and self.is_blocked(gfn):
            return AccessEnd.WRITE_BLOCKED
        return AccessEnd.WORKS

    # State ------------------------------------------------------------------------------------

    def enforce(self, gates: ViewGates) -> None:
        """From now on the rights of `gates` are those of the states."""
        self._gates = gates
        self._set(0, bytes(self._states))

    def watch(self, ram: GuestRam) -> None:
        """From now on `ram` watches the views that the states close, wholly or to stores."""
        self._ram = ram
        self._set(0, bytes(self._states))

    def _set(self, gfn: int, states: bytes | bytearray) -> None:
        self._states[gfn : gfn + len(states)] = states
        self._kept.note(gfn, len(states))
        if self._ram is not None or self._gates is not None:
            self._apply(gfn, states)

    def _apply(self, gfn: int, states: bytes | bytearray) -> None:
        if len(states) == 1:
            self._open(gfn, 1, states[0])
            return
        for state, pages in state_runs(states):
            self._open(gfn, pages, state)
            gfn += pages

    def _open(self, gfn: int, pages: int, state: int) -> None:
        gates, ram = self._gates, self._ram
        private, shared = _RIGHTS[state]
        if ram is not None:
            ram.watch_views(gfn, pages, private=private != OPEN, shared=shared == CLOSED)
        if gates is not None:
            gates.set(gfn, pages, private=private, shared=shared)

    def dump(self) -> bytes:
        """All states, one byte each."""
        return bytes(self._states)

    def load(self, states: Iterable[int]) -> None:
        """States as `dump` returned them, for as many frames."""
        self._set(0, bytes(states))

    def checkpoint(self) -> None:
        """See `Device`."""
        self._kept.checkpoint()

    def rollback(self) -> None:
        """See `Device`."""
        for gfn, pages in self._kept.rollback():
            self._apply(gfn, self._states[gfn : gfn + pages])
