# SPDX-License-Identifier: GPL-2.0-or-later
"""Command buffers: what software gives to a firmware command, and where it finds the answers.

Fields are those of include/linux/psp-sev.h (Linux 7.1). `*_address` are system-physical byte
addresses (the C-bit of `guest_address` is ignored), `*_length` are bytes; handles and policies are
32-bit. The firmware writes into a buffer only where the class says so.
"""

from __future__ import annotations

import msgspec


class CommandBuffer(msgspec.Struct):
    """Any command buffer."""


class Nothing(CommandBuffer):
    """SHUTDOWN and DF_FLUSH take no buffer."""


class InitBuffer(CommandBuffer):
    """INIT; with `es` guests may have SEV-ES."""

    es: bool = False


class PlatformStatusBuffer(CommandBuffer):
    """PLATFORM_STATUS; everything is written."""

    state: int = 0
    api_major: int = 0
    api_minor: int = 0
    guest_count: int = 0


class HandleBuffer(CommandBuffer):
    """Commands that take only a guest."""

    handle: int = 0


class ActivateBuffer(CommandBuffer):
    """ACTIVATE."""

    handle: int = 0
    asid: int = 0


class GuestStatusBuffer(CommandBuffer):
    """GUEST_STATUS; `state`, `asid` and `policy` are written, of a bad handle only `state` (E4)."""

    handle: int = 0
    policy: int = 0
    asid: int = 0
    state: int = 0


class CopyBuffer(CommandBuffer):
    """COPY: `length` bytes of the guest from `source_address` to `target_address` (E12)."""

    handle: int = 0
    length: int = 0
    source_address: int = 0
    target_address: int = 0


class StartBuffer(CommandBuffer):
    """LAUNCH_START and RECEIVE_START. `handle` is the guest to share a key with, or 0; the new
    handle is written there."""

    handle: int = 0
    policy: int = 0
    pdh_address: int = 0
    pdh_length: int = 0
    session_address: int = 0
    session_length: int = 0


class LaunchUpdateBuffer(CommandBuffer):
    """LAUNCH_UPDATE_DATA and _VMSA: encrypts in place."""

    handle: int = 0
    address: int = 0
    length: int = 0


class LaunchMeasureBuffer(CommandBuffer):
    """LAUNCH_MEASURE; `length` is written where it was too small."""

    handle: int = 0
    address: int = 0
    length: int = 0


class SendStartBuffer(CommandBuffer):
    """SEND_START; `policy`, and `session_length` where it was wrong, are written (E5)."""

    handle: int = 0
    policy: int = 0
    pdh_address: int = 0
    pdh_length: int = 0
    platform_address: int = 0
    platform_length: int = 0
    amd_address: int = 0
    amd_length: int = 0
    session_address: int = 0
    session_length: int = 0


class UpdateBuffer(CommandBuffer):
    """SEND_UPDATE_DATA, RECEIVE_UPDATE_DATA and their VMSA forms. SEND writes `header_length`
    (E6); `transport_length` is never written."""

    handle: int = 0
    header_address: int = 0
    header_length: int = 0
    guest_address: int = 0
    guest_length: int = 0
    transport_address: int = 0
    transport_length: int = 0


class DebugBuffer(CommandBuffer):
    """DBG_DECRYPT and DBG_ENCRYPT."""

    handle: int = 0
    source_address: int = 0
    target_address: int = 0
    length: int = 0
