# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's flushes on a machine with incoherent caches, and without them (A26, E32, M67)."""

from __future__ import annotations

import random

import msgspec
import pytest

from guestemu.abi.caches import CacheModel
from guestemu.abi.errors import InputError
from guestemu.checks.cache import CACHE_LOSS
from guestemu.guest.registry import GuestSettings, load_guest
from guestemu.guest.snippet.generations import GENERATIONS
from guestemu.program.ops import Op, OpKind, Region, canonical_op
from guestemu.program.program import Header, Program
from guestemu.program.text import format_text, parse_text
from guestemu.runner.testbed import Testbed, build_testbed

FLUSHING = Header(coherent=False, cache=CacheModel.INCOHERENT, budget=200_000)
NOT_FLUSHING = msgspec.structs.replace(FLUSHING, coherent=True)
EVICTING = msgspec.structs.replace(FLUSHING, cache=CacheModel.EVICTING)


def do(kind: OpKind, *arguments: int, page: int = 3, region: Region = Region.D) -> Op:
    return canonical_op(Op(kind, arguments, region, page))


WRITE_1 = do(OpKind.WRITE, 0x11)
WRITE_2 = do(OpKind.WRITE, 0x22)
SHARED = do(OpKind.SET_MEMORY_DECRYPTED)
PRIVATE = do(OpKind.SET_MEMORY_ENCRYPTED)
EVICT_PRIVATE = do(OpKind.EVICT, 1, 1)
EVICT_SHARED = do(OpKind.EVICT, 1, 0)
READ = do(OpKind.READ)


@pytest.fixture(scope="module")
def flushing() -> Testbed:
    return build_testbed(FLUSHING)


@pytest.fixture(scope="module")
def not_flushing() -> Testbed:
    return build_testbed(NOT_FLUSHING)


def losses(testbed: Testbed, *ops: Op) -> list[int]:
    """The operations after which something was lost."""
    outcome = testbed.run(ops)
    assert {found.check for found in outcome.violations} <= {CACHE_LOSS}
    return [found.op for found in outcome.violations]


def test_without_the_first_flush_the_old_private_line_goes_over_the_shared_data(not_flushing):
    ops = (WRITE_1, SHARED, WRITE_2, EVICT_SHARED, EVICT_PRIVATE, READ)
    assert losses(not_flushing, *ops) == [4]


def test_without_the_first_flush_the_other_direction_loses_too(not_flushing):
    ops = (SHARED, WRITE_1, PRIVATE, WRITE_2, EVICT_PRIVATE, EVICT_SHARED)
    assert losses(not_flushing, *ops) == [5]


def test_with_it_nothing_is_lost(flushing):
    ops = (WRITE_1, SHARED, WRITE_2, EVICT_SHARED, EVICT_PRIVATE, READ)
    back = (PRIVATE, WRITE_1, EVICT_PRIVATE, EVICT_SHARED, READ)
    assert losses(flushing, *ops, *back) == []
    results = flushing.run((*ops, *back)).results
    assert results[4].outcome.value == 0  # nothing private was left to write back
    assert results[-1].outcome.value == int.from_bytes(b"\x11" * 8, "little")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_flushes_what_it_converts(generation):
    header = msgspec.structs.replace(FLUSHING, guest=f"snippet:{generation}")
    testbed = build_testbed(header)
    testbed.checks = tuple(check for check in testbed.checks if check.name == CACHE_LOSS)
    large = [
        do(kind, *arguments, page=511, region=Region.L)
        for kind, *arguments in (
            (OpKind.WRITE, 0x11, 0, 8192),
            (OpKind.SET_MEMORY_DECRYPTED, 2),
            (OpKind.WRITE, 0x22, 0, 8192),
            (OpKind.EVICT, 2, 0),
            (OpKind.EVICT, 2, 1),
        )
    ]
    assert losses(testbed, WRITE_1, SHARED, WRITE_2, EVICT_SHARED, EVICT_PRIVATE, *large) == []
    testbed.close()


def test_an_early_conversion_keeps_what_was_written(flushing):
    early = do(OpKind.EARLY_SET_MEMORY_DECRYPTED, 4096)
    ops = (WRITE_1, early, EVICT_SHARED, EVICT_PRIVATE, READ)
    assert losses(flushing, *ops) == []
    assert flushing.run(ops).results[-1].outcome.value == int.from_bytes(b"\x11" * 8, "little")


@pytest.mark.parametrize("seed", range(6))
def test_random_evictions_lose_nothing_of_a_kernel_that_flushes(seed):
    rng = random.Random(seed)
    testbed = build_testbed(msgspec.structs.replace(EVICTING, seed=seed))
    ops = [rng.choice((WRITE_1, WRITE_2, SHARED, PRIVATE, READ)) for _ in range(30)]
    assert losses(testbed, *ops) == []
    testbed.close()


def test_random_evictions_find_the_missing_flush():
    found = 0
    for seed in range(6):
        testbed = build_testbed(msgspec.structs.replace(EVICTING, coherent=True, seed=seed))
        found += bool(losses(testbed, WRITE_1, SHARED, *(WRITE_2, READ) * 4))
        testbed.close()
    assert found > 0


def test_a_page_that_goes_back_to_the_host_with_dirty_private_lines(flushing):
    reused = (WRITE_1, do(OpKind.HOST_WRITE, 0x77), EVICT_SHARED, EVICT_PRIVATE)
    assert losses(flushing, *reused) == [3]  # M19
    flushed_first = (WRITE_1, EVICT_PRIVATE, do(OpKind.HOST_WRITE, 0x77), EVICT_SHARED, READ)
    assert losses(flushing, *flushed_first) == []


def test_the_vmm_reads_stale_bytes_of_a_private_page_until_it_flushes(flushing):
    look = do(OpKind.HOST_READ)
    ops = (look, WRITE_1, EVICT_PRIVATE, look, EVICT_SHARED, look)
    values = [flushing.run(ops).results[index].outcome.value for index in (0, 3, 5)]
    assert values[0] == values[1] != values[2]  # C30


def test_a_shared_page_is_coherent_with_the_vmm(flushing):
    ops = (SHARED, WRITE_2, do(OpKind.HOST_READ), do(OpKind.HOST_WRITE, 0x33, 8, 8), READ)
    results = flushing.run(ops).results
    assert results[2].outcome.value == int.from_bytes(b"\x22" * 8, "little")
    assert losses(flushing, *ops) == []


def test_a_page_written_through_a_disagreeing_alias_is_not_judged(flushing):
    through_alias = do(OpKind.WRITE, 0x11, region=Region.V)
    assert losses(flushing, SHARED, through_alias, EVICT_SHARED, EVICT_PRIVATE) == []


def test_a_machine_without_caches_evicts_nothing():
    testbed = build_testbed(Header())
    assert testbed.run((EVICT_PRIVATE,)).results[0].outcome.value == -25
    assert CACHE_LOSS not in {check.name for check in testbed.checks}
    testbed.close()


def test_the_header_says_it_and_says_nothing_without():
    text = format_text(Program(FLUSHING, (READ,)))
    assert "\ncache incoherent\n" in text
    assert parse_text(text, "a").header == FLUSHING
    assert "cache" not in format_text(Program(Header(), (READ,)))
    with pytest.raises(InputError, match="use none, incoherent, evicting"):
        parse_text(text.replace("cache incoherent", "cache wet"), "a")


def test_a_booted_kernel_has_no_cache_model():
    settings = GuestSettings("linux:6.1", 39, 64, 1, 1, False, cache=CacheModel.INCOHERENT)
    with pytest.raises(InputError, match="only snippet guests"):
        load_guest(settings)
