# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of the migration handler: pages through its own AES-GCM in the emulated guest."""

from __future__ import annotations

import random
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa, RamAddr
from guestemu.bench.figure import Pair
from guestemu.bench.scene import BenchScene
from guestemu.host.mirror.context import HandlerConfig
from guestemu.host.mirror.driver import MailboxHandler
from guestemu.host.mirror.mailbox import AAD_SIZE, MAILBOX_GPA, MAILBOX_PAGES
from guestemu.host.mirror.placement import place_identity
from guestemu.host.mirror.vm import SharedRamMirror
from guestemu.machine.machine import Machine, MachineConfig
from guestemu.migration.firmware_link import firmware_link

_KEY: Final = bytes(range(16))
_CBIT: Final = 39
_PAGES: Final = 64
_FIRST: Final = 0x200
_HANDLER: Final = tuple(RamAddr(0x100000 + i * PAGE_SIZE) for i in range(7))
_FRAMES: Final = (MAILBOX_GPA >> PAGE_SHIFT) + MAILBOX_PAGES
_IV_SIZE: Final = 12


def save(scene: BenchScene) -> Pair:
    """Pages per second that a migration handler exports, AES-128-GCM in the emulated guest's own
    instructions, beside the same encryption by the cryptography package."""
    source = _handler(1, 2)

    def run(count: int) -> None:
        for number in range(count):
            source.save(_address(number))

    gcm = AESGCM(_KEY)
    iv, page, head = bytes(_IV_SIZE), random.Random(0).randbytes(PAGE_SIZE), bytes(AAD_SIZE)

    def seal(count: int) -> None:
        for _ in range(count):
            gcm.encrypt(iv, page, head)

    return Pair(run, seal, "AES-128-GCM of a page", "/s")


def transfer(scene: BenchScene) -> Pair:
    """Pages per second from one guest to another through two migration handlers, beside the
    firmware's SEND_UPDATE_DATA and RECEIVE_UPDATE_DATA."""
    source, target = _handler(1, 2), _handler(2, 1)

    def run(count: int) -> None:
        for number in range(count):
            saved = source.save(_address(number))
            target.restore(_address(number), saved.header, saved.page)

    here, there = _machine(3), _machine(4)
    link = firmware_link(here.ram, here.config.key, there.ram, 1 << 32)

    def send(count: int) -> None:
        for number in range(count):
            link.deliver(link.send(Gfn(_address(number) >> PAGE_SHIFT), as_private=True))

    return Pair(run, send, "the firmware path", "/s")


def _address(number: int) -> int:
    return (_FIRST + number % _PAGES) * PAGE_SIZE


def _machine(seed: int) -> Machine:
    machine = Machine(MachineConfig(frames=_FRAMES, cbit=_CBIT, key=bytes([seed]) * 16))
    for number in range(_PAGES):
        page = random.Random(number).randbytes(PAGE_SIZE)
        machine.ram.write(Gpa(_address(number)), page)
    return machine


def _handler(sender: int, peer: int) -> MailboxHandler:
    machine = _machine(sender)
    config = HandlerConfig(_KEY, sender, peer)
    handler = MailboxHandler(
        SharedRamMirror(machine.ram), place_identity(_HANDLER), config, _CBIT, machine.code
    )
    handler.install()
    handler.init()
    return handler
