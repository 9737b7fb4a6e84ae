# SPDX-License-Identifier: GPL-2.0-or-later
"""The reverse map table, in the part that a guest can notice: whose a frame is, and validated.

RMPUPDATE is the hypervisor's (`assign`, `release`), PVALIDATE the guest's (`validate`); APM volume
2, section 15.36, and volume 3. A firmware has validated all memory before the kernel is entered.
Page sizes in the RMP are not kept: a 2 MiB PVALIDATE works on 512 frames that are all in one state
and is a size mismatch on others. VMPL permissions are not modelled, and neither is the #VC of an
access to a private page that is not validated.
"""

from __future__ import annotations

from typing import Final

import msgspec

SHARED: Final = 0
ASSIGNED: Final = 1
VALIDATED: Final = 2

_STATES: Final = ("shared", "assigned", "validated")


class Validated(msgspec.Struct, frozen=True):
    """What PVALIDATE found: whether it changed anything, and whether a frame was still shared (the
    hypervisor then assigns it on the fault, KVM_EXIT_MEMORY_FAULT)."""

    changed: bool
    was_shared: bool


class Rmp:
    """`frames` entries, all validated at first."""

    def __init__(self, frames: int) -> None:
        self._states = bytearray([VALIDATED]) * frames
        self._base = bytes(self._states)
        self._is_changed = False

    @property
    def frames(self) -> int:
        """How many frames there are."""
        return len(self._states)

    def state(self, gfn: int) -> int:
        """SHARED, ASSIGNED or VALIDATED."""
        return self._states[gfn]

    def describe(self, gfn: int) -> str:
        """The state in one word."""
        return _STATES[self._states[gfn]]

    def assign(self, gfn: int, pages: int) -> None:
        """The hypervisor makes frames private; those that already are stay as they are."""
        part = self._states[gfn : gfn + pages]
        self._set(gfn, part.replace(bytes([SHARED]), bytes([ASSIGNED])))

    def release(self, gfn: int, pages: int) -> None:
        """The hypervisor takes frames back as shared ones."""
        self._set(gfn, bytes([SHARED]) * len(self._states[gfn : gfn + pages]))

    def is_uniform(self, gfn: int, pages: int) -> bool:
        """Whether all of the frames are in one state."""
        return len(set(self._states[gfn : gfn + pages])) <= 1

    def validate(self, gfn: int, pages: int, validate: bool) -> Validated:
        """PVALIDATE of frames in one state, all within the table."""
        state = self._states[gfn]
        wanted = VALIDATED if validate else ASSIGNED
        self._set(gfn, bytes([wanted]) * pages)
        return Validated((state == VALIDATED) != validate, state == SHARED)

    def _set(self, gfn: int, states: bytes | bytearray) -> None:
        self._states[gfn : gfn + len(states)] = states
        self._is_changed = True

    def dump(self) -> bytes:
        """All states, one byte each."""
        return bytes(self._states)

    def load(self, states: bytes) -> None:
        """States as `dump` gave them, for as many frames."""
        self._set(0, states)

    def checkpoint(self) -> None:
        """See `Device`."""
        self._base = bytes(self._states)
        self._is_changed = False

    def rollback(self) -> None:
        """See `Device`."""
        if self._is_changed:
            self._states[:] = self._base
            self._is_changed = False
