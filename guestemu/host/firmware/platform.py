# SPDX-License-Identifier: GPL-2.0-or-later
"""One platform: the security processor's state, its guests, and its way to memory.

The commands are plain functions in `commands_*.py`; `dispatch.execute` runs one. What they share is
here: platform state, the table of 1024 handles, ASIDs, key slots, identity and scratch buffer.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi.sev_firmware import (
    GUESTS_MAX,
    SCRATCH_SIZE,
    PlatformState,
    Status,
)
from guestemu.host.firmware.asids import AsidTable
from guestemu.host.firmware.identity import Identity, Random
from guestemu.host.firmware.memory import BadAddress, KeySlots, PhysicalMemory
from guestemu.host.firmware.state import FirmwareGuest, Refused

API_VERSION: Final = (1, 55)
"""API version of the firmware that is modelled (Genoa, 1.55.25)."""

BUILD_ID: Final = 25


class PlatformConfig(msgspec.Struct, frozen=True):
    """What differs between platforms: highest ASID, mask of the C-bit in physical addresses, API
    version (major, minor)."""

    asids: int = 509
    cbit_mask: int = 1 << 51
    api: tuple[int, int] = API_VERSION


class Platform:
    """See the module's docstring. `random` gives keys, nonces and IVs; a seeded one makes a run
    repeatable except for the bytes of ECDSA signatures."""

    def __init__(
        self,
        memory: PhysicalMemory,
        identity: Identity,
        random: Random,
        config: PlatformConfig | None = None,
    ) -> None:
        self.config = config or PlatformConfig()
        self.memory = memory
        self.identity = identity
        self.random = random
        self.state = PlatformState.UNINIT
        self.has_es = False
        self.guests: dict[int, FirmwareGuest] = {}
        self.keys = KeySlots(memory)
        self.asids = AsidTable(self.config.asids)
        self.scratch = bytearray(SCRATCH_SIZE)
        """What the scratch buffer still holds after a command (E19)."""

    def require(self, *states: PlatformState) -> None:
        """INVALID_PLATFORM_STATE unless the platform is in one of `states` (E3)."""
        if self.state not in states:
            raise Refused(Status.INVALID_PLATFORM_STATE)

    def guest(self, handle: int) -> FirmwareGuest:
        """The guest with this handle, or INVALID_GUEST."""
        found = self.guests.get(handle)
        if found is None:
            raise Refused(Status.INVALID_GUEST)
        return found

    def free_handle(self) -> int:
        """The lowest handle without a guest, or RESOURCE_LIMIT."""
        for handle in range(1, GUESTS_MAX + 1):
            if handle not in self.guests:
                return handle
        raise Refused(Status.RESOURCE_LIMIT)

    def memory_key(self, handle: int) -> bytes:
        """The 16-byte memory key of a guest, for the emulated machine that runs it. Real firmware
        never reveals it. Raises KeyError for a handle without a guest."""
        return self.guests[handle].key

    def shutdown(self) -> None:
        """Back to UNINIT without guests; ASIDs are dirty again."""
        self.state = PlatformState.UNINIT
        self.has_es = False
        self.guests = {}
        self.asids = AsidTable(self.config.asids)

    def read(self, address: int, size: int) -> bytes:
        """Plain bytes of memory, or INVALID_ADDRESS."""
        try:
            return self.memory.read(address & ~self.config.cbit_mask, size)
        except BadAddress:
            raise Refused(Status.INVALID_ADDRESS) from None

    def write(self, address: int, data: bytes) -> None:
        """Stores plain bytes, or INVALID_ADDRESS."""
        try:
            self.memory.write(address & ~self.config.cbit_mask, data)
        except BadAddress:
            raise Refused(Status.INVALID_ADDRESS) from None

    def read_guest(self, guest: FirmwareGuest, address: int, size: int) -> bytes:
        """Decrypts guest memory with the guest's key, or INVALID_ADDRESS."""
        try:
            return self.keys.read(guest.asid, address & ~self.config.cbit_mask, size)
        except BadAddress:
            raise Refused(Status.INVALID_ADDRESS) from None

    def write_guest(self, guest: FirmwareGuest, address: int, plain: bytes) -> None:
        """Stores `plain` encrypted with the guest's key, or INVALID_ADDRESS."""
        try:
            self.keys.write(guest.asid, address & ~self.config.cbit_mask, plain)
        except BadAddress:
            raise Refused(Status.INVALID_ADDRESS) from None
