# SPDX-License-Identifier: GPL-2.0-or-later
"""Every model with its defects repaired against a plain set of pages, by state machines."""

import struct

import pytest
from bitarray import bitarray
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from guestemu.host.kvm.page_enc_ioctls import pack_argument
from guestemu.host.registry import hosts, load_host
from guestemu.host.standin import StandInVcpu

FRAMES = 200
GFN = st.integers(0, FRAMES + 70)
PAGES = st.integers(0, 140)


class Conversions(RuleBasedStateMachine):
    """Status hypercalls; `shared` is the naive record of all gfns, in RAM and beyond."""

    name: str
    number = 12

    def __init__(self):
        super().__init__()
        entry = next(entry for entry in hosts() if entry.name == self.name)
        self.host = load_host(self.name, entry.switches)
        self.number = 11 if self.name in ("bitmap-v1", "bitmap-v2", "bitmap-v3") else 12
        self.host.reset(FRAMES)
        self.shared = set()

    @rule(gfn=GFN, pages=PAGES, private=st.booleans())
    def convert(self, gfn, pages, private):
        call = StandInVcpu().hypercall(self.number, gfn << 12, pages, 16 if private else 0)
        if self.host.hypercall(call) == 0:
            self.remember(gfn, pages, private)

    def remember(self, gfn, pages, private):
        change = self.shared.difference_update if private else self.shared.update
        change(range(gfn, gfn + pages))

    @rule(gfn=st.integers(0, FRAMES - 1), pages=st.integers(1, 4), private=st.booleans())
    def convert_in_ram(self, gfn, pages, private):
        pages = min(pages, FRAMES - gfn)
        call = StandInVcpu().hypercall(self.number, gfn << 12, pages, 16 if private else 0)
        assert self.host.hypercall(call) == 0
        self.remember(gfn, pages, private)

    @invariant()
    def map_agrees(self):
        private = self.host.private_map()
        assert {gfn for gfn in range(FRAMES) if not private[gfn]} == {
            gfn for gfn in self.shared if gfn < FRAMES
        }


class BitmapIoctls(Conversions):
    """The bitmap generations' GET and SET as well."""

    def __init__(self):
        super().__init__()
        if self.host.opt_in_msrs:
            self.host.wrmsr(0x4B564D08, 1, StandInVcpu())

    @rule(gfn=GFN, pages=PAGES, filler=st.integers(0, 255))
    def get(self, gfn, pages, filler):
        buffer = bytearray([filler] * 18)
        assert self.host.get_page_enc_bitmap(pack_argument(gfn, pages), buffer) == 0
        bits = bitarray(endian="little")
        bits.frombytes(bytes(buffer))
        for index in range(pages):
            assert bits[index] == (gfn + index not in self.shared)
        untouched = bitarray(endian="little")
        untouched.frombytes(bytes([filler] * 18))
        assert bits[pages:] == untouched[pages:]

    @rule(gfn=GFN, data=st.binary(min_size=16, max_size=16), pages=st.integers(1, 128))
    def set(self, gfn, data, pages):
        result = self.host.set_page_enc_bitmap(pack_argument(gfn, pages), bytearray(data))
        if result:
            assert gfn + pages > FRAMES
            return
        bits = bitarray(endian="little")
        bits.frombytes(data)
        for index in range(pages):
            self.remember(gfn + index, 1, bool(bits[index]))


class SharedList(Conversions):
    """The shared-list generation's GET and SET as well."""

    def __init__(self):
        super().__init__()
        self.host.wrmsr(0x4B564D08, 1, StandInVcpu())

    @rule()
    def get(self):
        buffer = bytearray(1 << 13)
        result, count = self.host.get_shared_pages_list(buffer, len(buffer))
        assert result == 0
        regions = list(struct.iter_unpack("<QQ", buffer[: 16 * count]))
        assert {gfn for start, end in regions for gfn in range(start, end)} == self.shared

    @rule(ranges=st.lists(st.tuples(GFN, st.integers(1, 9)), min_size=1, max_size=4))
    def set(self, ranges):
        data = b"".join(struct.pack("<QQ", gfn, gfn + pages) for gfn, pages in ranges)
        assert self.host.set_shared_pages_list(data, len(ranges)) == 0
        self.shared = set()
        for gfn, pages in ranges:
            self.remember(gfn, pages, private=False)

    @rule()
    def reset_list(self):
        assert self.host.set_shared_pages_list(None, 0) == 0
        self.shared = set()


MACHINES = {"bitmap": BitmapIoctls, "shared-list": SharedList}


def run_machine(name, examples, steps):
    base = MACHINES.get(name.rpartition("-")[0], Conversions)
    machine = type("Machine", (base,), {"name": name})
    case = machine.TestCase
    case.settings = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, database=None
    )
    case("runTest").runTest()


@pytest.mark.parametrize("name", [entry.name for entry in hosts()])
def test_repaired_model_is_a_set_of_pages(name):
    run_machine(name, examples=25, steps=20)


@pytest.mark.soak
@pytest.mark.parametrize("name", [entry.name for entry in hosts()])
def test_repaired_model_is_a_set_of_pages_over_ten_thousand_steps(name):
    run_machine(name, examples=100, steps=100)
