# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets and whole transfers between two platforms with different keys."""

from __future__ import annotations

import pytest
from firmware_world import (
    GUEST,
    HEADER,
    PACKET,
    PDH,
    SESSION,
    SPARE,
    content,
    do,
    guest_in,
    identity,
    launch,
    launch_page,
    offer,
    receive_start_buffer,
    run_guest,
    send_start_buffer,
    state_of,
    update_buffer,
    working,
)

from guestemu.abi.sev_firmware import Command, GuestState, PlatformState, Policy, Status
from guestemu.host.firmware.buffers import (
    ActivateBuffer,
    CopyBuffer,
    DebugBuffer,
    HandleBuffer,
    Nothing,
    StartBuffer,
)
from guestemu.host.firmware.dispatch import execute
from guestemu.host.firmware.platform import Platform


def receiver() -> tuple[Platform, int]:
    target = working("target")
    return target, guest_in(target, GuestState.RUPDATE, 0, 8)


def put(target: Platform, header: bytes, packet: bytes) -> None:
    target.memory.write(HEADER, header)
    target.memory.write(PACKET, packet)


def send(source: Platform, handle: int, address: int) -> tuple[bytes, bytes]:
    do(source, Command.SEND_UPDATE_DATA, update_buffer(handle, address))
    return source.memory.read(HEADER, 52), source.memory.read(PACKET, 4096)


def test_a_guest_moves_page_by_page() -> None:
    pages = 16
    source, target = working("source"), working("target")
    handle = launch(source, Policy.SEV | Policy.DOMAIN, 5, run=False)
    for page in range(pages):
        launch_page(source, handle, GUEST + page * 4096, content(4096, page))
    run_guest(source, handle)
    do(source, Command.SEND_START, send_start_buffer(source, handle, identity("target")))
    blobs = (source.memory.read(SESSION, 128), source.identity.pdh.pack())
    start = StartBuffer(0, Policy.SEV | Policy.DOMAIN, PDH, 2084, SESSION, 128)
    target.memory.write(SESSION, blobs[0])
    target.memory.write(PDH, blobs[1])
    do(target, Command.RECEIVE_START, start)
    do(target, Command.ACTIVATE, ActivateBuffer(start.handle, 7))
    for page in range(pages):
        put(target, *send(source, handle, GUEST + page * 4096))
        buffer = update_buffer(start.handle, SPARE + page * 4096)
        do(target, Command.RECEIVE_UPDATE_DATA, buffer)
    do(source, Command.SEND_FINISH, HandleBuffer(handle))
    do(target, Command.RECEIVE_FINISH, HandleBuffer(start.handle))
    for page in range(pages):
        assert target.keys.read(7, SPARE + page * 4096, 4096) == content(4096, page)
        ours = source.memory.read(GUEST + page * 4096, 4096)
        theirs = target.memory.read(SPARE + page * 4096, 4096)
        assert len({ours, theirs, content(4096, page)}) == 3
    assert (state_of(source, handle), state_of(target, start.handle)) == (6, 3)


def test_any_flipped_bit_is_refused_and_nothing_is_written() -> None:
    target, handle = receiver()
    given = offer(0)
    target.memory.write(SPARE, b"\xaa" * 4096)
    places = [(HEADER, bit) for bit in range(52 * 8)] + [
        (PACKET, bit) for bit in range(0, 4096 * 8, 61)
    ]
    put(target, given.header, given.packet)
    for base, bit in places:
        address, mask = base + bit // 8, 1 << bit % 8
        good = target.memory.read(address, 1)
        target.memory.write(address, bytes([good[0] ^ mask]))
        status = execute(target, Command.RECEIVE_UPDATE_DATA, update_buffer(handle, SPARE))
        is_compressed = (base, bit) == (HEADER, 0)
        assert status is (Status.UNSUPPORTED if is_compressed else Status.BAD_MEASUREMENT)
        target.memory.write(address, good)
    assert target.memory.read(SPARE, 4096) == b"\xaa" * 4096
    do(target, Command.RECEIVE_UPDATE_DATA, update_buffer(handle, SPARE))
    assert target.keys.read(8, SPARE, 4096) == given.plain


