# SPDX-License-Identifier: GPL-2.0-or-later
"""The incoherent cache against a naive one, and its instructions (E32)."""

from __future__ import annotations

import pytest
from bare_machine import CODE, DATA, FRAMES, HLT, PRIVATE, SHARED, Bare, load, mov, store
from hypothesis import given, settings
from hypothesis import strategies as st

from guestemu.abi.addresses import PAGE_SIZE, Gfn, Gpa
from guestemu.abi.caches import CacheModel
from guestemu.abi.errors import InputError
from guestemu.machine.cache import LINE_SIZE, LINES, CachedRam, line_mask
from guestemu.machine.cipher import PageCipher
from guestemu.machine.exits import Halt
from guestemu.machine.machine import MachineConfig

CLFLUSH = b"\x0f\xae\x3b"  # [rbx]
CLFLUSH_SCALED = b"\x41\x0f\xae\x7c\x88\x40"  # [r8 + rcx * 4 + 0x40]
WBINVD = b"\x0f\x09"
FLUSH_AT, SCALED_AT, WBINVD_AT = (CODE + offset for offset in (0x100, 0x140, 0x180))
MOV_SIZE = len(mov(3, 0))
MOV_R8_RCX = b"\x49\x89\xd8" + mov(1, 4)  # r8 = rbx, rcx = 4
LAST = Gpa(DATA + 0x3000)


class Cached(Bare):
    """Two data pages behind a cache, reached through both aliases."""

    def __init__(self, **changes: object) -> None:
        super().__init__(MachineConfig(frames=FRAMES, cache=CacheModel.INCOHERENT, **changes))
        cache = self.machine.cache
        assert cache is not None
        cache.watch(CLFLUSH, FLUSH_AT + MOV_SIZE)
        cache.watch(CLFLUSH_SCALED, SCALED_AT + MOV_SIZE + len(MOV_R8_RCX))
        cache.watch(WBINVD, WBINVD_AT)

    @property
    def ram(self) -> CachedRam:
        ram = self.machine.ram
        assert isinstance(ram, CachedRam)
        return ram

    def flush(self, address: int) -> None:
        assert isinstance(self.run(mov(3, address) + CLFLUSH + HLT, at=FLUSH_AT), Halt)

    def wbinvd(self) -> None:
        assert isinstance(self.run(WBINVD + HLT, at=WBINVD_AT), Halt)

    def store(self, address: int, value: int, size: int = 8) -> None:
        assert isinstance(self.run(store(address, value, size) + HLT), Halt)

    def load(self, address: int, size: int = 8) -> int:
        assert isinstance(self.run(load(address, size) + HLT), Halt)
        return self.machine.current.read_register("rax")


class Naive:
    """DRAM by line, and a cache as a dictionary of (alias, line) -> bytes."""

    def __init__(self, cipher: PageCipher) -> None:
        self.cipher = cipher
        self.dram: dict[int, bytearray] = {}
        self.lines: dict[tuple[bool, int], bytearray] = {}
        self.dirty: set[tuple[bool, int]] = set()

    def _page(self, gfn: int) -> bytearray:
        start = self.cipher.encrypt(Gfn(gfn), bytes(PAGE_SIZE))
        return self.dram.setdefault(gfn, bytearray(start))

    def line(self, private: bool, gpa: int) -> bytearray:
        number = gpa // LINE_SIZE
        if (private, number) not in self.lines:
            gfn, place = divmod(number * LINE_SIZE, PAGE_SIZE)
            page = bytes(self._page(gfn))
            image = self.cipher.decrypt(Gfn(gfn), page) if private else page
            self.lines[private, number] = bytearray(image[place : place + LINE_SIZE])
        return self.lines[private, number]

    def flush(self, private: bool, gpa: int) -> None:
        number = gpa // LINE_SIZE
        data = self.lines.pop((private, number), None)
        if data is None or (private, number) not in self.dirty:
            return
        self.dirty.remove((private, number))
        gfn, place = divmod(number * LINE_SIZE, PAGE_SIZE)
        if private:
            padded = bytes(place) + bytes(data) + bytes(PAGE_SIZE - place - LINE_SIZE)
            data = bytearray(self.cipher.encrypt(Gfn(gfn), padded)[place : place + LINE_SIZE])
        self._page(gfn)[place : place + LINE_SIZE] = data


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["store", "load", "flush"]),
        st.booleans(),
        st.integers(0, 5).map(lambda line: line * LINE_SIZE if line < 4 else 4096 + line * 64),
        st.integers(0, LINE_SIZE - 8),
        st.integers(1, 2**64 - 1),
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def cached() -> Cached:
    return Cached()


