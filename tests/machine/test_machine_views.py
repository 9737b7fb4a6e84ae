# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import random

import pytest
from bare_machine import (
    DATA,
    FRAMES,
    HLT,
    INVLPG_RBX,
    PRIVATE,
    SHARED,
    Bare,
    load,
    mov,
    store,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from guestemu.abi.addresses import PAGE_SIZE, Gfn, Gpa, Gva
from guestemu.machine import layout
from guestemu.machine.cipher import PageCipher
from guestemu.machine.exits import Halt
from guestemu.machine.machine import MachineConfig

GFN = Gfn(DATA >> 12)
OUT = PRIVATE + 0x300_000
FAST = settings(max_examples=60, deadline=None, database=None)


class Hardware:
    """What the two views are on hardware: DRAM, and the cipher in front of it for C=1."""

    def __init__(self, cipher: PageCipher) -> None:
        self.cipher = cipher
        self.dram: dict[int, bytes] = {}

    def page(self, gfn: int, private: bool) -> bytearray:
        dram = self.dram.get(gfn, self.cipher.encrypt(Gfn(gfn), bytes(PAGE_SIZE)))
        return bytearray(self.cipher.decrypt(Gfn(gfn), dram) if private else dram)

    def store(self, address: int, value: int, size: int, private: bool) -> None:
        for i, byte in enumerate((value & (1 << 8 * size) - 1).to_bytes(size, "little")):
            gfn, offset = divmod(address + i, PAGE_SIZE)
            page = self.page(gfn, private)
            page[offset] = byte
            self.dram[gfn] = self.cipher.encrypt(Gfn(gfn), page) if private else bytes(page)

    def load(self, address: int, size: int, private: bool) -> int:
        data = bytearray()
        for i in range(size):
            gfn, offset = divmod(address + i, PAGE_SIZE)
            data.append(self.page(gfn, private)[offset])
        return int.from_bytes(data, "little")


def window(private: bool) -> int:
    return PRIVATE if private else SHARED


@pytest.fixture(scope="module", params=[True, False], ids=["native", "python"])
def bare(request: pytest.FixtureRequest) -> Bare:
    return Bare(MachineConfig(frames=FRAMES, native_hooks=request.param))


accesses = st.lists(
    st.tuples(
        st.booleans(),
        st.booleans(),
        st.integers(0, 2),
        st.one_of(
            st.sampled_from([0, 8, 0xFF8, 0xFF9, 0xFFC, 0xFFF]),
            st.integers(0, PAGE_SIZE - 1),
        ),
        st.sampled_from([1, 2, 4, 8]),
        st.integers(1, 2**64 - 1),
    ),
    min_size=1,
    max_size=14,
)
"""(is a store, private, page, offset, size, value) of each access."""


def code_of(sequence: list[tuple[bool, bool, int, int, int, int]]) -> tuple[bytes, int]:
    code = b""
    loads = 0
    for is_store, private, page, offset, size, value in sequence:
        address = window(private) + DATA + page * PAGE_SIZE + offset
        if is_store:
            code += store(address, value, size)
        else:
            code += load(address, size) + mov(3, OUT + 8 * loads) + b"\x48\x89\x03"
            loads += 1
    return code + HLT, loads


def run_sequence(
    bare: Bare, sequence: list[tuple[bool, bool, int, int, int, int]]
) -> tuple[list[int], list[bytes], list[bytes]]:
    """Values loaded, DRAM and private content of the three pages; then rolls back."""
    code, loads = code_of(sequence)
    end = bare.run(code, at=0x20000)
    assert isinstance(end, Halt)
    ram = bare.machine.ram
    values = [ram.read_u64(Gpa(OUT - PRIVATE + 8 * i)) for i in range(loads)]
    dram = [ram.dram(Gfn(GFN + i)) for i in range(4)]
    plain = [ram.read(Gpa((GFN + i) * PAGE_SIZE), PAGE_SIZE) for i in range(4)]
    bare.machine.rollback()
    return values, dram, plain


@FAST
@given(accesses)
def test_one_uninterrupted_run_reads_what_hardware_would(
    bare: Bare, sequence: list[tuple[bool, bool, int, int, int, int]]
) -> None:
    hardware = Hardware(bare.machine.ram.cipher)
    expected = []
    for is_store, private, page, offset, size, value in sequence:
        address = DATA + page * PAGE_SIZE + offset
        if is_store:
            hardware.store(address, value, size, private)
        else:
            expected.append(hardware.load(address, size, private))
    values, dram, plain = run_sequence(bare, sequence)
    assert values == expected
    assert dram == [bytes(hardware.page(GFN + i, False)) for i in range(4)]
    assert plain == [bytes(hardware.page(GFN + i, True)) for i in range(4)]


def test_a_flip_with_invlpg_shows_the_ciphertext_of_what_was_stored(bare: Bare) -> None:
    """Store with C=1, clear C, INVLPG, load with C=0, in one run without an exit."""
    gva = PRIVATE + DATA
    leaf = bare.tables.walk(Gva(gva))
    entry = PRIVATE + leaf.entry_gpa
    shared = leaf.entry & ~bare.machine.pte_cbit
    code = (
        store(gva, 0x1122_3344_5566_7788)
        + store(entry, shared)
        + mov(3, gva)
        + INVLPG_RBX
        + load(gva)
        + HLT
    )
    assert isinstance(bare.run(code, at=0x20000), Halt)
    plain = (0x1122_3344_5566_7788).to_bytes(8, "little") + bytes(PAGE_SIZE - 8)
    cipher = bare.machine.ram.cipher.encrypt(GFN, plain)
    assert bare.register("rax") == int.from_bytes(cipher[:8], "little")
    assert bare.machine.ram.dram(GFN) == cipher
    bare.machine.rollback()


def test_a_guest_that_forgets_invlpg_keeps_its_translation(bare: Bare) -> None:
    gva = PRIVATE + DATA
    leaf = bare.tables.walk(Gva(gva))
    entry = PRIVATE + leaf.entry_gpa
    shared = leaf.entry & ~bare.machine.pte_cbit
    code = store(gva, 0xABCD) + store(entry, shared) + load(gva)
    assert isinstance(bare.run(code + HLT, at=0x20000), Halt)
    assert bare.register("rax") == 0xABCD
    code = mov(3, gva) + INVLPG_RBX + load(gva) + HLT
    assert isinstance(bare.run(code, at=0x20000, enter=False), Halt)
    assert bare.register("rax") != 0xABCD
    bare.machine.rollback()


def test_a_rollback_forgets_the_translations_of_the_run(bare: Bare) -> None:
    gva = PRIVATE + DATA
    leaf = bare.tables.walk(Gva(gva))
    shared = leaf.entry & ~bare.machine.pte_cbit
    code = store(PRIVATE + leaf.entry_gpa, shared) + mov(3, gva) + INVLPG_RBX
    assert isinstance(bare.run(code + store(gva, 1) + HLT, at=0x20000), Halt)
    bare.machine.rollback()
    assert isinstance(bare.run(store(gva, 7) + HLT, at=0x20000), Halt)
    assert bare.machine.ram.read_u64(Gpa(DATA)) == 7
    bare.machine.rollback()


def test_private_after_shared_is_the_decryption_of_the_last_shared_bytes(bare: Bare) -> None:
    ram = bare.machine.ram
    code = store(PRIVATE + DATA, 1) + store(SHARED + DATA + 8, 0x55, 1) + load(PRIVATE + DATA) + HLT
    bare.run(code, at=0x20000)
    expected = bytearray(ram.cipher.encrypt(GFN, (1).to_bytes(8, "little") + bytes(4088)))
    expected[8] = 0x55
    plain = ram.cipher.decrypt(GFN, bytes(expected))
    assert bare.register("rax") == int.from_bytes(plain[:8], "little") != 1
    assert plain[16:] == bytes(4080), "the other cipher blocks are untouched"
    bare.machine.rollback()


def test_flipping_back_without_a_store_restores_the_plaintext(bare: Bare) -> None:
    code = store(PRIVATE + DATA, 0x42) + load(SHARED + DATA) + load(PRIVATE + DATA) + HLT
    bare.run(code, at=0x20000)
    assert bare.register("rax") == 0x42
    bare.machine.rollback()


def test_equal_plaintext_has_other_ciphertext_at_another_address_and_key() -> None:
    plain = b"same text in both" + bytes(PAGE_SIZE - 17)
    one, other = PageCipher(bytes(16)), PageCipher(bytes([1]) + bytes(15))
    images = [one.encrypt(Gfn(5), plain), one.encrypt(Gfn(6), plain), other.encrypt(Gfn(5), plain)]
    assert len(set(images)) == 3
    assert one.decrypt(Gfn(5), images[0]) == plain
    assert one.decrypt(Gfn(6), images[0]) != plain
    assert other.decrypt(Gfn(5), images[0]) != plain
    blocks = {images[0][i : i + 16] for i in range(32, PAGE_SIZE, 16)}
    assert len(blocks) == (PAGE_SIZE - 32) // 16, "equal blocks of one page differ too"


@pytest.mark.parametrize("gfn", [0, 1, 0x1000, 0xFFFFF, (1 << 40) - 1])
def test_the_cipher_inverts_and_keeps_no_integrity(gfn: int) -> None:
    cipher = PageCipher(bytes(range(16)))
    page = random.Random(gfn).randbytes(PAGE_SIZE)
    image = cipher.encrypt(Gfn(gfn), page)
    assert cipher.decrypt(Gfn(gfn), image) == page
    broken = bytes([image[0] ^ 1]) + image[1:]
    plain = cipher.decrypt(Gfn(gfn), broken)
    assert plain[:16] != page[:16]
    assert plain[16:] == page[16:]


def test_low_pages_are_the_same_bytes_in_both_views(bare: Bare) -> None:
    address = layout.LANDING + 0x100
    code = store(PRIVATE + address, 0x77) + load(SHARED + address) + HLT
    bare.run(code, at=0x20000)
    assert bare.register("rax") == 0x77
    bare.run(store(SHARED + address, 0x78) + load(PRIVATE + address) + HLT, at=0x20000)
    assert bare.register("rax") == 0x78
    first_other = layout.LOW_PAGES * PAGE_SIZE
    bare.run(store(PRIVATE + first_other, 0x77) + load(SHARED + first_other) + HLT, at=0x20000)
    assert bare.register("rax") != 0x77
    bare.machine.rollback()


def test_a_store_that_crosses_into_a_distant_frame_is_undone(bare: Bare) -> None:
    """The emulator names only the first page of an access: the other one is found by looking."""
    far = DATA + 0x80_000
    leaf = bare.tables.walk(Gva(PRIVATE + DATA + PAGE_SIZE))
    value = bare.tables.walk(Gva(PRIVATE + far)).entry
    code = (
        store(PRIVATE + leaf.entry_gpa, value)
        + mov(3, PRIVATE + DATA + PAGE_SIZE)
        + INVLPG_RBX
        + store(PRIVATE + DATA + PAGE_SIZE - 4, 0xAABB_CCDD_EEFF_0011)
        + HLT
    )
    bare.run(code, at=0x20000)
    ram = bare.machine.ram
    assert ram.read(Gpa(far), 4) == bytes.fromhex("ddccbbaa")
    bare.machine.rollback()
    assert ram.read(Gpa(far), 4) == bytes(4)


def test_only_stores_make_a_rollback_look_at_every_page(bare: Bare) -> None:
    bare.run(load(PRIVATE + DATA + PAGE_SIZE - 4) + HLT, at=0x20000)
    assert not bare.machine.ram.has_crossing
    bare.run(store(PRIVATE + DATA + PAGE_SIZE - 4, 1) + HLT, at=0x20000)
    assert bare.machine.ram.has_crossing
    bare.machine.rollback()
    assert not bare.machine.ram.has_crossing
