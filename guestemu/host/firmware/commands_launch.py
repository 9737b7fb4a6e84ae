# SPDX-License-Identifier: GPL-2.0-or-later
"""LAUNCH_START, LAUNCH_UPDATE_DATA and _VMSA, LAUNCH_MEASURE, LAUNCH_FINISH.

Enough to bring a guest to RUNNING as user space does. Source: AMD's published firmware,
sev_mcmd_launch_*, launch_update_common, sev_guest_measure. LAUNCH_SECRET is not modelled.
"""

from __future__ import annotations

import hashlib
import hmac
import zlib

from guestemu.abi.sev_firmware import (
    MEASUREMENT_SIZE,
    VMSA_SIZE,
    ChannelContext,
    Command,
    GuestState,
    PlatformState,
    Status,
)
from guestemu.host.firmware.buffers import (
    HandleBuffer,
    LaunchMeasureBuffer,
    LaunchUpdateBuffer,
    StartBuffer,
)
from guestemu.host.firmware.platform import BUILD_ID, Platform
from guestemu.host.firmware.start import new_guest, receive_channel
from guestemu.host.firmware.state import (
    FirmwareGuest,
    Refused,
    advance,
    require_asid,
    require_state,
)


def launch_start(platform: Platform, buffer: StartBuffer) -> None:
    """LAUNCH_START: without a PDH address there is no channel and the policy is taken as it is."""
    platform.require(PlatformState.INIT, PlatformState.WORKING)
    channel = receive_channel(platform, buffer) if buffer.pdh_address else None
    new_guest(platform, buffer, channel, Command.LAUNCH_START)


def launch_update_data(platform: Platform, buffer: LaunchUpdateBuffer) -> None:
    """LAUNCH_UPDATE_DATA: measures `length` bytes and encrypts them in place."""
    _update(platform, buffer, False)


def launch_update_vmsa(platform: Platform, buffer: LaunchUpdateBuffer) -> None:
    """LAUNCH_UPDATE_VMSA: the length is tested before everything else (0x04)."""
    if buffer.length != VMSA_SIZE:
        raise Refused(Status.INVALID_LEN)
    _update(platform, buffer, True)


def _update(platform: Platform, buffer: LaunchUpdateBuffer, is_vmsa: bool) -> None:
    platform.require(PlatformState.WORKING)
    guest = platform.guest(buffer.handle)
    require_state(guest, GuestState.LUPDATE)
    if is_vmsa and not guest.has_es:
        raise Refused(Status.UNSUPPORTED)
    require_asid(guest)
    if buffer.address % 16:
        raise Refused(Status.INVALID_ADDRESS)
    if not buffer.length or buffer.length % 16:
        raise Refused(Status.INVALID_LEN)
    plain = platform.read(buffer.address, buffer.length)
    platform.write_guest(guest, buffer.address, plain)
    guest.digest_input += plain
    if is_vmsa:
        guest.vmsas.add(zlib.crc32(plain))


def launch_measure(platform: Platform, buffer: LaunchMeasureBuffer) -> None:
    """LAUNCH_MEASURE: too small a length is answered with 48 (0x04)."""
    platform.require(PlatformState.WORKING)
    guest = platform.guest(buffer.handle)
    require_state(guest, GuestState.LUPDATE)
    if buffer.length < MEASUREMENT_SIZE:
        buffer.length = MEASUREMENT_SIZE
        raise Refused(Status.INVALID_LEN)
    platform.write(buffer.address, _measurement(platform, guest))
    advance(guest, Command.LAUNCH_MEASURE)


def _measurement(platform: Platform, guest: FirmwareGuest) -> bytes:
    """HMAC-SHA-256 under TIK of context, version, build, policy, digest and nonce; then the nonce.
    A guest launched without a session has a TIK of zeros."""
    tik = guest.channel.tik if guest.channel else bytes(16)
    nonce = platform.random(16)
    head = bytes((ChannelContext.MEASURE, *platform.config.api, BUILD_ID))
    digest = hashlib.sha256(guest.digest_input).digest()
    message = head + guest.policy.to_bytes(4, "little") + digest + nonce
    return hmac.digest(tik, message, "sha256") + nonce


def launch_finish(platform: Platform, buffer: HandleBuffer) -> None:
    """LAUNCH_FINISH: enables a pending ASID, closes the channel (E11)."""
    platform.require(PlatformState.WORKING)
    guest = platform.guest(buffer.handle)
    require_state(guest, GuestState.LSECRET)
    platform.asids.finish_pending(guest)
    guest.channel = None
    guest.digest_input = bytearray()
    advance(guest, Command.LAUNCH_FINISH)
