# SPDX-License-Identifier: GPL-2.0-or-later
"""Session blob and packet against a second implementation, written from facts E.4 alone.

Unverified against firmware: both sides read the same facts, no real firmware produced a byte here.
The counter's and lengths' byte order (little-endian) is taken from AMD's published source.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from firmware_world import (
    GUEST,
    HEADER,
    MEASURE,
    PACKET,
    PDH,
    SESSION,
    content,
    do,
    identity,
    launch,
    launch_page,
    receive_start_buffer,
    send_start_buffer,
    state_of,
    update_buffer,
    working,
)
from firmware_world import Offer as WorldOffer

from guestemu.abi.sev_firmware import Command, Status
from guestemu.host.firmware.buffers import (
    ActivateBuffer,
    HandleBuffer,
    LaunchMeasureBuffer,
    StartBuffer,
)
from guestemu.host.firmware.dispatch import execute


def ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    """AES-128-CTR out of single block encryptions."""
    blocks = Cipher(AES(key), ECB()).encryptor()
    first = int.from_bytes(iv, "big")
    count = (len(data) + 15) // 16
    stream = b"".join(
        blocks.update(((first + i) % (1 << 128)).to_bytes(16, "big")) for i in range(count)
    )
    return bytes(a ^ b for a, b in zip(data, stream, strict=False))


def mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


def kdf(key: bytes, label: bytes, context: bytes) -> bytes:
    """One block of SP 800-108 is enough for 16 bytes."""
    return mac(key, struct.pack("<I", 1), label, b"\0", context, struct.pack("<I", 128))[:16]


def point(certificate: bytes) -> ec.EllipticCurvePublicKey:
    """The public key in a PDH certificate: x and y at bytes 20 and 92."""
    x, y = (int.from_bytes(certificate[at : at + 72], "little") for at in (20, 92))
    return ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()


def secret(private: ec.EllipticCurvePrivateKey, peer: bytes, nonce: bytes) -> tuple[bytes, bytes]:
    shared = private.exchange(ec.ECDH(), point(peer))
    master = kdf(shared, b"sev-master-secret", nonce)
    return kdf(master, b"sev-kek", b""), kdf(master, b"sev-kik", b"")


def test_a_session_and_packet_of_the_model_open_by_the_facts() -> None:
    source = working("source")
    handle = launch(source, 0, 5, run=False)
    plain = content(4096)
    launch_page(source, handle, GUEST, plain)
    do(source, Command.LAUNCH_MEASURE, LaunchMeasureBuffer(handle, MEASURE, 48))
    do(source, Command.LAUNCH_FINISH, HandleBuffer(handle))
    target = identity("target")
    do(source, Command.SEND_START, send_start_buffer(source, handle, target))
    do(source, Command.SEND_UPDATE_DATA, update_buffer(handle))

    blob = source.memory.read(SESSION, 128)
    nonce, wrapped, iv = blob[:16], blob[16:48], blob[48:64]
    kek, kik = secret(target.pdh_key, source.identity.pdh.pack(), nonce)
    assert mac(kik, wrapped) == blob[64:96]
    keys = ctr(kek, iv, wrapped)
    tek, tik = keys[:16], keys[16:]
    assert mac(tik, struct.pack("<I", 0)) == blob[96:]

    header, packet = source.memory.read(HEADER, 52), source.memory.read(PACKET, 4096)
    flags, iv, tag = header[:4], header[4:20], header[20:]
    lengths = struct.pack("<II", 4096, 4096)
    assert mac(tik, b"\x02", flags, iv, lengths, packet) == tag
    assert ctr(tek, iv, packet) == plain


def test_the_model_opens_a_session_and_packet_made_by_the_facts() -> None:
    target = working("target")
    client = ec.derive_private_key(12345, ec.SECP384R1())
    certificate = bytearray(identity("source").pdh.pack())
    numbers = client.public_key().public_numbers()
    certificate[20:92] = numbers.x.to_bytes(72, "little")
    certificate[92:164] = numbers.y.to_bytes(72, "little")

    nonce, tek, tik, iv = (content(16, seed) for seed in range(4))
    kek, kik = secret(client, target.identity.pdh.pack(), nonce)
    wrapped = ctr(kek, iv, tek + tik)
    blob = nonce + wrapped + iv + mac(kik, wrapped) + mac(tik, struct.pack("<I", 1))
    plain = content(64, 9)
    data = ctr(tek, iv, plain)
    flags, lengths = struct.pack("<I", 0), struct.pack("<II", 64, 64)
    header = flags + iv + mac(tik, b"\x02", flags, iv, lengths, data)

    start = receive_start_buffer(
        target, WorldOffer(1, blob, bytes(certificate), header, data, plain)
    )
    do(target, Command.RECEIVE_START, start)
    do(target, Command.ACTIVATE, ActivateBuffer(start.handle, 3))
    target.memory.write(HEADER, header)
    target.memory.write(PACKET, data)
    do(target, Command.RECEIVE_UPDATE_DATA, update_buffer(start.handle, GUEST, 64))
    assert target.keys.read(3, GUEST, 64) == plain
    assert target.memory.read(GUEST, 64) != plain


def test_the_launch_measurement_covers_policy_and_content() -> None:
    """A client that opened the launch session computes what LAUNCH_MEASURE must say."""
    platform = working("target")
    client = ec.derive_private_key(777, ec.SECP384R1())
    nonce, tek, tik, iv = (content(16, seed) for seed in range(10, 14))
    kek, kik = secret(client, platform.identity.pdh.pack(), nonce)
    wrapped = ctr(kek, iv, tek + tik)
    blob = nonce + wrapped + iv + mac(kik, wrapped) + mac(tik, struct.pack("<I", 2))
    certificate = bytearray(identity("source").pdh.pack())
    numbers = client.public_key().public_numbers()
    certificate[20:92] = numbers.x.to_bytes(72, "little")
    certificate[92:164] = numbers.y.to_bytes(72, "little")
    platform.memory.write(PDH, bytes(certificate))
    platform.memory.write(SESSION, blob)
    start = StartBuffer(0, 2, PDH, 2084, SESSION, 128)
    assert execute(platform, Command.LAUNCH_START, start) is Status.SUCCESS
    do(platform, Command.ACTIVATE, ActivateBuffer(start.handle, 3))
    launch_page(platform, start.handle, GUEST, content(4096))
    launch_page(platform, start.handle, GUEST + 4096, content(16, 5))
    do(platform, Command.LAUNCH_MEASURE, LaunchMeasureBuffer(start.handle, MEASURE, 48))
    measure = platform.memory.read(MEASURE, 48)
    digest = hashlib.sha256(content(4096) + content(16, 5)).digest()
    policy = struct.pack("<I", 2)
    expected = mac(tik, bytes((4, 1, 55, 25)), policy, digest, measure[32:])
    assert measure[:32] == expected
    assert state_of(platform, start.handle) == 2
