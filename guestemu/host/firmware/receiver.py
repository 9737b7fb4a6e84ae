# SPDX-License-Identifier: GPL-2.0-or-later
"""How a sender judges its receiver: the certificate chains of SEND_START (E5).

With the policy's SEV bit the whole chain up to AMD's root and the receiver's API version; with
DOMAIN the receiver's owner certificate, which must be the sender's own.
"""

from __future__ import annotations

from guestemu.abi.sev_firmware import Status, policy_version
from guestemu.host.firmware.amd_certificates import CHAIN_SIZES, take_certificate, validate_amd
from guestemu.host.firmware.buffers import SendStartBuffer
from guestemu.host.firmware.certificates import (
    CERTIFICATE_SIZE,
    Certificate,
    Usage,
    unpack_certificate,
    validate,
)
from guestemu.host.firmware.platform import Platform
from guestemu.host.firmware.state import Refused

CHAIN_LENGTH = 3 * CERTIFICATE_SIZE
"""Bytes of PEK, OCA and CEK certificates together."""


def check_platform(platform: Platform, policy: int, buffer: SendStartBuffer) -> None:
    """PDH <- PEK <- CEK <- ASK <- ARK, from the root down: lengths (0x04), certificates (0x06,
    0x0A); then the receiver's API version against the policy's (0x07)."""
    _check_lengths(buffer)
    if buffer.amd_length not in CHAIN_SIZES:
        raise Refused(Status.INVALID_LEN)
    pek, _oca, cek = _chain(platform, buffer)
    pdh = unpack_certificate(platform.read(buffer.pdh_address, CERTIFICATE_SIZE))
    ask, rest = take_certificate(platform.read(buffer.amd_address, buffer.amd_length))
    ark, _end = take_certificate(rest)
    if ark.key != platform.identity.authority.ark.key:
        raise Refused(Status.INVALID_CERTIFICATE)
    validate_amd(ark, Usage.ARK, ark)
    validate_amd(ask, Usage.ASK, ark)
    validate(cek, ask.public_key())
    validate(pek, cek.public_key())
    validate(pdh, pek.public_key())
    if pek.api < policy_version(policy):
        raise Refused(Status.POLICY_FAILURE)


def check_domain(platform: Platform, buffer: SendStartBuffer) -> None:
    """PDH <- PEK <- OCA, and the OCA certificate equal to this platform's own (0x07)."""
    _check_lengths(buffer)
    pek, oca, _cek = _chain(platform, buffer)
    pdh = unpack_certificate(platform.read(buffer.pdh_address, CERTIFICATE_SIZE))
    validate(oca, oca.public_key())
    validate(pek, oca.public_key())
    validate(pdh, pek.public_key())
    if oca != platform.identity.oca:
        raise Refused(Status.POLICY_FAILURE)


def _check_lengths(buffer: SendStartBuffer) -> None:
    if buffer.platform_length != CHAIN_LENGTH or buffer.pdh_length != CERTIFICATE_SIZE:
        raise Refused(Status.INVALID_LEN)


def _chain(platform: Platform, buffer: SendStartBuffer) -> tuple[Certificate, ...]:
    data = platform.read(buffer.platform_address, CHAIN_LENGTH)
    starts = range(0, CHAIN_LENGTH, CERTIFICATE_SIZE)
    return tuple(unpack_certificate(data[start : start + CERTIFICATE_SIZE]) for start in starts)
