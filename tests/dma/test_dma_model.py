# SPDX-License-Identifier: GPL-2.0-or-later
"""The model guest does what the snippet guest's code does on the CPU."""

from __future__ import annotations

import pytest
from conversion_log import Log
from emulated_guest import dma_testbed
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import NAMES, trace_path

from guestemu.abi.errors import InputError
from guestemu.dma.emulate import Emulation
from guestemu.dma.events import Alloc, Event, Free
from guestemu.dma.leaves import GIB_PAGES, DirectMap
from guestemu.dma.model import ModelRun
from guestemu.dma.report import DmaReport
from guestemu.dma.source import open_trace
from guestemu.guest.dma.gfp import GFP_ATOMIC, GFP_KERNEL
from guestemu.runner.testbed import Testbed

GENERATIONS = ("5.10", "2020", "5.17", "6.1", "6.12")
MEMORY = 256


@pytest.fixture(scope="module")
def testbeds() -> dict[str, Testbed]:
    return {name: dma_testbed(f"snippet:{name}") for name in GENERATIONS}


def recorded(name: str) -> list[Event]:
    with open_trace(trace_path(name)) as reader:
        return list(reader)


def assert_equal(testbed: Testbed, generation: str, events: list[Event]) -> DmaReport:
    """Both guests, event by event; every hypercall, store, split and bit."""
    real_log, model_log = Log(), Log()
    real = Emulation(testbed, observers=(real_log,))
    model = ModelRun(generation, MEMORY, observers=(model_log,))
    for event in events:
        real.step(event)
        model.step(event)
    assert model_log.heard == real_log.heard
    arena = testbed.guest.dma_frames
    live = testbed.guest.leaf_map.private[arena.start : arena.stop]
    assert model.direct_map.private[arena.start : arena.stop] == live
    expected, report = real.report(), model.report()
    assert report.analysis == expected.analysis
    for name in ("pages_decrypted", "pages_encrypted", "hypercalls", "peak_shared_pages", "pools"):
        assert getattr(report, name) == getattr(expected, name)
    assert report.requested == expected.requested
    assert report.violations is None
    return report


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("generation", ["6.1", "5.10"])
def test_a_recorded_trace(testbeds: dict[str, Testbed], generation: str, name: str) -> None:
    report = assert_equal(testbeds[generation], generation, recorded(name))
    assert report.analysis is not None
    assert report.analysis.total.conversions > 100
    assert report.analysis.total.splits + report.analysis.pools.splits > 1
    assert bool(report.hypercalls) == (generation != "5.10")


@st.composite
def streams(draw: st.DrawFn) -> list[Event]:
    """Allocations of up to two large leaves and frees, some of them atomic."""
    events: list[Event] = []
    live: list[tuple[int, int]] = []
    pages = st.integers(1, 40) | st.sampled_from([256, 511, 512, 513, 1024])
    for number in range(draw(st.integers(1, 25))):
        head = (number + 1, number * 1000, 0, "t", f"dev{number % 3}", "drv")
        if live and draw(st.booleans()):
            address, size = live.pop(draw(st.integers(0, len(live) - 1)))
            events.append(Free(*head, address, size))
            continue
        size = draw(pages) * 4096 - draw(st.sampled_from([0, 100]))
        gfp = draw(st.sampled_from([GFP_KERNEL, GFP_KERNEL, GFP_KERNEL, GFP_ATOMIC]))
        address = (number + 1) << 24
        live.append((address, size))
        events.append(Alloc(*head, address, size, gfp))
    return events


@pytest.mark.parametrize("generation", GENERATIONS)
@settings(deadline=None, max_examples=12)
@given(events=streams())
def test_random_streams(testbeds: dict[str, Testbed], generation: str, events: list[Event]) -> None:
    assert_equal(testbeds[generation], generation, events)


def test_a_leaf_that_is_covered_wholly_is_one_hypercall_until_it_was_split() -> None:
    direct = DirectMap(4096)
    whole = direct.convert(1024, 512, False)
    assert (whole.calls_2m, whole.calls_4k, whole.leaf_changes, whole.splits) == (1, 0, 1, 0)
    again = direct.convert(1100, 1, False)
    assert (again.calls_2m, again.changed, again.splits) == (1, 0, 0)
    part = direct.convert(1100, 1, True)
    assert (part.calls_4k, part.changed, part.splits) == (1, 1, 1)
    after = direct.convert(1024, 512, True)
    assert (after.calls_4k, after.changed, after.leaf_changes) == (512, 511, 511)


def test_a_giant_leaf_is_split_twice_for_a_page() -> None:
    direct = DirectMap(4 * GIB_PAGES)
    assert direct.convert(GIB_PAGES, GIB_PAGES, False).calls_1g == 1
    first = direct.convert(2 * GIB_PAGES + 5, 1, False)
    assert (first.calls_4k, first.splits) == (1, 2)
    second = direct.convert(2 * GIB_PAGES + 512, 513, False)
    assert (second.calls_2m, second.calls_4k, second.splits) == (1, 1, 1)
    assert direct.convert(3 * GIB_PAGES, 512, False).splits == 0


@pytest.mark.parametrize(
    ("generation", "memory", "message"),
    [("5.4", 64, "model:6.12"), ("6.1", 16, "32M to 1048576M"), ("6.1", 33, "steps of 2M")],
)
def test_a_model_that_cannot_be(generation: str, memory: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelRun(generation, memory)
