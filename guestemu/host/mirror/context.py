# SPDX-License-Identifier: GPL-2.0-or-later
"""A handler in the guest's private memory: code, context page, page tables.

What firmware and launch do before the guest starts: the code is measured, the owner's key arrives
as a launch secret, so neither passes the VMM in the clear. Host software sees DRAM, which is the
cipher's image of all of it. Layout of the context page: handler.S, CTX_*.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, PUD_SIZE, Gpa, RamAddr
from guestemu.abi.elf import read_elf
from guestemu.abi.errors import InputError
from guestemu.abi.x86 import PTE_ACCESSED, PTE_DIRTY, PTE_PRESENT, PTE_PSE, PTE_RW
from guestemu.host.mirror.mailbox import PageForm
from guestemu.host.mirror.placement import Placement, tables_needed
from guestemu.machine.memory import GuestRam

KEY_SIZE: Final = 16
KEY_OFFSET: Final = 0x50

_FLAG_BOUND: Final = 1
_FLAG_COPY: Final = 2
_FLAG_GUARD: Final = 4
_HEAD: Final = struct.Struct("<QQQIIQQ")
_OWN_COUNT: Final = 0x160
_OWN: Final = 0x168
_OWN_MAX: Final = (PAGE_SIZE - _OWN) // 8
_TABLE_FLAGS: Final = PTE_PRESENT | PTE_RW | PTE_ACCESSED | PTE_DIRTY
_SPAN_SHIFT: Final = 39


class HandlerConfig(msgspec.Struct, frozen=True):
    """What the owner gives a handler.

    `key`: 16 bytes, the transport key of both sides. `sender` is who this side is in headers,
    `peer` whose packets it takes (64 bits; two senders under one key differ in the low 32, which
    are part of the IV). `shift`: the handler's address of a page is the command's address plus
    this. With `guards_itself` it refuses its own pages, at every address that the slots gave them
    when it was installed. `cbit` is the bit number in its page
    tables: the prototype has 47 whatever the machine's is (M62); None takes the machine's.
    """

    key: bytes
    sender: int
    peer: int
    form: PageForm = PageForm.BOUND
    shift: int = 0
    guards_itself: bool = True
    cbit: int | None = None


class HandlerCode(msgspec.Struct, frozen=True):
    """The code page and its symbols, as offsets."""

    data: bytes
    symbols: dict[str, int]


@cache
def handler_code() -> HandlerCode:
    """The committed machine code of handler.S."""
    elf = read_elf((files("guestemu.host.mirror") / "handler.elf").read_bytes())
    data = elf.sections[".text"][1]
    return HandlerCode(data.ljust(PAGE_SIZE, b"\0"), elf.symbols)


def handler_image(
    placement: Placement, config: HandlerConfig, machine_cbit: int, aliases: Iterable[int] = ()
) -> Mapping[RamAddr, bytes]:
    """The content of the handler's private pages; `machine_cbit` is the bit number of the
    processor's C-bit, `aliases` are mirror GPAs at which its pages also appear. `InputError` for a
    key of another length, too few pages of tables, or pages that the tables do not map."""
    if len(config.key) != KEY_SIZE:
        raise InputError(f"transport key of {len(config.key)} bytes: give {KEY_SIZE}")
    if len(placement.tables) < tables_needed(placement.reach):
        raise InputError(
            f"handler with {len(placement.tables)} pages of tables: give "
            f"{tables_needed(placement.reach)}"
        )
    cbit = 1 << (machine_cbit if config.cbit is None else config.cbit)
    context = _context_page(placement, config, aliases)
    image = {place.ram_addr: bytes(PAGE_SIZE) for place in placement.private_pages}
    image[placement.code.ram_addr] = handler_code().data
    image[placement.context.ram_addr] = context
    for place, table in zip(placement.tables, _tables(placement, cbit), strict=False):
        image[place.ram_addr] = table
    return image


def install_handler(ram: GuestRam, placement: Placement, image: Mapping[RamAddr, bytes]) -> None:
    """Writes the handler's private pages and clears the mailbox through the shared view."""
    for address, page in image.items():
        ram.write(Gpa(address), page)
    ram.write(Gpa(placement.mailbox.ram_addr), bytes(2 * PAGE_SIZE), private=False)


def start_cr3(placement: Placement, config: HandlerConfig, machine_cbit: int) -> int:
    """CR3 at the start: the root, with the C-bit as the handler's tables have it."""
    cbit = machine_cbit if config.cbit is None else config.cbit
    return placement.tables[0].mirror_gpa | 1 << cbit


def _context_page(placement: Placement, config: HandlerConfig, aliases: Iterable[int]) -> bytes:
    flags = {PageForm.BOUND: _FLAG_BOUND, PageForm.UNBOUND: 0, PageForm.COPY: _FLAG_COPY}[
        config.form
    ]
    flags |= _FLAG_GUARD if config.guards_itself else 0
    gpas = {page.mirror_gpa for page in placement.pages} | set(aliases)
    own = sorted({gva for gpa in gpas for gva in placement.gvas(gpa)})
    if len(own) > _OWN_MAX:
        raise InputError(f"handler of {len(own)} pages: it can guard {_OWN_MAX}")
    page = bytearray(PAGE_SIZE)
    _HEAD.pack_into(
        page,
        0,
        placement.gva(placement.mailbox.mirror_gpa, private=False),
        config.shift,
        placement.gva(placement.bounce.mirror_gpa),
        flags,
        0,
        config.sender,
        config.peer,
    )
    page[KEY_OFFSET : KEY_OFFSET + KEY_SIZE] = config.key
    struct.pack_into(f"<I4x{len(own)}Q", page, _OWN_COUNT, len(own), *own)
    return bytes(page)


def _tables(placement: Placement, cbit: int) -> list[bytes]:
    """The content of the root and of the tables behind it, in the order of `placement.tables`."""
    root = [0] * 512
    below: dict[int, list[int]] = {}
    for reach in placement.reach:
        for index in range(reach.gigabytes):
            gva = reach.gva + index * PUD_SIZE
            slot = gva >> _SPAN_SHIFT & 0x1FF
            if slot not in below:
                below[slot] = [0] * 512
                root[slot] = placement.tables[len(below)].mirror_gpa | _TABLE_FLAGS | cbit
            leaf = reach.mirror_gpa + index * PUD_SIZE | _TABLE_FLAGS | PTE_PSE
            below[slot][gva // PUD_SIZE & 0x1FF] = leaf | (cbit if reach.private else 0)
    return [struct.pack("<512Q", *table) for table in (root, *below.values())]
