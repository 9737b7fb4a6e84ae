# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests whose firmware brought a migration handler, and the reference for what it sends."""

from __future__ import annotations

import random

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from guestemu.abi.addresses import PAGE_SIZE, Gpa, RamAddr
from guestemu.host.mirror.context import HandlerConfig
from guestemu.host.mirror.driver import MailboxHandler
from guestemu.host.mirror.mailbox import AAD_SIZE, PageForm, PageHeader
from guestemu.host.mirror.placement import Placement, place_identity
from guestemu.host.mirror.vm import SharedRamMirror
from guestemu.machine.machine import Machine, MachineConfig

KEY = random.Random("transport").randbytes(16)
FRAMES = 0x900
PAGE = 0x500000
SCATTERED = tuple(
    RamAddr(page) for page in (0x100000, 0x123000, 0x107000, 0x8FF000, 0x300000, 0x20000, 0x401000)
)
"""Code, context, bounce, stack, tables: no two of them adjacent."""


def content(seed: object) -> bytes:
    return random.Random(str(seed)).randbytes(PAGE_SIZE)


class Side:
    """A machine with a handler. `key` is its memory key, `name` and `peer` go into headers."""

    def __init__(
        self,
        name: int = 1,
        peer: int = 2,
        key: bytes = KEY,
        placement: Placement | None = None,
        machine: Machine | None = None,
        **settings: object,
    ) -> None:
        cbit = int(settings.pop("machine_cbit", 39))
        native = bool(settings.pop("native_hooks", True))
        self.machine = machine or Machine(
            MachineConfig(frames=FRAMES, cbit=cbit, key=bytes([name] * 16), native_hooks=native)
        )
        self.ram = self.machine.ram
        self.vm = SharedRamMirror(self.ram)
        self.config = HandlerConfig(key=key, sender=name, peer=peer, **settings)
        self.placement = placement or place_identity(SCATTERED)
        self.handler = MailboxHandler(self.vm, self.placement, self.config, cbit, self.machine.code)
        self.handler.install()

    def ready(self) -> Side:
        assert self.handler.init() == 0
        return self

    def write(self, address: int, data: bytes, private: bool = True) -> None:
        self.ram.write(Gpa(address), data, private)

    def read(self, address: int = PAGE, size: int = PAGE_SIZE, private: bool = True) -> bytes:
        return self.ram.read(Gpa(address), size, private)


def pair(**settings: object) -> tuple[Side, Side]:
    """A source and a destination, both after INIT, with page `PAGE` filled at the source."""
    source = Side(1, 2, **settings).ready()
    target = Side(2, 1, **settings).ready()
    source.write(PAGE, content(PAGE))
    return source, target


def seal(key: bytes, header: PageHeader, plain: bytes) -> tuple[bytes, bytes]:
    """The packet that `header` (its tag is not looked at) and `plain` make, by the `cryptography`
    package alone: header bytes and ciphertext."""
    head = header.pack()[:AAD_SIZE]
    sealed = AESGCM(key).encrypt(header.iv, plain, head)
    return head + sealed[PAGE_SIZE:], sealed[:PAGE_SIZE]


FORMS = tuple(PageForm)
