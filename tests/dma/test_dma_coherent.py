# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from coherent_guest import RecordingGuest
from hypothesis import given
from hypothesis import strategies as st

from guestemu.abi.addresses import Gfn
from guestemu.abi.errors import InputError
from guestemu.guest.dma.coherent import AllocOutcome, Buffer, CoherentDma, FreeOutcome
from guestemu.guest.dma.gfp import GFP_ATOMIC, GFP_KERNEL, GFP_NOIO
from guestemu.guest.dma.policy import POLICIES, policy_named
from guestemu.guest.dma.pool import AtomicPool, default_pool_bytes
from guestemu.guest.dma.zones import Zone, ZonedAllocator

FIRST, FRAMES = Gfn(1 << 20), 4096  # above 4 GiB: one zone, one pool
GENERATIONS = tuple(POLICIES)


def make(policy: str = "6.12", frames: int = FRAMES) -> tuple[CoherentDma, RecordingGuest]:
    guest = RecordingGuest()
    dma = CoherentDma(guest, ZonedAllocator(FIRST, frames), policy_named(policy))
    dma.boot()
    guest.log.clear()
    return dma, guest


def allocated(dma: CoherentDma, size: int, gfp: frozenset[str] = GFP_KERNEL) -> Buffer:
    buffer = dma.alloc(size, gfp).buffer
    assert buffer is not None
    return buffer


@pytest.mark.parametrize("policy", GENERATIONS)
@pytest.mark.parametrize("size", [1, 4096, 3 * 4096, 10246, 91392, 1 << 22])
def test_order_of_steps_and_pages_of_each_generation(policy: str, size: int) -> None:
    dma, guest = make(policy)
    needed = -(-size // 4096)
    rounded = 1
    while rounded < needed:
        rounded *= 2
    converted = rounded if policy in ("5.10", "2020") else needed
    buffer = allocated(dma, size)
    assert dma.free(buffer.gfn).outcome is FreeOutcome.FREED
    assert guest.log == [
        ("decrypt", buffer.gfn, converted),
        ("memset", buffer.gfn, needed * 4096),
        ("encrypt", buffer.gfn, converted),
    ]
    assert buffer.gfn % rounded == 0
    assert buffer.block_pages == rounded


def test_three_pages_leave_the_fourth_private_since_5_15() -> None:
    for policy, shared in (("5.10", 4), ("5.17", 3), ("6.1", 3), ("6.12", 3)):
        dma, guest = make(policy)
        before = len(guest.shared)
        allocated(dma, 3 * 4096)
        assert len(guest.shared) - before == shared, policy


def test_alloc_pages_clears_only_the_bytes_asked_for() -> None:
    dma, guest = make()
    record = dma.alloc(5000, via_pages=True)
    assert record.decrypted_pages == 2
    assert guest.log[-1][2] == 5000


@pytest.mark.parametrize(
    ("policy", "leaked", "suspect"),
    [("2020", 0, 4), ("5.10", 0, 4), ("5.17", 0, 4), ("6.1", 0, 4), ("6.12", 4, 0)],
)
def test_a_failed_decrypt(policy: str, leaked: int, suspect: int) -> None:
    dma, guest = make(policy)
    guest.failing = {"decrypt"}
    record = dma.alloc(3 * 4096)
    assert record.outcome is AllocOutcome.DECRYPT_FAILED
    assert record.buffer is None
    assert record.error == -12
    assert (record.leaked_pages, record.freed_suspect_pages) == (leaked, suspect)
    assert dma.leaked_pages == leaked
    assert [call[0] for call in guest.log] == ["decrypt"]


@pytest.mark.parametrize(
    ("policy", "leaked", "suspect", "is_warned"),
    [
        ("2020", 0, 4, False),
        ("5.10", 0, 4, False),
        ("5.17", 4, 0, True),
        ("6.1", 4, 0, True),
        ("6.12", 4, 0, True),
    ],
)
def test_a_failed_encrypt(policy: str, leaked: int, suspect: int, is_warned: bool) -> None:
    dma, guest = make(policy)
    buffer = allocated(dma, 3 * 4096)
    guest.failing = {"encrypt"}
    record = dma.free(buffer.gfn)
    assert record.outcome is FreeOutcome.ENCRYPT_FAILED
    assert (record.leaked_pages, record.freed_suspect_pages) == (leaked, suspect)
    assert record.is_warned is is_warned
    guest.failing = set()
    is_reused = allocated(dma, 4 * 4096).gfn == buffer.gfn
    assert is_reused is (suspect > 0)


def test_flags_that_may_not_sleep_take_from_the_pool_without_converting() -> None:
    dma, guest = make()
    record = dma.alloc(4096, GFP_ATOMIC)
    assert record.outcome is AllocOutcome.POOL
    assert record.buffer is not None
    assert record.buffer.gfn in guest.shared
    assert guest.log == [("memset", record.buffer.gfn, 4096)]
    assert dma.alloc(4096, GFP_NOIO).outcome is AllocOutcome.CONVERTED
    shared = set(guest.shared)
    assert dma.free(record.buffer.gfn).outcome is FreeOutcome.POOL
    assert guest.shared == shared


def test_a_pool_grows_in_the_work_item_and_never_shrinks() -> None:
    dma, guest = make()
    start = dma.pools.pages
    buffers = [allocated(dma, 16 * 4096, GFP_ATOMIC) for _ in range(2)]
    assert dma.alloc(4096, GFP_ATOMIC).outcome is AllocOutcome.POOL_EMPTY
    (growth,) = dma.pools.run_work()
    assert growth.decrypted == start
    assert dma.pools.pages == 2 * start
    assert dma.pools.run_work() == ()
    for buffer in buffers:
        dma.free(buffer.gfn)
    assert dma.pools.pages == dma.pools.free_pages == len(guest.shared) == 2 * start


def test_a_pool_that_cannot_be_decrypted_gives_its_pages_back() -> None:
    dma, guest = make("6.12")
    free = dma.pools.free_pages
    allocated(dma, 4096, GFP_ATOMIC)
    guest.failing = {"decrypt"}
    (growth,) = dma.pools.run_work()
    assert growth.error == -12
    assert growth.freed_suspect == growth.pages > 0
    assert dma.pools.free_pages == free - 1


def test_pool_growth_steps_down_when_memory_is_short() -> None:
    dma, _ = make(frames=64)
    assert dma.pools.pages == 32
    allocated(dma, 16 * 4096)
    allocated(dma, 4096, GFP_ATOMIC)
    (growth,) = dma.pools.run_work()
    assert growth.pages == 16


@pytest.mark.parametrize(
    ("mib", "kib"),
    [(64, 128), (512, 128), (2048, 256), (8192, 1024), (32768, 4096), (1 << 20, 4096)],
)
def test_default_pool_size_by_ram(mib: int, kib: int) -> None:
    assert default_pool_bytes(mib * 256) == kib * 1024


def test_pool_runs_are_first_fit_and_aligned_to_their_order() -> None:
    pool = AtomicPool(Zone.NORMAL)
    pool.grow(Gfn(64), 16)
    assert [pool.allocate(size * 4096) for size in (1, 3, 2, 8)] == [64, 68, 66, 72]
    assert pool.allocate(2 * 4096) is None
    assert pool.allocate(4096) == 65
    assert pool.free(Gfn(68)) == 3
    assert pool.free(Gfn(68)) == 0
    assert pool.free(Gfn(73)) == 0
    assert pool.allocate(4 * 4096) == 68
    pool.grow(Gfn(128), 4)
    assert pool.allocate(4096) == 128
    assert (pool.pages, pool.free_pages) == (20, 3)


def test_a_mask_selects_the_pool_of_a_lower_zone() -> None:
    guest = RecordingGuest()
    dma = CoherentDma(guest, ZonedAllocator(Gfn(0), 0x2000), policy_named("6.12"))
    dma.boot()
    low = dma.alloc(4096, GFP_ATOMIC, mask=(1 << 24) - 1).buffer
    assert low is not None
    assert low.gfn < 0x1000
    any_buffer = dma.alloc(4096, GFP_ATOMIC).buffer
    assert any_buffer is not None
    assert any_buffer.gfn >= 0x1000


def test_only_a_pool_that_is_short_grows() -> None:
    dma = CoherentDma(RecordingGuest(), ZonedAllocator(Gfn(0), 0x2000), policy_named("6.12"))
    dma.boot()
    dma.alloc(4096, GFP_ATOMIC, mask=(1 << 24) - 1)
    assert [growth.zone for growth in dma.pools.run_work()] == [Zone.DMA]


def test_frees_of_what_is_not_allocated_change_nothing() -> None:
    dma, guest = make()
    buffer = allocated(dma, 8192)
    dma.free(buffer.gfn)
    guest.log.clear()
    assert dma.free(buffer.gfn).outcome is FreeOutcome.UNKNOWN
    assert dma.free(Gfn(7)).outcome is FreeOutcome.UNKNOWN
    assert guest.log == []


@pytest.mark.parametrize("size", [0, -1, (1 << 22) + 1, 1 << 64])
def test_sizes_that_no_block_holds_are_refused(size: int) -> None:
    dma, guest = make()
    assert dma.alloc(size).outcome is AllocOutcome.NO_MEMORY
    assert guest.log == []


def test_an_unknown_policy_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"policy '4\.4'.*5\.10, 2020, 5\.17, 6\.1, 6\.12"):
        policy_named("4.4")


