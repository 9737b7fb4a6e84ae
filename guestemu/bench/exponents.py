# SPDX-License-Identifier: GPL-2.0-or-later
"""How CPU time grows: the exponent of time against a size, which is the slope of a line through
their logarithms. 1 is proportional, 0 independent of the size."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from itertools import islice
from statistics import linear_regression, median
from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.bench.figure import Figure, Work, repetitions, seconds_of
from guestemu.bench.scene import GENERATION, ROUND_TRIP
from guestemu.dma.model import ModelRun
from guestemu.dma.run import BATCH_EVENTS
from guestemu.dma.synthetic import synthetic_events, trace_text
from guestemu.dma.trace import TraceReader
from guestemu.host.kvm.run import KvmRun
from guestemu.host.standin import StandInVcpu
from guestemu.host.userspace.reference import ReferenceUserSpace
from guestemu.program.program import Header
from guestemu.runner.testbed import build_testbed

UNIT: Final = "exponent"
_OPS: Final = (8, 32, 128, 512)
_MEBIBYTES: Final = (256, 1024, 4096, 8192)
_EVENTS: Final = (2_000, 8_000, 32_000)
_TRACED_MEBIBYTES: Final = 1024
_RANGES: Final = (16, 256, 4096, 65_536)
_RANGE_PAGES: Final = 1 << 18


def _ops(size: int) -> Work:
    testbed = build_testbed(Header(guest=f"snippet:{GENERATION}"))
    ops = ROUND_TRIP * (size // len(ROUND_TRIP))

    def run(count: int) -> None:
        for _ in range(count):
            testbed.run(ops)

    return run


def _memory(size: int) -> Work:
    testbed = build_testbed(Header(guest=f"snippet:{GENERATION}", memory=size))

    def run(count: int) -> None:
        for _ in range(count):
            testbed.run(ROUND_TRIP)

    return run


def _trace(size: int) -> Work:
    text = b"".join(trace_text(synthetic_events(size)))

    def run(count: int) -> None:
        for _ in range(count):
            guest = ModelRun(GENERATION, _TRACED_MEBIBYTES)
            events = iter(TraceReader(io.BytesIO(text)))
            while batch := list(islice(events, BATCH_EVENTS)):
                guest.steps(batch)

    return run


def _ranges(size: int) -> Work:
    user_space = ReferenceUserSpace(_RANGE_PAGES)
    request, vcpu = KvmRun(), StandInVcpu()
    handle = user_space.hypercall_exit
    for number in range(size):
        request.hypercall.args[:3] = [2 * number << PAGE_SHIFT, 1, 0]
        handle(request, vcpu)

    def run(count: int) -> None:
        for number in range(count):
            request.hypercall.args[:3] = [1 << PAGE_SHIFT, 1, number & 1]
            handle(request, vcpu)

    return run


_MEASURED: Final[Mapping[str, tuple[str, Callable[[int], Work], tuple[int, ...]]]] = {
    "growth-ops": ("operations of a conversion program, all checks", _ops, _OPS),
    "growth-memory": (
        "MiB of the guest in which one page goes there and back",
        _memory,
        _MEBIBYTES,
    ),
    "growth-trace": ("events of an ftrace text through the model guest", _trace, _EVENTS),
    "growth-ranges": ("shared ranges in a host's record when a page changes", _ranges, _RANGES),
}
FIGURES: Final[Mapping[str, str]] = {
    name: f"Exponent of CPU time against the number of {text}"
    for name, (text, _, _) in _MEASURED.items()
}


def exponent(points: Mapping[int, float]) -> float:
    """The exponent of the seconds that each size takes."""
    slope, _ = linear_regression(
        [math.log(size) for size in points], [math.log(spent) for spent in points.values()]
    )
    return slope


def measure(name: str, rounds: int, turn: float) -> Figure:
    """The exponent of the figure `name`; sizes take turns of `turn` CPU seconds."""
    text, prepare, sizes = _MEASURED[name]
    works = {size: prepare(size) for size in sizes}
    counts = {size: repetitions(work, turn) for size, work in works.items()}
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size, work in works.items():
            times[size].append(seconds_of(work, counts[size]))
    found = round(exponent({size: median(spent) for size, spent in times.items()}), 3)
    return Figure(name, found, UNIT, None, None, f"{text}, {sizes[0]:,} to {sizes[-1]:,}")
