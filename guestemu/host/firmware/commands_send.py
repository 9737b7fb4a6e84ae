# SPDX-License-Identifier: GPL-2.0-or-later
"""SEND_START, SEND_UPDATE_DATA and _VMSA, SEND_FINISH, SEND_CANCEL, each in its order of checks.

Source: AMD's published firmware, sev_mcmd_send_start, sev_mcmd_send_update, sev_mcmd_send_finish;
facts E5, E6, E7. Finish and cancel do not touch the ASID: the guest runs on until DEACTIVATE.
"""

from __future__ import annotations

import zlib

from cryptography.hazmat.primitives.asymmetric import ec

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.sev_firmware import (
    HEADER_SIZE,
    SCRATCH_SIZE,
    SESSION_SIZE,
    Command,
    GuestState,
    PlatformState,
    Policy,
    Status,
)
from guestemu.host.firmware.buffers import HandleBuffer, SendStartBuffer, UpdateBuffer
from guestemu.host.firmware.certificates import (
    CERTIFICATE_SIZE,
    check_diffie_hellman,
    unpack_certificate,
)
from guestemu.host.firmware.packet import seal
from guestemu.host.firmware.platform import Platform
from guestemu.host.firmware.receiver import check_domain, check_platform
from guestemu.host.firmware.session import open_client
from guestemu.host.firmware.state import (
    FirmwareGuest,
    Refused,
    advance,
    require_asid,
    require_state,
)


def send_start(platform: Platform, buffer: SendStartBuffer) -> None:
    """SEND_START (E5). A wrong session length is answered with 128 in any guest state."""
    platform.require(PlatformState.WORKING)
    guest = platform.guest(buffer.handle)
    if buffer.session_length != SESSION_SIZE:
        buffer.session_length = SESSION_SIZE
        raise Refused(Status.INVALID_LEN)
    require_state(guest, GuestState.RUNNING)
    if guest.policy & Policy.NOSEND:
        raise Refused(Status.POLICY_FAILURE)
    peer = _receiver_key(platform, guest, buffer)
    session, channel = open_client(platform.identity.pdh_key, peer, guest.policy, platform.random)
    platform.write(buffer.session_address, session.pack())
    buffer.policy = guest.policy
    advance(guest, Command.SEND_START)
    guest.channel = channel


def _receiver_key(
    platform: Platform, guest: FirmwareGuest, buffer: SendStartBuffer
) -> ec.EllipticCurvePublicKey:
    """The receiver's PDH key, after the tests that the policy asks for."""
    if guest.policy & Policy.SEV:
        check_platform(platform, guest.policy, buffer)
    if guest.policy & Policy.DOMAIN:
        check_domain(platform, buffer)
    if buffer.pdh_length != CERTIFICATE_SIZE:
        raise Refused(Status.INVALID_LEN)
    pdh = unpack_certificate(platform.read(buffer.pdh_address, CERTIFICATE_SIZE))
    return check_diffie_hellman(pdh)


def send_update_data(platform: Platform, buffer: UpdateBuffer) -> None:
    """SEND_UPDATE_DATA (E6)."""
    _send_update(platform, buffer, False)


def send_update_vmsa(platform: Platform, buffer: UpdateBuffer) -> None:
    """SEND_UPDATE_VMSA (E6): only what the firmware itself set up as a VMSA (0x16)."""
    _send_update(platform, buffer, True)


def _send_update(platform: Platform, buffer: UpdateBuffer, is_vmsa: bool) -> None:
    platform.require(PlatformState.WORKING)
    if buffer.header_length < HEADER_SIZE:
        buffer.header_length = HEADER_SIZE
        raise Refused(Status.INVALID_LEN)
    guest = platform.guest(buffer.handle)
    require_state(guest, GuestState.SUPDATE)
    if is_vmsa and not guest.has_es:
        raise Refused(Status.UNSUPPORTED)
    require_asid(guest)
    size = buffer.guest_length
    has_room = 0 < size <= buffer.transport_length
    if not has_room or size > SCRATCH_SIZE or size % 16:
        raise Refused(Status.INVALID_LEN)
    if buffer.guest_address % 16:
        raise Refused(Status.INVALID_ADDRESS)
    try:
        _send_packet(platform, guest, buffer, is_vmsa)
    finally:
        platform.scratch[:PAGE_SIZE] = bytes(PAGE_SIZE)
    buffer.header_length = HEADER_SIZE


def _send_packet(
    platform: Platform, guest: FirmwareGuest, buffer: UpdateBuffer, is_vmsa: bool
) -> None:
    """Decrypts into the scratch buffer, seals there, writes packet and then header. The caller
    clears the first 4 KiB of the scratch buffer and no more (E19)."""
    size = buffer.guest_length
    plain = platform.read_guest(guest, buffer.guest_address, size)
    platform.scratch[:size] = plain
    if is_vmsa and zlib.crc32(plain) not in guest.vmsas:
        raise Refused(Status.INVALID_PARAM)
    channel = guest.channel
    assert channel is not None, "a guest in SUPDATE has a channel"
    header, data = seal(channel.tek, channel.tik, plain, platform.random(16))
    platform.scratch[:size] = data
    platform.write(buffer.transport_address, data)
    platform.write(buffer.header_address, header.pack())


def send_finish(platform: Platform, buffer: HandleBuffer) -> None:
    """SEND_FINISH (E7): erases the transport keys; the guest is SENT."""
    _end_send(platform, buffer.handle, Command.SEND_FINISH)


def send_cancel(platform: Platform, buffer: HandleBuffer) -> None:
    """SEND_CANCEL (E7): erases the transport keys; the guest is RUNNING and can be sent again."""
    _end_send(platform, buffer.handle, Command.SEND_CANCEL)


def _end_send(platform: Platform, handle: int, command: Command) -> None:
    platform.require(PlatformState.WORKING)
    guest = platform.guest(handle)
    advance(guest, command)
    guest.channel = None