@pytest.mark.parametrize("size", [16, 2048, 4080])
def test_a_shortened_packet_is_refused(size: int) -> None:
    target, handle = receiver()
    put(target, offer(0).header, offer(0).packet)
    status = execute(target, Command.RECEIVE_UPDATE_DATA, update_buffer(handle, SPARE, size))
    assert status is Status.BAD_MEASUREMENT


def test_replay_at_another_address_is_accepted() -> None:
    target, handle = receiver()
    put(target, offer(0).header, offer(0).packet)
    for address in (GUEST, SPARE, GUEST, SPARE + 0x10):
        do(target, Command.RECEIVE_UPDATE_DATA, update_buffer(handle, address))
        assert target.keys.read(8, address, 4096) == offer(0).plain


def test_reordered_and_dropped_packets_are_accepted() -> None:
    source, target = working("source"), working("target")
    handle = launch(source, 0, 5, run=False)
    for page in range(3):
        launch_page(source, handle, GUEST + page * 4096, content(4096, page))
    run_guest(source, handle)
    do(source, Command.SEND_START, send_start_buffer(source, handle, identity("target")))
    given = offer(0)
    start = receive_start_buffer(target, given)
    target.memory.write(SESSION, source.memory.read(SESSION, 128))
    do(target, Command.RECEIVE_START, start)
    do(target, Command.ACTIVATE, ActivateBuffer(start.handle, 7))
    packets = [send(source, handle, GUEST + page * 4096) for page in range(3)]
    assert len({header for header, _ in packets}) == 3
    for page in (2, 0):
        put(target, *packets[page])
        do(target, Command.RECEIVE_UPDATE_DATA, update_buffer(start.handle, GUEST))
    do(target, Command.RECEIVE_FINISH, HandleBuffer(start.handle))
    assert target.keys.read(7, GUEST, 4096) == content(4096, 0)


def test_a_packet_of_another_session_is_refused() -> None:
    target, handle = receiver()
    put(target, offer(Policy.NODBG).header, offer(Policy.NODBG).packet)
    status = execute(target, Command.RECEIVE_UPDATE_DATA, update_buffer(handle))
    assert status is Status.BAD_MEASUREMENT


def test_a_sent_guest_stays_active_until_deactivate() -> None:
    platform = working("target")
    handle = guest_in(platform, GuestState.SENT, 0, 8)
    assert platform.guests[handle].is_active
    do(platform, Command.DEACTIVATE, HandleBuffer(handle))
    status = execute(platform, Command.ACTIVATE, ActivateBuffer(handle, 9))
    assert status is Status.INVALID_GUEST_STATE


def test_activation_stays_pending_until_the_guest_runs() -> None:
    platform = working("target")
    handle = launch(platform, 0, 8, run=False)
    assert not platform.guests[handle].is_active
    run_guest(platform, handle)
    assert platform.guests[handle].is_active


def test_receive_finish_enables_a_pending_asid() -> None:
    target, handle = receiver()
    assert not target.guests[handle].is_active
    do(target, Command.RECEIVE_FINISH, HandleBuffer(handle))
    assert target.guests[handle].is_active


@pytest.mark.parametrize("state", [GuestState.RUNNING, GuestState.SUPDATE])
def test_a_guest_that_may_run_is_active_at_once(state: GuestState) -> None:
    platform = working("target")
    handle = guest_in(platform, state, 0)
    do(platform, Command.ACTIVATE, ActivateBuffer(handle, 8))
    assert platform.guests[handle].is_active


