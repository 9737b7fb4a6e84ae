# SPDX-License-Identifier: GPL-2.0-or-later
"""What LAUNCH_START and RECEIVE_START share: opening the channel as its server, making the guest.

Source: AMD's published firmware, sev_mcmd_launch_start, sev_mcmd_receive_start,
sev_guest_verify_policy; facts E8. The policy's version and reserved bits are tested after its MAC.
"""

from __future__ import annotations

import hmac

from guestemu.abi.sev_firmware import (
    POLICY_RESERVED,
    SESSION_SIZE,
    Command,
    PlatformState,
    Policy,
    Status,
    policy_version,
)
from guestemu.host.firmware.buffers import StartBuffer
from guestemu.host.firmware.certificates import (
    CERTIFICATE_SIZE,
    check_diffie_hellman,
    unpack_certificate,
)
from guestemu.host.firmware.kdf import KEY_SIZE
from guestemu.host.firmware.platform import Platform
from guestemu.host.firmware.session import TransportKeys, open_server, policy_mac, unpack_session
from guestemu.host.firmware.state import FirmwareGuest, Refused, advance


def receive_channel(platform: Platform, buffer: StartBuffer) -> TransportKeys:
    """The transport keys out of the session blob: lengths (0x04), peer certificate (0x06), MACs of
    keys and policy (0x0B), policy version and reserved bits (0x07)."""
    if buffer.session_length != SESSION_SIZE:
        raise Refused(Status.INVALID_LEN)
    session = unpack_session(platform.read(buffer.session_address, SESSION_SIZE))
    if buffer.pdh_length != CERTIFICATE_SIZE:
        raise Refused(Status.INVALID_LEN)
    peer = check_diffie_hellman(
        unpack_certificate(platform.read(buffer.pdh_address, CERTIFICATE_SIZE))
    )
    channel = open_server(platform.identity.pdh_key, peer, session)
    if channel is None:
        raise Refused(Status.BAD_MEASUREMENT)
    if not hmac.compare_digest(policy_mac(channel.tik, buffer.policy), session.policy_mac):
        raise Refused(Status.BAD_MEASUREMENT)
    is_supported = policy_version(buffer.policy) <= platform.config.api
    if not is_supported or buffer.policy & POLICY_RESERVED:
        raise Refused(Status.POLICY_FAILURE)
    return channel


def new_guest(
    platform: Platform, buffer: StartBuffer, channel: TransportKeys | None, command: Command
) -> None:
    """A guest with its own key or that of `buffer.handle`: handle (0x10), equal policies without
    NOKS (0x07), a free slot (0x17), ES on this platform (0x15). Writes the new handle."""
    if buffer.handle:
        sharing = platform.guest(buffer.handle)
        if buffer.policy != sharing.policy or sharing.policy & Policy.NOKS:
            raise Refused(Status.POLICY_FAILURE)
        key = sharing.key
    else:
        key = platform.random(KEY_SIZE)
    handle = platform.free_handle()
    if buffer.policy & Policy.ES and not platform.has_es:
        raise Refused(Status.UNSUPPORTED)
    guest = FirmwareGuest(handle, buffer.policy, key, channel=channel)
    advance(guest, command)
    platform.guests[handle] = guest
    platform.state = PlatformState.WORKING
    buffer.handle = handle
