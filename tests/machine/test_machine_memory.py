# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from bare_machine import CODE, DATA, FRAMES, HLT, PRIVATE, SHARED, VMMCALL, Bare, mov, store
from hypothesis import given, settings
from hypothesis import strategies as st

from guestemu.abi.addresses import PAGE_SIZE, Gfn, Gpa, Gva
from guestemu.abi.x86 import Mode
from guestemu.machine import layout
from guestemu.machine.exits import Halt
from guestemu.machine.machine import MachineConfig

FAST = settings(max_examples=60, deadline=None, database=None)


@pytest.fixture(scope="module", params=[True, False], ids=["native", "python"])
def bare(request: pytest.FixtureRequest) -> Bare:
    return Bare(MachineConfig(frames=FRAMES, native_hooks=request.param))


def snapshot(bare: Bare) -> tuple[list[bytes], list[bytes]]:
    """DRAM and private content of every frame that a test writes."""
    ram = bare.machine.ram
    frames = [*range(layout.LOW_PAGES), *range(DATA >> 12, (DATA >> 12) + 8)]
    # The private view first: reading DRAM would settle it, and hide a wrong mark on it.
    plain = [ram.read(Gpa(gfn << 12), PAGE_SIZE) for gfn in frames]
    return [ram.dram(Gfn(gfn)) for gfn in frames], plain


stores = st.lists(
    st.tuples(
        st.booleans(),
        st.one_of(
            st.integers(0, 7 * PAGE_SIZE),
            st.sampled_from([PAGE_SIZE - 1, PAGE_SIZE - 4, 3 * PAGE_SIZE - 7]),
        ),
        st.sampled_from([1, 2, 4, 8]),
        st.integers(0, 2**64 - 1),
    ),
    max_size=12,
)


@FAST
@given(stores, st.booleans(), stores)
def test_rollback_restores_every_byte_of_both_views(
    bare: Bare,
    first: list[tuple[bool, int, int, int]],
    has_checkpoint: bool,
    second: list[tuple[bool, int, int, int]],
) -> None:
    """A second checkpoint in the middle, then guest and host stores, host reads, rollback."""
    machine = bare.machine

    def run(sequence: list[tuple[bool, int, int, int]]) -> None:
        code = b"".join(
            store((PRIVATE if private else SHARED) + DATA + offset, value, size)
            for private, offset, size, value in sequence
        )
        assert isinstance(bare.run(code + HLT, at=0x20000), Halt)

    origin = snapshot(bare)
    machine.rollback()
    run(first)
    if has_checkpoint:
        machine.checkpoint()
    else:
        machine.rollback()
    before = snapshot(bare)
    machine.rollback()
    assert has_checkpoint or before == origin
    run(second)
    for private, offset, size, value in second[:3]:
        data = (value & 0xFF).to_bytes(1, "little") * size
        machine.ram.write(Gpa(DATA + offset), data, private=not private)
    machine.rollback()
    assert snapshot(bare) == before
    machine.rollback()
    assert snapshot(bare) == before
    for gfn in range(DATA >> 12, (DATA >> 12) + 9):
        machine.ram.write(Gpa(gfn << 12), bytes(PAGE_SIZE))
    machine.checkpoint()


@pytest.mark.parametrize("mode", [Mode.PROT32, Mode.REAL16])
@pytest.mark.parametrize("native", [True, False])
def test_rollback_undoes_stores_without_paging(mode: Mode, native: bool) -> None:
    """Such a store goes through C=0 to a page that boot wrote through C=1."""
    bare = Bare(MachineConfig(frames=FRAMES, native_hooks=native))
    address = layout.GDT + 0xF00
    if mode is Mode.REAL16:
        code = b"\xc6\x06" + address.to_bytes(2, "little") + b"\x99" + HLT
    else:
        code = b"\xc6\x05" + address.to_bytes(4, "little") + b"\x99" + HLT
    bare.machine.ram.write(Gpa(CODE), code)
    bare.machine.checkpoint()
    before = snapshot(bare)
    bare.enter(mode, 0)
    assert isinstance(bare.machine.current.run(CODE, 100), Halt)
    assert bare.machine.ram.read(Gpa(address), 1) == b"\x99"
    bare.machine.rollback()
    assert snapshot(bare) == before


