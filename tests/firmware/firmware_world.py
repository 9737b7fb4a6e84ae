# SPDX-License-Identifier: GPL-2.0-or-later
"""Two platforms with real keys and guests in a wanted state, for the firmware tests."""

from __future__ import annotations

import functools
import hashlib
import random
from dataclasses import dataclass

from guestemu.abi.sev_firmware import Command, GuestState, Policy, Status
from guestemu.host.firmware.buffers import (
    ActivateBuffer,
    CommandBuffer,
    GuestStatusBuffer,
    HandleBuffer,
    InitBuffer,
    LaunchMeasureBuffer,
    LaunchUpdateBuffer,
    Nothing,
    SendStartBuffer,
    StartBuffer,
    UpdateBuffer,
)
from guestemu.host.firmware.dispatch import execute
from guestemu.host.firmware.identity import (
    Authority,
    Identity,
    Owner,
    generate_authority,
    generate_identity,
    generate_owner,
)
from guestemu.host.firmware.memory import HostMemory
from guestemu.host.firmware.platform import API_VERSION, Platform

PDH, CHAIN, AMD, SESSION = 0x10000, 0x12000, 0x16000, 0x1A000
HEADER, PACKET, MEASURE = 0x20000, 0x28000, 0x30000
GUEST, SPARE = 0x100000, 0x200000
CERTIFICATE = 2084


@functools.cache
def authority() -> Authority:
    return generate_authority()


@functools.cache
def owner(name: str) -> Owner:
    return generate_owner(source_of(name), API_VERSION)


@functools.cache
def identity(name: str, owner_name: str = "owner", api: tuple[int, int] = API_VERSION) -> Identity:
    return generate_identity(authority(), owner(owner_name), source_of(name), api)


def source_of(name: str):
    seed = hashlib.sha256(name.encode()).digest()
    return random.Random(seed).randbytes


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def working(name: str, es: bool = True, seed: str = "") -> Platform:
    """An initialised platform whose ASIDs are flushed; `seed` makes its keys others."""
    platform = Platform(HostMemory(1 << 32), identity(name), source_of(f"{name}!{seed}"))
    assert execute(platform, Command.INIT, InitBuffer(es)) is Status.SUCCESS
    platform.asids.wbinvd()
    assert execute(platform, Command.DF_FLUSH, Nothing()) is Status.SUCCESS
    return platform


def do(platform: Platform, command: Command, buffer: CommandBuffer) -> None:
    status = execute(platform, command, buffer)
    assert status is Status.SUCCESS, f"{command.name}: {status.name}"


def state_of(platform: Platform, handle: int) -> int:
    buffer = GuestStatusBuffer(handle)
    do(platform, Command.GUEST_STATUS, buffer)
    return buffer.state


def launch(platform: Platform, policy: int, asid: int = 0, run: bool = True) -> int:
    """A launched guest with one private page of known content at GUEST; its handle."""
    start = StartBuffer(policy=policy)
    do(platform, Command.LAUNCH_START, start)
    if asid:
        do(platform, Command.ACTIVATE, ActivateBuffer(start.handle, asid))
    if run:
        run_guest(platform, start.handle)
    return start.handle


def run_guest(platform: Platform, handle: int) -> None:
    do(platform, Command.LAUNCH_MEASURE, LaunchMeasureBuffer(handle, MEASURE, 48))
    do(platform, Command.LAUNCH_FINISH, HandleBuffer(handle))


def launch_page(platform: Platform, handle: int, address: int, plain: bytes) -> None:
    platform.memory.write(address, plain)
    do(platform, Command.LAUNCH_UPDATE_DATA, LaunchUpdateBuffer(handle, address, len(plain)))


def send_start_buffer(platform: Platform, handle: int, peer: Identity) -> SendStartBuffer:
    """A valid SEND_START towards the owner of `peer`, with all blobs in memory."""
    amd = peer.authority.chain()
    platform.memory.write(PDH, peer.pdh.pack())
    platform.memory.write(CHAIN, peer.platform_chain())
    platform.memory.write(AMD, amd)
    return SendStartBuffer(
        handle, 0, PDH, CERTIFICATE, CHAIN, 3 * CERTIFICATE, AMD, len(amd), SESSION, 128
    )


def receive_start_buffer(platform: Platform, offer: Offer) -> StartBuffer:
    platform.memory.write(PDH, offer.pdh)
    platform.memory.write(SESSION, offer.session)
    return StartBuffer(0, offer.policy, PDH, CERTIFICATE, SESSION, 128)


def update_buffer(handle: int, address: int = GUEST, size: int = 4096) -> UpdateBuffer:
    return UpdateBuffer(handle, HEADER, 52, address, size, PACKET, size)


@dataclass(frozen=True)
class Offer:
    """What a receiver gets from the source: session, its PDH, a packet."""

    policy: int
    session: bytes
    pdh: bytes
    header: bytes
    packet: bytes
    plain: bytes


@functools.cache
def offer(policy: int, receiver: str = "target", is_vmsa: bool = False) -> Offer:
    """Produced by the model's own sender towards the platform named `receiver`."""
    source = working("source", seed=f"{policy} {receiver} {is_vmsa}")
    handle = launch(source, policy, 5, run=False)
    plain = content(4096)
    source.memory.write(GUEST, plain)
    kind = Command.LAUNCH_UPDATE_VMSA if is_vmsa else Command.LAUNCH_UPDATE_DATA
    do(source, kind, LaunchUpdateBuffer(handle, GUEST, 4096))
    run_guest(source, handle)
    do(source, Command.SEND_START, send_start_buffer(source, handle, identity(receiver)))
    update = Command.SEND_UPDATE_VMSA if is_vmsa else Command.SEND_UPDATE_DATA
    do(source, update, update_buffer(handle))
    return Offer(
        policy,
        source.memory.read(SESSION, 128),
        source.identity.pdh.pack(),
        source.memory.read(HEADER, 52),
        source.memory.read(PACKET, 4096),
        plain,
    )


def guest_in(platform: Platform, state: GuestState, policy: int, asid: int = 0) -> int:
    """A guest of `platform` (named "target") in `state`, reached by commands alone."""
    if state is GuestState.RUPDATE:
        start = receive_start_buffer(platform, offer(policy))
        do(platform, Command.RECEIVE_START, start)
        if asid:
            do(platform, Command.ACTIVATE, ActivateBuffer(start.handle, asid))
        return start.handle
    handle = launch(platform, policy, asid, run=False)
    if asid:
        launch_page(platform, handle, GUEST, content(4096))
        if policy & Policy.ES:
            platform.memory.write(SPARE, content(4096, 2))
            buffer = LaunchUpdateBuffer(handle, SPARE, 4096)
            do(platform, Command.LAUNCH_UPDATE_VMSA, buffer)
    if state >= GuestState.LSECRET:
        do(platform, Command.LAUNCH_MEASURE, LaunchMeasureBuffer(handle, MEASURE, 48))
    if state >= GuestState.RUNNING:
        do(platform, Command.LAUNCH_FINISH, HandleBuffer(handle))
    if state >= GuestState.SUPDATE:
        do(platform, Command.SEND_START, send_start_buffer(platform, handle, identity("other")))
    if state is GuestState.SENT:
        do(platform, Command.SEND_FINISH, HandleBuffer(handle))
    return handle
