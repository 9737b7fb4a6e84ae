# SPDX-License-Identifier: GPL-2.0-or-later
"""What policies save and what they leave shared."""

from __future__ import annotations

import pytest
from conversion_log import Log
from recorded import NAMES, dma_lines, trace_path

from guestemu.abi.errors import InputError
from guestemu.dma.events import Alloc, Event, Free
from guestemu.dma.model import ModelRun
from guestemu.dma.patterns import parse_patterns, pattern_events
from guestemu.dma.policies import POLICY_NAMES, parse_policies
from guestemu.dma.policy_figures import PolicyFigures
from guestemu.dma.source import open_trace
from guestemu.dma.synthetic import synthetic_events
from guestemu.dma.what_if import Comparison
from guestemu.guest.dma.gfp import GFP_KERNEL

ATOMIC = {"GFP_ATOMIC", "GFP_NOWAIT"}


def compare(events: list[Event], policies: str = "all") -> dict[str, PolicyFigures]:
    comparison = Comparison("6.1", 256, parse_policies(policies))
    for event in events:
        comparison.step(event)
    return comparison.result()


def recorded(name: str) -> list[Event]:
    with open_trace(trace_path(name)) as reader:
        return list(reader)


@pytest.mark.parametrize("name", NAMES)
def test_batching_makes_one_hypercall_per_conversion(name: str) -> None:
    lines = dma_lines(name)
    pool = {line.address for line in lines if line.flags in ATOMIC}
    conversions = sum(line.address not in pool for line in lines)
    figures = compare(recorded(name), "batch")
    kernel, batch = figures["kernel"], figures["batch"]
    assert (kernel.conversions, batch.conversions, batch.hypercalls) == (conversions,) * 3
    assert batch.hypercalls_saved == kernel.hypercalls - conversions > 0
    assert (batch.extra_shared_pages, batch.splits) == (0, kernel.splits)


def test_a_ring_that_is_reset_converts_once_when_blocks_stay_shared() -> None:
    text = "nvme:queues=2,prp=0,scenario=reset,rounds=9"
    figures = compare(list(pattern_events(parse_patterns(text))))
    assert figures["kernel"].conversions == 4 + 4 + 9 * 8
    assert figures["keep-shared"].conversions == 4 + 4
    assert figures["keep-shared"].conversions_saved == 72
    assert figures["align-2m"].conversions == 1
    assert figures["align-2m"].hypercalls == 1
    assert figures["align-2m"].splits == 0
    assert figures["align-2m"].peak_shared_pages - figures["kernel"].peak_shared_pages == 512 - 44


def test_a_freed_aligned_block_becomes_private_again() -> None:
    figures = compare(list(pattern_events(parse_patterns("e1000:scenario=unbind"))))
    assert (figures["align-2m"].conversions, figures["align-2m"].pages_converted) == (2, 1024)
    assert (figures["keep-shared"].conversions, figures["pool-small"].conversions) == (2, 1)


def test_only_small_buffers_come_from_the_small_pool() -> None:
    head = (1, 1000, 0, "t", "d", "drv")
    events: list[Event] = [
        Alloc(*head, number << 24, pages * 4096, GFP_KERNEL)
        for number, pages in enumerate((1, 4, 5, 8), start=1)
    ]
    figures = compare(events, "pool-small,pool-small=8")
    assert figures["pool-small"].conversions == 1 + 2
    assert figures["pool-small=8"].conversions == 1


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_every_buffer_is_shared_and_its_own_while_it_lives(policy: str) -> None:
    """On a random trace: no policy hands out private memory, or memory that is in use."""
    log = Log()
    run = ModelRun("6.1", 64, observers=(log,), policy=policy)
    live: dict[int, tuple[int, int]] = {}
    used: set[int] = set()
    for event in synthetic_events(1500, live=200):
        run.step(event)
        cleared = [item for item in log.heard if item[0] == "cleared"]
        log.heard.clear()
        if isinstance(event, Alloc):
            for _, gfn, size in cleared:
                assert isinstance(gfn, int)
                assert isinstance(size, int)
                frames = set(range(gfn, gfn + size // 4096))
                assert not run.direct_map.private[gfn : gfn + size // 4096].any()
                assert not frames & used
                used |= frames
                live[event.dma_addr] = (gfn, size // 4096)
        elif isinstance(event, Free) and event.dma_addr in live:
            gfn, pages = live.pop(event.dma_addr)
            used.difference_update(range(gfn, gfn + pages))
    assert len(live) > 50


def test_kept_blocks_are_given_back_when_memory_runs_out() -> None:
    """16 MiB: three blocks of 4 MiB are kept, then eleven buffers of 1 MiB must fit."""
    log = Log()
    run = ModelRun("6.1", 32, observers=(log,), policy="keep-shared")
    head = (1, 1000, 0, "t", "d", "drv")
    for number in range(1, 4):
        run.step(Alloc(*head, number << 24, 4 << 20, GFP_KERNEL))
    for number in range(1, 4):
        run.step(Free(*head, number << 24, 4 << 20))
    log.heard.clear()
    for number in range(11, 22):
        run.step(Alloc(*head, number << 24, 1 << 20, GFP_KERNEL))
    for number in (50, 51):
        run.step(Alloc(*head, number << 24, 4 << 20, GFP_KERNEL))
    requested = run.report().requested
    assert requested is not None
    assert requested.no_memory == 1
    frames = [
        frame
        for _, gfn, size in (item for item in log.heard if item[0] == "cleared")
        if isinstance(gfn, int) and isinstance(size, int)
        for frame in range(gfn, gfn + (size >> 12))
    ]
    assert len(frames) == len(set(frames)) == 15 << 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names none"),
        ("huge", "no such policy"),
        ("batch=2", "no such policy"),
        ("pool-small=0", "from 1 to 512"),
        ("pool-small=x", "from 1 to 512"),
    ],
)
def test_a_policy_that_does_not_exist(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_policies(text)
