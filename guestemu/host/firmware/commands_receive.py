# SPDX-License-Identifier: GPL-2.0-or-later
"""RECEIVE_START, RECEIVE_UPDATE_DATA and _VMSA, RECEIVE_FINISH, each in its order of checks.

Source: AMD's published firmware, sev_mcmd_receive_start, sev_mcmd_receive_update,
sev_mcmd_receive_finish; facts E8, E9, E10. Nothing orders or counts packets (E15).
"""

from __future__ import annotations

import zlib

from guestemu.abi.sev_firmware import (
    HEADER_SIZE,
    PACKET_COMPRESSED,
    SCRATCH_SIZE,
    Command,
    GuestState,
    PlatformState,
    Status,
)
from guestemu.host.firmware.buffers import HandleBuffer, StartBuffer, UpdateBuffer
from guestemu.host.firmware.packet import unpack_header, unseal
from guestemu.host.firmware.platform import Platform
from guestemu.host.firmware.start import new_guest, receive_channel
from guestemu.host.firmware.state import (
    FirmwareGuest,
    Refused,
    advance,
    require_asid,
    require_state,
)


def receive_start(platform: Platform, buffer: StartBuffer) -> None:
    """RECEIVE_START (E8): always with a session."""
    platform.require(PlatformState.INIT, PlatformState.WORKING)
    channel = receive_channel(platform, buffer)
    new_guest(platform, buffer, channel, Command.RECEIVE_START)


def receive_update_data(platform: Platform, buffer: UpdateBuffer) -> None:
    """RECEIVE_UPDATE_DATA (E9)."""
    _receive_update(platform, buffer, False)


def receive_update_vmsa(platform: Platform, buffer: UpdateBuffer) -> None:
    """RECEIVE_UPDATE_VMSA (E9)."""
    _receive_update(platform, buffer, True)


def _receive_update(platform: Platform, buffer: UpdateBuffer, is_vmsa: bool) -> None:
    platform.require(PlatformState.WORKING)
    guest = platform.guest(buffer.handle)
    require_state(guest, GuestState.RUPDATE)
    if is_vmsa and not guest.has_es:
        raise Refused(Status.UNSUPPORTED)
    require_asid(guest)
    _check_lengths(buffer)
    if buffer.guest_address % 16:
        raise Refused(Status.INVALID_ADDRESS)
    plain = _open_packet(platform, guest, buffer)
    platform.write_guest(guest, buffer.guest_address, plain)
    if is_vmsa:
        guest.vmsas.add(zlib.crc32(plain))


def _check_lengths(buffer: UpdateBuffer) -> None:
    size = buffer.transport_length
    is_sized = 0 < size <= SCRATCH_SIZE and size % 16 == 0
    if not is_sized or buffer.guest_length != size or buffer.header_length < HEADER_SIZE:
        raise Refused(Status.INVALID_LEN)


def _open_packet(platform: Platform, guest: FirmwareGuest, buffer: UpdateBuffer) -> bytes:
    """The packet's plaintext: the compressed flag is tested before the MAC (0x15, 0x0B)."""
    header = unpack_header(platform.read(buffer.header_address, HEADER_SIZE))
    if header.flags & PACKET_COMPRESSED:
        raise Refused(Status.UNSUPPORTED)
    data = platform.read(buffer.transport_address, buffer.transport_length)
    channel = guest.channel
    assert channel is not None, "a guest in RUPDATE has a channel"
    plain = unseal(channel.tek, channel.tik, header, data)
    if plain is None:
        raise Refused(Status.BAD_MEASUREMENT)
    return plain


def receive_finish(platform: Platform, buffer: HandleBuffer) -> None:
    """RECEIVE_FINISH (E10): enables a pending ASID, erases the transport keys. It also
    succeeds without any ASID."""
    platform.require(PlatformState.WORKING)
    guest = platform.guest(buffer.handle)
    require_state(guest, GuestState.RUPDATE)
    platform.asids.finish_pending(guest)
    guest.channel = None
    advance(guest, Command.RECEIVE_FINISH)
