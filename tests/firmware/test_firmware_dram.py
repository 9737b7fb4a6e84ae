# SPDX-License-Identifier: GPL-2.0-or-later
"""The firmware on the DRAM of an emulated guest, and on a host's own memory."""

from __future__ import annotations

import pytest
from firmware_world import (
    HEADER,
    PACKET,
    content,
    do,
    identity,
    run_guest,
    send_start_buffer,
    working,
)
from hypothesis import given
from hypothesis import strategies as st

from guestemu.abi.addresses import Gfn, Gpa
from guestemu.abi.sev_firmware import Command
from guestemu.host.firmware.buffers import ActivateBuffer, StartBuffer, UpdateBuffer
from guestemu.host.firmware.memory import BadAddress, HostMemory, KeySlots
from guestemu.host.firmware.platform import Platform
from guestemu.machine.layout import LOW_PAGES
from guestemu.machine.machine import Machine, MachineConfig

BASE = 0x4000_0000
PAGES = 32


def machine_on(platform: Platform, handle: int) -> Machine:
    machine = Machine(MachineConfig(frames=PAGES, native_hooks=False))
    memory = platform.memory
    assert isinstance(memory, HostMemory)
    memory.attach(BASE, machine.ram, platform.memory_key(handle))
    return machine


def test_a_machines_pages_move_to_another_machine() -> None:
    source, target = working("source"), working("target")
    start = StartBuffer()
    do(source, Command.LAUNCH_START, start)
    do(source, Command.ACTIVATE, ActivateBuffer(start.handle, 5))
    ours = machine_on(source, start.handle)
    for gfn in range(PAGES):
        ours.ram.write(Gpa(gfn * 4096), content(4096, gfn))
    run_guest(source, start.handle)
    do(source, Command.SEND_START, send_start_buffer(source, start.handle, identity("target")))
    target.memory.write(0x1A000, source.memory.read(0x1A000, 128))
    target.memory.write(0x10000, source.identity.pdh.pack())
    theirs = StartBuffer(0, 0, 0x10000, 2084, 0x1A000, 128)
    do(target, Command.RECEIVE_START, theirs)
    do(target, Command.ACTIVATE, ActivateBuffer(theirs.handle, 6))
    other = machine_on(target, theirs.handle)
    for gfn in range(PAGES):
        at = BASE + gfn * 4096
        sent = UpdateBuffer(start.handle, HEADER, 52, at, 4096, PACKET, 4096)
        do(source, Command.SEND_UPDATE_DATA, sent)
        target.memory.write(HEADER, source.memory.read(HEADER, 52))
        target.memory.write(PACKET, source.memory.read(PACKET, 4096))
        got = UpdateBuffer(theirs.handle, HEADER, 52, at, 4096, PACKET, 4096)
        do(target, Command.RECEIVE_UPDATE_DATA, got)
    for gfn in range(PAGES):
        assert other.ram.read(Gpa(gfn * 4096), 4096) == content(4096, gfn)
        if gfn >= LOW_PAGES:
            assert other.ram.dram(Gfn(gfn)) != ours.ram.dram(Gfn(gfn)) != content(4096, gfn)


def test_a_shared_page_sent_through_the_firmware_arrives_as_garbage() -> None:
    """The firmware decrypts what was never encrypted: why a sender must know the status."""
    source = working("source")
    start = StartBuffer()
    do(source, Command.LAUNCH_START, start)
    do(source, Command.ACTIVATE, ActivateBuffer(start.handle, 5))
    machine = machine_on(source, start.handle)
    machine.ram.write(Gpa(20 * 4096), content(4096), private=False)
    assert source.memory.read(BASE + 20 * 4096, 4096) == content(4096)
    assert source.keys.read(5, BASE + 20 * 4096, 4096) != content(4096)


@given(
    st.lists(st.tuples(st.integers(0, 3 * 4096), st.binary(min_size=1, max_size=5000)), max_size=8)
)
def test_host_memory_is_a_byte_array(writes: list[tuple[int, bytes]]) -> None:
    memory = HostMemory(1 << 20)
    flat = bytearray(1 << 15)
    for address, data in writes:
        memory.write(address, data)
        flat[address : address + len(data)] = data
    assert memory.read(0, len(flat)) == flat


def test_beyond_the_end_nothing_is_written() -> None:
    memory = HostMemory(8192)
    with pytest.raises(BadAddress):
        memory.write(8190, b"abcd")
    assert memory.read(8190, 2) == b"\0\0"


@given(st.integers(0, 600), st.integers(1, 600), st.binary(min_size=16, max_size=16))
def test_encrypted_access_by_blocks(first: int, blocks: int, key: bytes) -> None:
    """Blocks written in one go read back one by one, and leave their neighbours alone."""
    memory = HostMemory(1 << 20)
    memory.write(0, content(1 << 15))
    keys = KeySlots(memory)
    keys.install(1, key)
    plain = content(16 * blocks, 7)
    before = keys.read(1, 0, 1 << 15)
    keys.write(1, 16 * first, plain)
    expected = before[: 16 * first] + plain + before[16 * (first + blocks) :]
    assert keys.read(1, 0, 1 << 15) == expected
    assert keys.read(1, 16 * first, 16) == plain[:16]