def test_the_last_decommission_takes_the_platform_to_init() -> None:
    platform = working("target")
    first, second = launch(platform, 0), launch(platform, 0)
    for handle, state in ((first, PlatformState.WORKING), (second, PlatformState.INIT)):
        do(platform, Command.DECOMMISSION, HandleBuffer(handle))
        assert platform.state is state


def test_only_an_asid_that_ran_needs_a_flush() -> None:
    platform = working("target")
    handle = launch(platform, 0, 8, run=False)
    do(platform, Command.DEACTIVATE, HandleBuffer(handle))
    do(platform, Command.ACTIVATE, ActivateBuffer(handle, 8))
    run_guest(platform, handle)
    do(platform, Command.DEACTIVATE, HandleBuffer(handle))
    again = ActivateBuffer(handle, 8)
    assert execute(platform, Command.ACTIVATE, again) is Status.DFFLUSH_REQUIRED
    assert execute(platform, Command.DF_FLUSH, Nothing()) is Status.WBINVD_REQUIRED
    platform.asids.wbinvd()
    do(platform, Command.DF_FLUSH, Nothing())
    do(platform, Command.ACTIVATE, again)


def test_send_can_be_repeated_after_cancel_with_new_keys() -> None:
    platform = working("target")
    handle = guest_in(platform, GuestState.SUPDATE, 0, 8)
    first = platform.guests[handle].channel
    do(platform, Command.SEND_CANCEL, HandleBuffer(handle))
    assert platform.guests[handle].channel is None
    do(platform, Command.SEND_START, send_start_buffer(platform, handle, identity("other")))
    assert platform.guests[handle].channel not in (None, first)


def test_copy_re_encrypts_for_the_new_address() -> None:
    platform = working("target")
    handle = guest_in(platform, GuestState.RUNNING, 0, 8)
    do(platform, Command.COPY, CopyBuffer(handle, 4096, GUEST, SPARE))
    assert platform.keys.read(8, SPARE, 4096) == content(4096)
    assert platform.memory.read(SPARE, 4096) != platform.memory.read(GUEST, 4096)


def test_copy_onto_itself_succeeds_without_copying() -> None:
    platform = working("target")
    handle = guest_in(platform, GuestState.RUNNING, 0, 8)
    before = platform.memory.read(GUEST, 8192)
    do(platform, Command.COPY, CopyBuffer(handle, 8192, GUEST, GUEST))
    assert platform.memory.read(GUEST, 8192) == before
    do(platform, Command.COPY, CopyBuffer(handle, 4096, 1 << 40, 1 << 40))


def test_moved_ciphertext_does_not_decrypt() -> None:
    platform = working("target")
    handle = guest_in(platform, GuestState.RUNNING, 0, 8)
    platform.memory.write(SPARE, platform.memory.read(GUEST, 4096))
    assert platform.keys.read(8, SPARE, 4096) != content(4096)
    assert state_of(platform, handle) == 3


def test_debug_crosses_between_plaintext_and_guest() -> None:
    platform = working("target")
    handle = guest_in(platform, GuestState.RUNNING, 0, 8)
    do(platform, Command.DBG_DECRYPT, DebugBuffer(handle, GUEST + 16, 0x50000, 32))
    assert platform.memory.read(0x50000, 32) == content(4096)[16:48]
    platform.memory.write(0x50000, b"X" * 32)
    do(platform, Command.DBG_ENCRYPT, DebugBuffer(handle, 0x50000, GUEST + 16, 32))
    plain = content(4096)
    assert platform.keys.read(8, GUEST, 4096) == plain[:16] + b"X" * 32 + plain[48:]


def test_a_shared_key_reads_the_other_guest() -> None:
    platform = working("target")
    first = guest_in(platform, GuestState.RUNNING, 0, 8)
    second = StartBuffer(handle=first)
    do(platform, Command.LAUNCH_START, second)
    assert platform.memory_key(second.handle) == platform.memory_key(first)
    other = StartBuffer()
    do(platform, Command.LAUNCH_START, other)
    assert platform.memory_key(other.handle) != platform.memory_key(first)


