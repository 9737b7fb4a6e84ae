# SPDX-License-Identifier: GPL-2.0-or-later
"""Two snippet guests under different keys, and hosts for them."""

from __future__ import annotations

from guestemu.abi.addresses import PAGE_SIZE, Gfn, Gpa
from guestemu.guest.registry import GuestSettings, load_guest
from guestemu.guest.snippet.guest import SnippetGuest
from guestemu.host.base import Host
from guestemu.host.firmware.memory import PlacedCipher
from guestemu.host.registry import load_host
from guestemu.machine.machine import Machine, MachineConfig
from guestemu.migration.endpoints import DESTINATION_BASE
from guestemu.migration.firmware_link import firmware_link
from guestemu.migration.links import Link, plain_link

KEY = bytes(range(16, 32))
PAGES = 64
PAGE = Gfn(20)
TEXT = bytes(range(256)) * 16


def snippet(key: bytes | None = None, generation: str = "6.1") -> SnippetGuest:
    settings = GuestSettings(f"snippet:{generation}", 39, 32, 1, 1_000_000, coherent=True, key=key)
    guest = load_guest(settings)
    assert isinstance(guest, SnippetGuest)
    return guest


def host_for(guest: SnippetGuest, name: str = "map-gpa-range") -> Host:
    host = load_host(name)
    host.reset(guest.machine.config.frames)
    return host


def bare_pair(kind: str) -> tuple[Machine, Machine, Link]:
    """Two machines without a guest, and an open link of `kind`."""
    source = Machine(MachineConfig(frames=PAGES))
    target = Machine(MachineConfig(frames=PAGES, key=KEY))
    if kind == "firmware":
        link = firmware_link(source.ram, source.config.key, target.ram, DESTINATION_BASE)
    else:
        target.ram.cipher = PlacedCipher(KEY, DESTINATION_BASE >> 12)
        link = plain_link(source.ram, target.ram)
    return source, target, link


def view(machine: Machine, private: bool, gfn: int = PAGE) -> bytes:
    return machine.ram.read(Gpa(gfn * PAGE_SIZE), PAGE_SIZE, private)


def fill(machine: Machine, private: bool, data: bytes = TEXT, gfn: int = PAGE) -> None:
    machine.ram.write(Gpa(gfn * PAGE_SIZE), data, private)
