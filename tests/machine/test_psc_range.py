# SPDX-License-Identifier: GPL-2.0-or-later
"""Page-state requests of one range in machine code do what `SnpPsc` does step by step.

In GHCB, RMP, attributes, events and at user space. PVALIDATE's operands likewise.
"""

from __future__ import annotations

import random
import struct
from typing import NamedTuple

import pytest
from bare_machine import PRIVATE
from ghcb_guest import BUFFER, GHCB, SNP, Guest, entry
from test_snp_psc import Heard

from guestemu.abi import ghcb as abi
from guestemu.abi.addresses import Gpa
from guestemu.machine import ghcb
from guestemu.machine.exits import Exit, Halt
from guestemu.machine.rmp import RmpEntry
from guestemu.machine.snp_psc import PSC_KERNELS, psc_kernel

OPERATIONS = (abi.PSC_OP_PRIVATE, abi.PSC_OP_SHARED)
GFN = 0x210


class Seen(NamedTuple):
    """All that a request leaves."""

    end: str
    page: bytes
    heard: tuple[tuple[int, int, int], ...]
    states: bytes
    attributes: bytes
    events: str


class Twins:
    """Two guests: one answers every request step by step."""

    def __init__(self) -> None:
        self.fast, self.slow = Guest(SNP), Guest(SNP)
        assert self.fast.sev._range is not None
        self.slow.sev._range = None

    def both(self, version: str, answers: tuple[int, ...], page: bytes) -> tuple[Seen, Seen]:
        return one(self.fast, version, answers, page), one(self.slow, version, answers, page)


def one(guest: Guest, version: str, answers: tuple[int, ...], page: bytes) -> Seen:
    guest.machine.rollback()
    guest.sev.kernel = psc_kernel(version)
    guest.machine.hooks.handler = host = Heard(*answers)
    guest.machine.ram.write(Gpa(GHCB), page, private=False)
    guest.sev.register_ghcb(Gpa(GHCB))
    end: Exit = guest.vmgexit()
    snp = guest.sev.snp
    assert snp is not None
    heard = tuple(host.heard)
    return Seen(
        str(end), guest.page(), heard, snp.rmp.dump(), bytes(snp.attributes), str(guest.sev.events)
    )


