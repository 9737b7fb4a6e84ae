# SPDX-License-Identifier: GPL-2.0-or-later
"""The primitives against published vectors."""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from guestemu.host.firmware.kdf import agree, counter_mode
from guestemu.host.firmware.packet import counter_cipher


def test_aes_128_ctr_of_sp800_38a_f51() -> None:
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    cipher = bytes.fromhex(
        "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff"
        "5ae4df3edbd5d35e5b4f09020db03eab1e031dda2fbe03d1792170a0f3009cee"
    )
    assert counter_cipher(key, counter, plain) == cipher
    assert counter_cipher(key, counter, cipher) == plain


def test_hmac_sha_256_of_rfc_4231_case_2() -> None:
    mac = hmac.digest(b"Jefe", b"what do ya want for nothing?", "sha256")
    assert mac.hex() == "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"


def test_counter_mode_of_the_cavp_vectors() -> None:
    """KDFCTR_gen.rsp: HMAC_SHA256, counter before the fixed data, 32 bits, count 0."""
    key = bytes.fromhex("dd1d91b7d90b2bd3138533ce92b272fbf8a369316aefe242e659cc0ae238afe0")
    fixed = bytes.fromhex(
        "01322b96b30acd197979444e468e1c5c6859bf1b1cf951b7e725303e237e46b864a145fab25e517b"
        "08f8683d0315bb2911d80a0e8aba17f3b413faac"
    )
    found = counter_mode(key, fixed, 16, "big")
    assert found.hex() == "10621342bfb0fd40046c0e29f2cfdbf0"


def test_counter_mode_over_several_blocks_equals_a_library() -> None:
    kdf = KBKDFHMAC(
        SHA256(), Mode.CounterMode, 100, 4, 4, CounterLocation.BeforeFixed, b"label", b"ctx", None
    )
    fixed = b"label\0ctx" + (800).to_bytes(4, "big")
    assert counter_mode(b"k" * 48, fixed, 100, "big") == kdf.derive(b"k" * 48)


def test_ecdh_p384_of_rfc_5903() -> None:
    """Section 8.2, the initiator's private key and the responder's public key."""
    private = int(
        "099f3c7034d4a2c699884d73a375a67f7624ef7c6b3c0f160647b67414dce655"
        "e35b538041e649ee3faef896783ab194",
        16,
    )
    x = int(
        "e558dbef53eecde3d3fccfc1aea08a89a987475d12fd950d83cfa41732bc509d"
        "0d1ac43a0336def96fda41d0774a3571",
        16,
    )
    y = int(
        "dcfbec7aacf3196472169e838430367f66eebe3c6e70c416dd5f0c68759dd1ff"
        "f83fa40142209dff5eaad96db9e6386c",
        16,
    )
    public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()
    shared = agree(ec.derive_private_key(private, ec.SECP384R1()), public)
    assert shared.hex() == (
        "11187331c279962d93d604243fd592cb9d0a926f422e47187521287e7156c5c4"
        "d603135569b9e9d09cf5d4a270f59746"
    )
