# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of the parts: decoding, trace parsing, settling a page, rollback, boot."""

from __future__ import annotations

import io
import random
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import ECB

from guestemu.abi.addresses import PAGE_SIZE, Gfn
from guestemu.bench.figure import Pair
from guestemu.bench.scene import GENERATION, BenchScene, page_of
from guestemu.dma.synthetic import synthetic_events, trace_text
from guestemu.dma.trace import TraceReader
from guestemu.machine.cipher import PageCipher
from guestemu.machine.engine import Engine
from guestemu.program.binary import RECORD, RECORD_SIZE, decoder_for
from guestemu.program.program import Header
from guestemu.runner.testbed import build_testbed

_RECORDS: Final = 64
_EVENTS: Final = 4000
_RECENT: Final = 0xF
_KEY: Final = bytes(range(16))


def decode(scene: BenchScene) -> Pair:
    """Random bytes to ops, beside a plain struct.unpack of the same records; per op."""
    data = random.Random(0).randbytes(_RECORDS * RECORD_SIZE)
    decoder = decoder_for(Header()).decode

    def run(count: int) -> None:
        for _ in range(count):
            decoder(data)

    def unpack(count: int) -> None:
        for _ in range(count):
            list(RECORD.iter_unpack(data))

    return Pair(run, unpack, "struct.unpack", items=_RECORDS, floor_items=_RECORDS)


def parse(scene: BenchScene) -> Pair:
    """Events per second read from an ftrace text, beside splitting its lines into words."""
    text = b"".join(trace_text(synthetic_events(_EVENTS)))

    def run(count: int) -> None:
        for _ in range(count):
            for _event in TraceReader(io.BytesIO(text)):
                pass

    def split(count: int) -> None:
        for _ in range(count):
            for line in io.BytesIO(text):
                line.split()

    return Pair(run, split, "split into words", "/s", items=_EVENTS, floor_items=_EVENTS)


def settle(scene: BenchScene) -> Pair:
    """One page through the cipher (a stale view made current), beside plain AES-ECB of 4 KiB."""
    cipher = PageCipher(_KEY)
    plain = AES128(_KEY)
    encryptor = Cipher(plain, ECB()).encryptor()
    page = random.Random(0).randbytes(PAGE_SIZE)

    def run(count: int) -> None:
        for number in range(count):
            cipher.encrypt(Gfn(number & _RECENT), page)

    def ecb(count: int) -> None:
        for _ in range(count):
            encryptor.update(page)

    return Pair(run, ecb, "AES-128-ECB of a page")


def rollback(scene: BenchScene) -> Pair:
    """Undoing the stores of one conversion, beside a plain copy of as many pages."""
    machine = scene.testbed.guest.machine
    ram = machine.ram
    dirty = scene.conversion.dirty
    target = bytearray(PAGE_SIZE)
    source = bytes(PAGE_SIZE)

    def run(count: int) -> None:
        for _ in range(count):
            for position, index in enumerate(dirty):
                ram.flags[index] |= 1
                ram.dirty_list[position] = index
            ram.watch.dirty_count = len(dirty)
            machine.rollback()

    def copy(count: int) -> None:
        for _ in range(count):
            for _page in dirty:
                target[:] = source

    return Pair(run, copy, f"copying {len(dirty)} pages")


def read_views(scene: BenchScene) -> Pair:
    """A page written through one view and read through the other, from the host's side; beside a
    read of the view that is current."""
    ram = scene.testbed.guest.machine.ram
    gpa = scene.conversion.gpa
    gfn = page_of(gpa)

    def run(count: int) -> None:
        for _ in range(count):
            ram.write(gpa, b"x", private=True)
            ram.dram(Gfn(gfn))

    def current(count: int) -> None:
        for _ in range(count):
            ram.write(gpa, b"x", private=True)
            ram.read(gpa, PAGE_SIZE)

    return Pair(run, current, "the view that is current")


def boot(scene: BenchScene) -> Pair:
    """Building a testbed (64 MiB) and freeing it, beside creating and freeing a bare CPU."""
    header = Header(guest=f"snippet:{GENERATION}")

    def run(count: int) -> None:
        for _ in range(count):
            build_testbed(header).guest.close()

    def cpu(count: int) -> None:
        for _ in range(count):
            engine = Engine()
            engine.flush_tlb()
            engine.close()

    return Pair(run, cpu, "a bare CPU")
