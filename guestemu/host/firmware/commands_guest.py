# SPDX-License-Identifier: GPL-2.0-or-later
"""DECOMMISSION, ACTIVATE, DEACTIVATE, GUEST_STATUS, COPY and DBG: commands for any state.

Source: AMD's published firmware, the function sev_mcmd_* of each; facts E3, E4, E11, E12, E18.
"""

from __future__ import annotations

from guestemu.abi.addresses import PAGE_MASK, PAGE_SIZE
from guestemu.abi.sev_firmware import Command, GuestState, PlatformState, Policy, Status
from guestemu.host.firmware.buffers import (
    ActivateBuffer,
    CopyBuffer,
    DebugBuffer,
    GuestStatusBuffer,
    HandleBuffer,
)
from guestemu.host.firmware.platform import Platform
from guestemu.host.firmware.state import FirmwareGuest, Refused, advance, require_asid

_ENABLED_AT_ONCE = (GuestState.RUNNING, GuestState.SUPDATE)


def decommission(platform: Platform, buffer: HandleBuffer) -> None:
    """DECOMMISSION: refused (ACTIVE) while an ASID is bound; the last guest's takes the platform
    back to INIT."""
    platform.require(PlatformState.WORKING)
    guest = platform.guest(buffer.handle)
    if guest.asid:
        raise Refused(Status.ACTIVE)
    advance(guest, Command.DECOMMISSION)
    del platform.guests[buffer.handle]
    if not platform.guests:
        platform.state = PlatformState.INIT


def activate(platform: Platform, buffer: ActivateBuffer) -> None:
    """ACTIVATE: ASID in range (0x0D) and unowned (0x0C), guest without one (0x12), not SENT (0x02,
    E11), ASID flushed (0x0F). Cores are enabled at once only for a running guest."""
    platform.require(PlatformState.WORKING)
    guest = platform.guest(buffer.handle)
    platform.asids.check_free(buffer.asid)
    if guest.asid:
        raise Refused(Status.ACTIVE)
    if guest.state is GuestState.SENT:
        raise Refused(Status.INVALID_GUEST_STATE)
    platform.asids.check_flushed(buffer.asid)
    platform.keys.install(buffer.asid, guest.key)
    platform.asids.bind(guest, buffer.asid, guest.state in _ENABLED_AT_ONCE)


def deactivate(platform: Platform, buffer: HandleBuffer) -> None:
    """DEACTIVATE: INACTIVE without an ASID; any state."""
    platform.require(PlatformState.WORKING)
    guest = platform.guest(buffer.handle)
    require_asid(guest)
    platform.asids.release(guest)


def guest_status(platform: Platform, buffer: GuestStatusBuffer) -> None:
    """GUEST_STATUS: a bad handle is a success with state INVALID (E4)."""
    platform.require(PlatformState.INIT, PlatformState.WORKING)
    guest = platform.guests.get(buffer.handle)
    if guest is None:
        buffer.state = GuestState.INVALID
        return
    buffer.state = guest.state
    buffer.asid = guest.asid
    buffer.policy = guest.policy


def copy(platform: Platform, buffer: CopyBuffer) -> None:
    """COPY: re-encrypts pages for another address; overlapping first pages are a success without
    any copy (E12)."""
    platform.require(PlatformState.WORKING)
    guest = platform.guest(buffer.handle)
    require_asid(guest)
    if not buffer.length or buffer.length % PAGE_SIZE:
        raise Refused(Status.INVALID_LEN)
    if (buffer.source_address | buffer.target_address) & PAGE_MASK:
        raise Refused(Status.INVALID_ADDRESS)
    if buffer.source_address == buffer.target_address:
        return
    plain = platform.read_guest(guest, buffer.source_address, buffer.length)
    platform.write_guest(guest, buffer.target_address, plain)


def dbg_decrypt(platform: Platform, buffer: DebugBuffer) -> None:
    """DBG_DECRYPT: guest memory at the source, plaintext at the target."""
    guest = _debuggable(platform, buffer)
    plain = platform.read_guest(guest, buffer.source_address, buffer.length)
    platform.write(buffer.target_address, plain)


def dbg_encrypt(platform: Platform, buffer: DebugBuffer) -> None:
    """DBG_ENCRYPT: plaintext at the source, guest memory at the target."""
    guest = _debuggable(platform, buffer)
    plain = platform.read(buffer.source_address, buffer.length)
    platform.write_guest(guest, buffer.target_address, plain)


def _debuggable(platform: Platform, buffer: DebugBuffer) -> FirmwareGuest:
    """Addresses (0x09) and length (0x04) before the handle (0x10), then NODBG (0x07, E18), then the
    ASID (0x08)."""
    platform.require(PlatformState.WORKING)
    if (buffer.source_address | buffer.target_address) % 16:
        raise Refused(Status.INVALID_ADDRESS)
    if buffer.length % 16:
        raise Refused(Status.INVALID_LEN)
    guest = platform.guest(buffer.handle)
    if guest.policy & Policy.NODBG:
        raise Refused(Status.POLICY_FAILURE)
    require_asid(guest)
    return guest