def test_a_machine_without_encryption_has_one_view() -> None:
    bare = Bare(MachineConfig(frames=FRAMES, cbit=None, sev_status=0))
    code = store(PRIVATE + DATA, 0x1234) + mov(3, SHARED + DATA) + b"\x48\x8b\x03" + HLT
    assert isinstance(bare.run(code, at=0x20000), Halt)
    assert bare.register("rax") == 0x1234
    assert bare.machine.ram.dram(Gfn(DATA >> 12))[:2] == b"\x34\x12"
    bare.machine.rollback()
    assert bare.machine.ram.dram(Gfn(DATA >> 12)) == bytes(PAGE_SIZE)


@pytest.mark.parametrize("native", [True, False])
def test_stores_into_tables_are_logged_past_the_size_of_the_log(native: bool) -> None:
    """70,000 stores by one loop: the log holds 65,536, the rest spills; none is lost."""
    bare = Bare(MachineConfig(frames=FRAMES, native_hooks=native))
    gva = PRIVATE + DATA
    entry = bare.tables.walk(Gva(gva)).entry_gpa
    count = 70_000
    #   mov rcx, count; mov rbx, entry; mov [rbx], rcx; dec rcx; jnz -8; hlt
    code = mov(1, count) + mov(3, PRIVATE + entry)
    code += b"\x48\x89\x0b" + b"\x48\xff\xc9" + b"\x75\xf8" + HLT
    assert isinstance(bare.run(code, at=0x20000, budget=count + 10), Halt)
    ram = bare.machine.ram
    assert ram.table_write_count == count
    writes = ram.table_writes()
    assert [value for _, value in writes] == list(range(count, 0, -1))
    assert {address & ~ram.cbit_mask for address, _ in writes} == {entry}
    assert ram.table_writes() == []
    bare.machine.rollback()


def test_a_rollback_empties_the_log(bare: Bare) -> None:
    entry = bare.tables.walk(Gva(PRIVATE + DATA)).entry_gpa
    bare.run(store(PRIVATE + entry, 0) + HLT, at=0x20000)
    assert bare.machine.ram.table_write_count == 1
    bare.machine.rollback()
    assert bare.machine.ram.table_writes() == []


def test_a_rollback_tells_when_translations_went_stale(bare: Bare) -> None:
    ram = bare.machine.ram
    bare.machine.rollback()
    bare.run(store(PRIVATE + DATA, 1) + HLT, at=0x20000)
    assert not ram.rollback()
    entry = bare.tables.walk(Gva(PRIVATE + DATA)).entry_gpa
    bare.run(store(PRIVATE + entry, 0) + HLT, at=0x20000)
    assert ram.rollback()
    bare.machine.engine.flush_tlb()


def test_dirty_frames_names_the_frames_written_through_either_view(bare: Bare) -> None:
    code = store(PRIVATE + DATA, 1) + store(SHARED + DATA + 0x5000, 1) + HLT
    bare.machine.rollback()
    bare.place(0x20000, code)
    bare.machine.checkpoint()
    bare.enter(Mode.LONG64, 0)
    bare.machine.current.run(0x20000, 100)
    # The second store is partial: its page was settled from the private view first.
    assert bare.machine.ram.dirty_frames() == {DATA >> 12, (DATA >> 12) + 5}
    bare.machine.rollback()
    assert bare.machine.ram.dirty_frames() == set()


def test_vcpus_share_ram_and_keep_their_registers() -> None:
    bare = Bare(MachineConfig(frames=FRAMES, vcpus=3))
    machine = bare.machine
    for index in range(3):
        machine.activate(index)
        bare.run(mov(1, 100 + index) + store(PRIVATE + DATA + 8 * index, index + 1) + HLT)
    for index in (1, 0, 2):
        vcpu = machine.activate(index)
        assert vcpu is machine.current
        assert bare.register("rcx") == 100 + index
    assert machine.ram.read(Gpa(DATA), 24)[::8] == bytes([1, 2, 3])


def test_a_vcpu_stopped_at_an_exit_goes_on_after_another_ran() -> None:
    bare = Bare(MachineConfig(frames=FRAMES, vcpus=2))
    bare.run(mov(6, 5) + VMMCALL + b"\x48\xff\xc6" + HLT)
    stopped = bare.register("rip")
    bare.machine.activate(1)
    bare.run(mov(6, 900) + HLT, at=CODE + 0x100)
    first = bare.machine.activate(0)
    assert bare.register("rip") == stopped
    first.complete_hypercall(0)
    assert isinstance(first.run(bare.register("rip"), 100), Halt)
    assert bare.register("rsi") == 6