steps = st.lists(
    st.tuples(
        st.sampled_from(["alloc", "atomic", "free", "work"]),
        st.integers(1, 200_000),
        st.sampled_from([frozenset[str](), frozenset({"decrypt"}), frozenset({"encrypt"})]),
    ),
    max_size=60,
)


@given(st.sampled_from(GENERATIONS), steps)
def test_no_frame_is_lost_or_owned_twice(
    policy: str, actions: list[tuple[str, int, frozenset[str]]]
) -> None:
    guest = RecordingGuest()
    memory = ZonedAllocator(FIRST, 600)
    dma = CoherentDma(guest, memory, policy_named(policy))
    dma.boot()
    for action, size, failing in actions:
        guest.failing = set(failing)
        if action == "free" and dma.buffers:
            dma.free(dma.buffers[size % len(dma.buffers)].gfn)
        elif action == "work":
            dma.pools.run_work()
        else:
            dma.alloc(size, GFP_ATOMIC if action == "atomic" else GFP_KERNEL)
        owned = sum(buffer.block_pages for buffer in dma.buffers)
        assert memory.free_pages + owned + dma.pools.pages + dma.leaked_pages == memory.frames
        for buffer in dma.buffers:
            assert set(range(buffer.gfn, buffer.gfn + -(-buffer.size // 4096))) <= guest.shared
    guest.failing = set()
    for buffer in dma.buffers:
        dma.free(buffer.gfn)
    assert memory.free_pages + dma.pools.pages + dma.leaked_pages == memory.frames
    assert dma.pools.free_pages == dma.pools.pages