@settings(max_examples=60, deadline=None, database=None)
@given(steps=STEPS)
def test_loads_stores_and_flushes_are_those_of_a_tagged_cache(cached, steps):
    cached.machine.rollback()
    naive = Naive(cached.ram.cipher)
    for what, private, line, offset, value in steps:
        address = (PRIVATE if private else SHARED) + DATA + line + offset
        gpa = DATA + line + offset
        if what == "flush":
            cached.flush(address)
            naive.flush(private, gpa)
            continue
        place = slice(gpa % LINE_SIZE, gpa % LINE_SIZE + 8)
        if what == "store":
            cached.store(address, value)
            naive.line(private, gpa)[place] = value.to_bytes(8, "little")
            naive.dirty.add((private, gpa // LINE_SIZE))
        else:
            expected = int.from_bytes(naive.line(private, gpa)[place], "little")
            assert cached.load(address) == expected


def test_a_dirty_line_is_hidden_from_the_other_alias_until_it_is_flushed(cached):
    cached.machine.rollback()
    before = cached.load(SHARED + DATA)
    cached.store(PRIVATE + DATA, 0x1122)
    assert cached.load(SHARED + DATA) == before
    cached.flush(PRIVATE + DATA)
    assert cached.load(SHARED + DATA) == before  # its own line is there, and stale now
    cached.flush(SHARED + DATA)
    assert cached.load(SHARED + DATA) != before


def test_a_late_write_back_overwrites_what_the_other_alias_wrote(cached):
    cached.machine.rollback()
    cached.store(PRIVATE + DATA, 1)
    cached.store(SHARED + DATA, 0x5A)
    cached.flush(SHARED + DATA)
    assert cached.load(SHARED + DATA) == 0x5A
    cached.flush(SHARED + DATA)
    cached.flush(PRIVATE + DATA)
    assert cached.load(SHARED + DATA) != 0x5A
    assert cached.load(PRIVATE + DATA) == 1


def test_a_flush_before_the_other_alias_writes_loses_nothing(cached):
    cached.machine.rollback()
    cached.store(PRIVATE + DATA, 1)
    cached.flush(PRIVATE + DATA)
    cached.store(SHARED + DATA, 0x5A)
    cached.wbinvd()
    assert cached.load(SHARED + DATA) == 0x5A


def test_wbinvd_writes_all_back_and_the_older_of_two_dirty_lines_last(cached):
    cached.machine.rollback()
    cached.store(SHARED + DATA, 0x5A)
    cached.store(PRIVATE + DATA, 1)
    cached.store(PRIVATE + DATA + LINE_SIZE, 2)
    cached.wbinvd()
    assert cached.load(SHARED + DATA) == 0x5A
    assert cached.load(PRIVATE + DATA + LINE_SIZE) == 2
    assert cached.ram.flush_lines(Gpa(DATA), PAGE_SIZE, private=True) == 0


def test_the_line_that_an_operand_with_index_and_displacement_names(cached):
    cached.machine.rollback()
    cached.store(PRIVATE + DATA + 0x50, 7)
    code = mov(3, PRIVATE + DATA) + MOV_R8_RCX + CLFLUSH_SCALED + HLT
    assert isinstance(cached.run(code, at=SCALED_AT), Halt)
    assert cached.ram.flush_lines(Gpa(DATA), PAGE_SIZE, private=True) == 0


def test_a_store_across_two_lines_makes_both_dirty(cached):
    cached.machine.rollback()
    cached.store(PRIVATE + DATA + LINE_SIZE - 4, 7)
    assert cached.ram.flush_lines(Gpa(DATA), PAGE_SIZE, private=True) == 2


def test_peek_leaves_no_line_behind(cached):
    cached.machine.rollback()
    cached.ram.peek(Gpa(DATA), 8, private=False)
    cached.store(PRIVATE + DATA, 1)
    cached.flush(PRIVATE + DATA)
    image = cached.ram.cipher.encrypt(Gfn(DATA >> 12), (1).to_bytes(8, "little") + bytes(4088))
    assert cached.load(SHARED + DATA) == int.from_bytes(image[:8], "little")


def test_the_firmware_sees_lines_with_the_c_bit_and_no_others(cached):
    cached.machine.rollback()
    ram = cached.ram
    cached.store(PRIVATE + DATA, 1)
    cached.store(SHARED + DATA + LINE_SIZE, 0x5A)
    plain = ram.cipher.decrypt(Gfn(DATA >> 12), ram.read_dram(Gpa(DATA), PAGE_SIZE))
    assert plain[:8] == (1).to_bytes(8, "little")
    assert plain[LINE_SIZE : LINE_SIZE + 8] == bytes(8)


def test_what_the_firmware_writes_is_hidden_by_a_line_with_c_0_alone(cached):
    cached.machine.rollback()
    ram = cached.ram
    cached.store(PRIVATE + DATA, 1)
    cached.store(SHARED + DATA, 2)
    page = ram.cipher.encrypt(Gfn(DATA >> 12), bytes([9]) * PAGE_SIZE)
    ram.write_dram(Gpa(DATA), page)
    assert cached.load(PRIVATE + DATA, 1) == 9
    assert cached.load(SHARED + DATA) == 2
    cached.flush(SHARED + DATA)  # the stale dirty line goes over it
    cached.flush(PRIVATE + DATA)
    assert cached.load(PRIVATE + DATA, 1) != 9


def test_rollback_empties_the_cache_and_restores_both_views(cached):
    cached.machine.rollback()
    first = cached.load(SHARED + DATA), cached.load(PRIVATE + DATA)
    cached.store(PRIVATE + DATA, 1)
    cached.store(SHARED + DATA, 2)
    cached.machine.rollback()
    assert cached.ram.flush_lines(Gpa(DATA), PAGE_SIZE, private=True) == 0
    assert (cached.load(SHARED + DATA), cached.load(PRIVATE + DATA)) == first


def test_a_checkpoint_writes_everything_back():
    bare = Cached()
    bare.store(SHARED + DATA, 0x77)
    bare.machine.checkpoint()
    bare.store(SHARED + DATA, 0x78)
    bare.store(PRIVATE + DATA, 0x79)
    bare.machine.rollback()
    assert bare.load(SHARED + DATA) == 0x77


def test_python_hooks_give_the_same():
    values = []
    for native in (True, False):
        bare = Cached(native_hooks=native)
        bare.store(PRIVATE + DATA, 5)
        bare.store(SHARED + DATA, 6)
        bare.flush(PRIVATE + DATA)
        values.append((bare.load(SHARED + DATA), bare.load(PRIVATE + DATA)))
    assert values[0] == values[1]


def test_evictions_depend_on_the_seed_and_repeat_after_a_rollback():
    def lost(ram: CachedRam) -> int:
        for line in range(LINES):
            ram.write(Gpa(LAST + line * LINE_SIZE), b"\1")
        for _ in range(160):
            ram.note_access(False, LAST | ram.cbit_mask, 1, 0)
        return ram.flush_lines(LAST, PAGE_SIZE, private=True)

    counts = []
    for seed in (1, 1, 2, 3):
        config = MachineConfig(frames=FRAMES, cache=CacheModel.EVICTING, cache_seed=seed)
        machine = Bare(config).machine
        assert isinstance(machine.ram, CachedRam)
        counts.append(lost(machine.ram))
        machine.rollback()
        assert lost(machine.ram) == counts[-1]
    assert counts[0] == counts[1] < LINES
    assert len(set(counts)) > 1


def test_line_masks():
    assert line_mask(0, 1) == 1
    assert line_mask(63, 2) == 3
    assert line_mask(0, PAGE_SIZE) == 2**LINES - 1
    assert line_mask(PAGE_SIZE - 1, 1) == 1 << LINES - 1


def test_a_machine_that_watches_no_accesses_has_no_cache_model():
    config = MachineConfig(frames=FRAMES, cache=CacheModel.INCOHERENT, defer_memory_hooks=True)
    with pytest.raises(InputError, match="cache none"):
        Bare(config)
