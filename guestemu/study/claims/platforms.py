# SPDX-License-Identifier: GPL-2.0-or-later
"""Two platforms of the firmware model with an open transfer between them, for experiments.

Policy 0: neither certificates nor domains are looked at, only the session's keys matter (E5, E8).
"""

from __future__ import annotations

import hashlib
import random
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.errors import GuestemuError
from guestemu.abi.sev_firmware import Command, Status
from guestemu.host.firmware.buffers import (
    ActivateBuffer,
    CommandBuffer,
    HandleBuffer,
    InitBuffer,
    LaunchMeasureBuffer,
    Nothing,
    SendStartBuffer,
    StartBuffer,
    UpdateBuffer,
)
from guestemu.host.firmware.dispatch import execute
from guestemu.host.firmware.identity import (
    Identity,
    Random,
    generate_authority,
    generate_identity,
    generate_owner,
)
from guestemu.host.firmware.memory import HostMemory
from guestemu.host.firmware.platform import API_VERSION, Platform

MODEL: Final = "firmware model"
"""As the guest of a `ClaimResult`: commands only, no guest runs."""

GUEST_BASE: Final = 0x1000_0000
"""System-physical address for guest memory."""

SOURCE_ASID: Final = 5
TARGET_ASID: Final = 7

_MEMORY: Final = 1 << 30
_PDH, _SESSION, _HEADER, _DATA, _MEASURE = 0x10000, 0x12000, 0x14000, 0x18000, 0x20000
_HEADER_SIZE: Final = 52
_SESSION_SIZE: Final = 128
_MEASURE_SIZE: Final = 48


class TransportPacket(msgspec.Struct, frozen=True):
    """A page under the transport key: the 52-byte header and the ciphertext (E13)."""

    header: bytes
    data: bytes


class Transfer:
    """A running guest of the platform `source` in SUPDATE, its successor on `target` in RUPDATE.

    `source_handle` and `target_handle` are the firmware's handles; both guests have their ASID.
    `source_memory` and `target_memory` are the platforms' DRAM, for attaching guests' RAM.
    """

    def __init__(self) -> None:
        authority = generate_authority()
        owner = generate_owner(_random("owner"), API_VERSION)
        self.source_memory, self.target_memory = HostMemory(_MEMORY), HostMemory(_MEMORY)
        self.source, self.target = (
            _platform(memory, name, generate_identity(authority, owner, _random(name), API_VERSION))
            for memory, name in ((self.source_memory, "source"), (self.target_memory, "target"))
        )
        self.source_handle = _launch(self.source)
        peer = self.target.identity
        self.source.memory.write(_PDH, peer.pdh.pack())
        start = SendStartBuffer(
            handle=self.source_handle,
            pdh_address=_PDH,
            pdh_length=len(peer.pdh.pack()),
            session_address=_SESSION,
            session_length=_SESSION_SIZE,
        )
        must(self.source, Command.SEND_START, start)
        self.target_handle = self._receive_start()

    def _receive_start(self) -> int:
        target = self.target
        pdh = self.source.identity.pdh.pack()
        target.memory.write(_PDH, pdh)
        target.memory.write(_SESSION, self.source.memory.read(_SESSION, _SESSION_SIZE))
        start = StartBuffer(0, 0, _PDH, len(pdh), _SESSION, _SESSION_SIZE)
        must(target, Command.RECEIVE_START, start)
        must(target, Command.ACTIVATE, ActivateBuffer(start.handle, TARGET_ASID))
        return start.handle

    def send(self, address: int) -> TransportPacket:
        """SEND_UPDATE_DATA of the page at system-physical `address`."""
        memory = self.source.memory
        must(self.source, Command.SEND_UPDATE_DATA, _update(self.source_handle, address))
        return TransportPacket(memory.read(_HEADER, _HEADER_SIZE), memory.read(_DATA, PAGE_SIZE))

    def receive(self, packet: TransportPacket, address: int) -> Status:
        """RECEIVE_UPDATE_DATA of `packet` to the page at `address` of the target."""
        self.target.memory.write(_HEADER, packet.header)
        self.target.memory.write(_DATA, packet.data)
        update = _update(self.target_handle, address)
        return execute(self.target, Command.RECEIVE_UPDATE_DATA, update)

    def finish(self) -> None:
        """SEND_FINISH and RECEIVE_FINISH."""
        must(self.source, Command.SEND_FINISH, HandleBuffer(self.source_handle))
        must(self.target, Command.RECEIVE_FINISH, HandleBuffer(self.target_handle))


def must(platform: Platform, command: Command, buffer: CommandBuffer) -> None:
    """Runs a command that has to succeed; raises `GuestemuError` where it does not."""
    status = execute(platform, command, buffer)
    if status is not Status.SUCCESS:
        raise GuestemuError(f"firmware model: {command.name}: {status.name}")


def _update(handle: int, address: int) -> UpdateBuffer:
    return UpdateBuffer(handle, _HEADER, _HEADER_SIZE, address, PAGE_SIZE, _DATA, PAGE_SIZE)


def _random(name: str) -> Random:
    return random.Random(hashlib.sha256(name.encode()).digest()).randbytes


def _platform(memory: HostMemory, name: str, identity: Identity) -> Platform:
    """Initialised, with flushed ASIDs."""
    platform = Platform(memory, identity, _random(f"{name} keys"))
    must(platform, Command.INIT, InitBuffer(True))
    platform.asids.wbinvd()
    must(platform, Command.DF_FLUSH, Nothing())
    return platform


def _launch(platform: Platform) -> int:
    """A running guest; its handle."""
    start = StartBuffer()
    must(platform, Command.LAUNCH_START, start)
    must(platform, Command.ACTIVATE, ActivateBuffer(start.handle, SOURCE_ASID))
    must(
        platform, Command.LAUNCH_MEASURE, LaunchMeasureBuffer(start.handle, _MEASURE, _MEASURE_SIZE)
    )
    must(platform, Command.LAUNCH_FINISH, HandleBuffer(start.handle))
    return start.handle
