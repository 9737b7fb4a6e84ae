# SPDX-License-Identifier: GPL-2.0-or-later
"""Source and destination in two processes, joined by a stream alone; and broken streams."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from held import DEADLINE_S
from migration_world import host_for, snippet

from guestemu.abi.errors import InputError
from guestemu.abi.regions import Region
from guestemu.migration.links import Packet
from guestemu.migration.stepping import Stepper
from guestemu.migration.stream import MessageChannel, PlainRequest, accept_guest, offer_guest
from guestemu.runner.exit_recorder import ExitRecorder

HERE = Path(__file__).parent


@pytest.mark.parametrize("kind", ["plain", "firmware"])
def test_two_processes_share_nothing_but_the_stream(kind: str) -> None:
    """The guest is stopped inside set_memory_decrypted, before it has told its host; the
    notification happens in the other process."""
    guest = snippet()
    host = host_for(guest)
    guest.machine.hooks.handler = recorder = ExitRecorder(host, guest)
    page, shared = guest.gva(Region.D, 0), guest.gva(Region.D, 1)
    guest.kvm_init_platform(False)
    guest.set_memory_decrypted(shared, 1)
    guest.memset(page, 0x21, 4096)
    guest.memset(shared, 0x22, 4096)
    told = len(recorder.records)
    process = subprocess.Popen(
        [sys.executable, str(HERE / "destination_process.py"), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    channel = MessageChannel(process.stdout, process.stdin)
    source = offer_guest(channel, guest, host)
    source.steps.fetch(clear=True)
    source.steps.copy_status()
    assert source.steps.send(live=False) > 20
    stop_inside_conversion(guest.machine, guest, page)
    source.steps.fetch(clear=True)
    source.steps.copy_status()
    assert 0 < source.steps.send(live=False) < 10
    channel.put(source.finish())
    channel.flush()
    found = json.loads(process.communicate(timeout=DEADLINE_S)[0])
    assert process.returncode == 0
    assert len(recorder.records) == told
    assert found["pid"] != os.getpid()
    assert found["end"] == "Halt"
    assert found["loads"][1] == 0x2222222222222222
    assert found["shared"] == [*range(0x200, 0x400), 0x400, 0x401]
    assert (found["ready"], found["calls"], found["again"]) == (True, [12], 0)
    assert channel.bytes_sent < 60 * 4096 + 60_000


def stop_inside_conversion(machine, guest, gva: int) -> None:
    """Enters set_memory_decrypted(gva, 1) and executes 20 of its instructions."""
    machine.engine.flush_blocks()
    machine.engine.flush_tlb()
    guest._context.restore()
    for name, value in (
        *(("rdi", gva), ("rsi", 1), ("rsp", 0x31FF8)),
        ("rip", guest._symbols["set_memory_decrypted"]),
    ):
        machine.current.write_register(name, value)
    Stepper(machine).to(20)


def test_what_is_put_is_what_comes_out() -> None:
    stream = io.BytesIO()
    MessageChannel(io.BytesIO(), stream).put(Packet(7, False, bytes(4096)))
    stream.seek(0)
    assert MessageChannel(stream, io.BytesIO()).get() == Packet(7, False, bytes(4096))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends inside a message"),
        (b"\0\0\0\x05ab", "ends inside a message"),
        (struct.pack(">I", 1 << 30), "a message of 1073741824 bytes"),
        (b"\0\0\0\x02\xff\xff", "migration stream: "),
        (b"\0\0\0\x01\xc0", "migration stream: "),
    ],
)
def test_a_broken_stream_is_an_input_error(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        MessageChannel(io.BytesIO(data), io.BytesIO()).get()
    assert "connect it to the other end" in str(raised.value)


@pytest.mark.parametrize("message", [PlainRequest(), Packet(1 << 40, False, bytes(4096))])
def test_a_message_out_of_place_is_an_input_error(message: PlainRequest | Packet) -> None:
    stream = io.BytesIO()
    MessageChannel(io.BytesIO(), stream).put(message)
    stream.seek(0)
    guest = snippet()
    with pytest.raises(InputError, match="among pages"):
        accept_guest(MessageChannel(stream, io.BytesIO()), guest, host_for(guest), firmware=False)


def test_a_source_that_hears_pages_first_refuses() -> None:
    stream = io.BytesIO()
    MessageChannel(io.BytesIO(), stream).put(Packet(1, False, bytes(4096)))
    stream.seek(0)
    guest = snippet()
    with pytest.raises(InputError, match="Packet came first"):
        offer_guest(MessageChannel(stream, io.BytesIO()), guest, host_for(guest))