def test_handles_run_from_1_to_1024_and_are_used_again() -> None:
    platform = working("target")
    handles = []
    for _ in range(1024):
        start = StartBuffer()
        do(platform, Command.LAUNCH_START, start)
        handles.append(start.handle)
    assert handles == list(range(1, 1025))
    assert execute(platform, Command.LAUNCH_START, StartBuffer()) is Status.RESOURCE_LIMIT
    do(platform, Command.DECOMMISSION, HandleBuffer(500))
    start = StartBuffer()
    do(platform, Command.LAUNCH_START, start)
    assert start.handle == 500


@pytest.mark.parametrize("policy", [0, int(Policy.ES)])
def test_the_largest_packet(policy: int) -> None:
    platform = working("target")
    handle = guest_in(platform, GuestState.SUPDATE, policy, 8)
    do(platform, Command.SEND_UPDATE_DATA, update_buffer(handle, GUEST, 0x5000))
    assert not any(platform.scratch[:4096])
    assert platform.scratch[4096:] == platform.memory.read(PACKET, 0x5000)[4096:]


def test_the_largest_packet_arrives() -> None:
    source, target = working("source"), working("target")
    handle = guest_in(source, GuestState.RUNNING, 0, 5)
    do(source, Command.SEND_START, send_start_buffer(source, handle, identity("target")))
    do(source, Command.SEND_UPDATE_DATA, update_buffer(handle, GUEST, 0x5000))
    start = receive_start_buffer(target, offer(0))
    target.memory.write(SESSION, source.memory.read(SESSION, 128))
    do(target, Command.RECEIVE_START, start)
    do(target, Command.ACTIVATE, ActivateBuffer(start.handle, 8))
    put(target, source.memory.read(HEADER, 52), source.memory.read(PACKET, 0x5000))
    do(target, Command.RECEIVE_UPDATE_DATA, update_buffer(start.handle, GUEST, 0x5000))
    assert target.keys.read(8, GUEST, 0x5000) == source.keys.read(5, GUEST, 0x5000)


def test_a_refused_vmsa_leaves_plaintext_in_the_scratch_buffer() -> None:
    """E19: only 4 KiB are cleared, and a VMSA is validated before it is encrypted."""
    platform = working("target")
    handle = guest_in(platform, GuestState.SUPDATE, Policy.ES, 8)
    buffer = update_buffer(handle, GUEST, 0x5000)
    assert execute(platform, Command.SEND_UPDATE_VMSA, buffer) is Status.INVALID_PARAM
    assert platform.scratch[4096:] == platform.keys.read(8, GUEST, 0x5000)[4096:]
    assert not any(platform.scratch[:4096])


def test_a_vmsa_moves() -> None:
    target = working("target")
    given = offer(Policy.ES, is_vmsa=True)
    handle = receive_start_buffer(target, given)
    do(target, Command.RECEIVE_START, handle)
    do(target, Command.ACTIVATE, ActivateBuffer(handle.handle, 8))
    put(target, given.header, given.packet)
    do(target, Command.RECEIVE_UPDATE_VMSA, update_buffer(handle.handle))
    assert target.keys.read(8, GUEST, 4096) == given.plain


def test_addresses_beyond_dram_are_invalid() -> None:
    platform = working("target")
    handle = guest_in(platform, GuestState.SUPDATE, 0, 8)
    buffer = update_buffer(handle, 1 << 40)
    assert execute(platform, Command.SEND_UPDATE_DATA, buffer) is Status.INVALID_ADDRESS


def test_the_c_bit_of_guest_addresses_is_ignored() -> None:
    platform = working("target")
    handle = guest_in(platform, GuestState.SUPDATE, 0, 8)
    do(platform, Command.SEND_UPDATE_DATA, update_buffer(handle, GUEST | 1 << 51))