def page_of(words: tuple[int, ...], current: int, end: int, **fields: int) -> bytes:
    """A GHCB with this request; `fields`: offset, missing (a field), usage, code."""
    page = bytearray(0x1000)
    at = fields.get("offset", BUFFER - GHCB)
    values = {
        ghcb.EXIT_CODE: fields.get("code", abi.EXIT_PSC),
        ghcb.EXIT_INFO_1: fields.get("info_1", 0),
        ghcb.EXIT_INFO_2: fields.get("info_2", 0),
        ghcb.SCRATCH: GHCB + at,
        ghcb.RAX: 7,
    }
    for offset, value in values.items():
        struct.pack_into("<Q", page, offset, value)
        if offset != fields.get("missing", 0):
            page[ghcb.VALID_BITMAP + offset // 64] |= 1 << offset // 8 % 8
    struct.pack_into("<Q", page, ghcb.RBX, 9)  # not marked as given
    struct.pack_into("<I", page, ghcb.USAGE, fields.get("usage", 0))
    request = struct.pack(f"<HHI{len(words)}Q", current, end, 0, *words)
    page[at : at + len(request)] = request[: 0x1000 - at]
    return bytes(page)


def random_page(dice: random.Random) -> bytes:
    operation = dice.choice((*OPERATIONS, *OPERATIONS, 3))
    count = dice.choice((1, 1, 1, 2, 5, 64))
    huge = dice.random() < 0.2
    first = GFN & ~511 if huge else GFN + dice.randrange(32)
    words = [entry(first + i * (512 if huge else 1), operation, huge) for i in range(count)]
    if dice.random() < 0.4:  # one bit of one entry is another
        words[dice.randrange(count)] ^= 1 << dice.choice((0, 9, 12, 13, 40, 51, 52, 53, 56, 57, 63))
    current, end = 0, count - 1
    if dice.random() < 0.2:
        current, end = dice.choice(((count, end), (1, end), (0, 252), (0, 253), (end, end)))
    fields = {}
    if dice.random() < 0.3:
        name, value = dice.choice(
            (
                ("offset", 0x808),
                ("offset", 0x804),
                ("offset", 0x7F8),
                ("offset", 0xFE0),
                ("offset", 0xFF0),
                ("missing", ghcb.SCRATCH),
                ("missing", ghcb.EXIT_INFO_2),
                ("usage", 1),
                ("code", abi.EXIT_CPUID),
                ("info_1", 5),
                ("info_2", 24),
            )
        )
        fields[name] = value
    return page_of(tuple(words), current, end, **fields)


@pytest.mark.parametrize("version", PSC_KERNELS)
def test_random_requests_come_to_the_same(version: str) -> None:
    twins = Twins()
    dice = random.Random(version)
    heard = 0
    for _ in range(300):
        answers = dice.choice(((0,), (0,), (0,), (0, 11), (11, 0), (22,), (1,), (1 << 63,)))
        page = random_page(dice)
        fast, slow = twins.both(version, answers, page)
        assert fast == slow
        heard += bool(fast.heard)
    assert heard > 50


def test_a_user_space_that_writes_registers_is_answered_with_them() -> None:
    class Writing(Heard):
        def map_gpa_range(self, call: object) -> int:
            call.vcpu.write_register("rax", 0x55)  # type: ignore[attr-defined]
            return 0

    guest = Guest(SNP)
    guest.machine.hooks.handler = Writing()
    guest.machine.ram.write(Gpa(GHCB), page_of((entry(GFN, OPERATIONS[1]),), 0, 0), private=False)
    guest.sev.register_ghcb(Gpa(GHCB))
    guest.vmgexit()
    assert guest.field(ghcb.RAX) == 0x55
    assert guest.field(ghcb.RBX) == 0


def test_a_buffer_that_user_space_lengthens_is_gone_on_with_where_kvm_reads_it_again() -> None:
    class Growing(Heard):
        def map_gpa_range(self, call: object) -> int:
            if not self.heard:
                more = struct.pack("<HHI", 0, 1, 0)
                guest.machine.ram.write(Gpa(BUFFER), more, private=False)
                word = entry(GFN + 9, OPERATIONS[1]).to_bytes(8, "little")
                guest.machine.ram.write(Gpa(BUFFER + 16), word, private=False)
            return super().map_gpa_range(call)  # type: ignore[arg-type]

    asked = {}
    for version in ("6.12", "7.3"):
        guest = Guest(SNP)
        guest.sev.kernel = psc_kernel(version)
        guest.machine.hooks.handler = host = Growing()
        page = page_of((entry(GFN, OPERATIONS[1]),), 0, 0)
        guest.machine.ram.write(Gpa(GHCB), page, private=False)
        guest.sev.register_ghcb(Gpa(GHCB))
        guest.vmgexit()
        asked[version] = [gfn for gfn, _pages, _attributes in host.heard]
    assert asked == {"6.12": [GFN, GFN + 9], "7.3": [GFN]}


def test_pvalidate_finds_the_frame_that_a_walk_in_python_finds() -> None:
    guest = Guest(SNP)
    snp = guest.sev.snp
    assert snp is not None
    found = snp._operands._frame
    assert found is not None
    for gfn in (GFN, GFN + 1):
        ends = []
        for native in (found, None):
            guest.machine.rollback()
            snp._operands._frame = native
            snp.rmp.rmpupdate(gfn, RmpEntry(assigned=True, asid=1, gfn=gfn))
            end = guest.pvalidate(PRIVATE + (gfn << 12), False, True)
            assert isinstance(end, Halt)
            ends.append((str(end), guest.bare.register("rax"), guest.carry, snp.rmp.describe(gfn)))
        assert ends[0] == ends[1]
