# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificate layout, signatures and chains."""

from __future__ import annotations

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from firmware_world import authority, identity
from hypothesis import given
from hypothesis import strategies as st

from guestemu.abi.sev_firmware import Status
from guestemu.host.firmware.amd_certificates import take_certificate, validate_amd
from guestemu.host.firmware.certificates import (
    Certificate,
    Usage,
    certificate_for,
    check_diffie_hellman,
    sign,
    unpack_certificate,
    validate,
)
from guestemu.host.firmware.state import Refused


def flipped(certificate: Certificate, offset: int) -> Certificate:
    data = bytearray(certificate.pack())
    data[offset] ^= 1
    return unpack_certificate(bytes(data))


def refusal(certificate: Certificate, signer: Certificate) -> Status:
    with pytest.raises(Refused) as caught:
        validate(certificate, signer.public_key())
    return caught.value.status


def test_the_chain_of_a_platform_is_valid_up_to_its_root() -> None:
    who = identity("target")
    roots = authority()
    validate(who.pdh, who.pek.public_key())
    validate(who.pek, who.cek.public_key())
    validate(who.pek, who.oca.public_key())
    validate(who.oca, who.oca.public_key())
    validate(who.cek, roots.ask.public_key())
    validate_amd(roots.ask, Usage.ASK, roots.ark)
    validate_amd(roots.ark, Usage.ARK, roots.ark)


def test_layout() -> None:
    """Offsets of AMD's sev_cert_t: usage 8, algorithm 12, curve 16, signatures at 1044 and 1564."""
    data = identity("target").pek.pack()
    word = [int.from_bytes(data[at : at + 4], "little") for at in (0, 8, 12, 16, 1044, 1564)]
    assert len(data) == 2084
    assert word == [1, 0x1002, 2, 2, 0x1001, 0x1004]
    assert data[4:6] == bytes((1, 55))
    assert unpack_certificate(data).pack() == data


def test_amd_chain_unpacks() -> None:
    ask, rest = take_certificate(authority().chain())
    ark, end = take_certificate(rest)
    assert (ask.usage, ark.usage, end) == (0x13, 0x00, b"")
    assert len(ask.pack()) == 64 + 3 * 256


@pytest.mark.parametrize("offset", [4, 20, 92, 200, 1043, 1044 + 8, 1044 + 80])
def test_a_changed_pdh_has_a_bad_signature(offset: int) -> None:
    who = identity("target")
    assert refusal(flipped(who.pdh, offset), who.pek) is Status.BAD_SIGNATURE


def test_a_certificate_of_another_signer() -> None:
    who, other = identity("target"), identity("other")
    assert refusal(who.pdh, other.pek) is Status.BAD_SIGNATURE
    assert refusal(who.pdh, who.cek) is Status.INVALID_CERTIFICATE


def test_a_good_signature_of_a_key_that_may_not_sign() -> None:
    """A PEK signs PDHs; an OCA certificate signed by one is none."""
    key = ec.derive_private_key(99, ec.SECP384R1())
    pek = certificate_for(Usage.PEK, 2, key.public_key(), (1, 55))
    signed = {
        usage: sign(certificate_for(usage, 2, key.public_key(), (1, 55)), Usage.PEK, key)
        for usage in (Usage.PDH, Usage.OCA, Usage.PEK, Usage.CEK)
    }
    validate(signed.pop(Usage.PDH), pek.public_key())
    for certificate in signed.values():
        assert refusal(certificate, pek) is Status.INVALID_CERTIFICATE


def test_a_half_filled_signature_field_is_malformed() -> None:
    who = identity("target")
    assert refusal(flipped(who.pdh, 1564 + 4), who.pek) is Status.BAD_SIGNATURE


def test_one_good_signature_of_two_is_enough() -> None:
    who = identity("target")
    validate(flipped(who.pek, 1564 + 8), who.oca.public_key())
    assert refusal(flipped(who.pek, 1564 + 8), who.cek) is Status.BAD_SIGNATURE


def test_a_point_off_the_curve_is_no_key() -> None:
    bad = msgspec.structs.replace(identity("target").pdh, x=b"\1" + bytes(71))
    with pytest.raises(Refused) as caught:
        check_diffie_hellman(bad)
    assert caught.value.status is Status.INVALID_CERTIFICATE


@given(st.binary(min_size=2084, max_size=2084))
def test_any_bytes_are_refused_as_a_peer(data: bytes) -> None:
    with pytest.raises(Refused):
        check_diffie_hellman(unpack_certificate(data))


@given(st.binary(max_size=3000))
def test_any_bytes_are_refused_as_a_root(data: bytes) -> None:
    with pytest.raises(Refused):
        validate_amd(take_certificate(data)[0], Usage.ARK, authority().ark)
