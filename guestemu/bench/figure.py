# SPDX-License-Identifier: GPL-2.0-or-later
"""What a benchmark is, and how it is timed.

A figure alone says more about the machine than about the code. So every benchmark measures two
things that do comparable work, the product's way and a floor or peer, in short turns one after the
other; the figure is the median over the rounds, the ratio the median of the rounds' own ratios,
which a machine that gets slower half-way does not change. The clock is the process's CPU time:
other processes on the machine then matter little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Final, TypeAlias

import msgspec

TURN_SECONDS: Final = 0.02
_TRIAL_SECONDS: Final = 0.002

Work: TypeAlias = Callable[[int], object]
"""Does its job this many times."""


class Figure(msgspec.Struct, frozen=True):
    """One line of the suite's result.

    `value` and `floor` are in `unit`: "us" for each execution, page or boot, "/s" for rates, "MiB",
    or "exponent" (of CPU time against a size, which `against` names; it has no floor).
    `ratio` says how many times more time the value's side takes than the floor's (also for rates).
    `against` names the floor. None where this machine cannot measure it; `note` then says why.
    """

    name: str
    value: float | None
    unit: str
    floor: float | None
    ratio: float | None
    against: str
    note: str = ""


class Pair(msgspec.Struct, frozen=True):
    """A prepared benchmark: the work and its floor, each None with the reason in `note`.

    `unit` is "us" or "/s"; one repetition counts as `items` and one of the floor as `floor_items`.
    """

    work: Work | None
    floor: Work | None
    against: str
    unit: str = "us"
    items: int = 1
    floor_items: int = 1
    note: str = ""


class Turns(msgspec.Struct, frozen=True):
    """How often each side of a pair runs in one turn, so that a turn lasts `TURN_SECONDS`."""

    work: int
    floor: int


def seconds_of(work: Work, count: int) -> float:
    """CPU seconds of this process that one repetition takes, over `count` of them."""
    start = time.process_time()
    work(count)
    return (time.process_time() - start) / count


def repetitions(work: Work, seconds: float) -> int:
    """How many repetitions take about `seconds`; warms `work` up."""
    count = 1
    while True:
        start = time.process_time()
        work(count)
        spent = time.process_time() - start
        if spent >= min(_TRIAL_SECONDS, seconds):
            return max(1, int(count * seconds / spent))
        count *= 4


def measure(
    pairs: Mapping[str, Pair],
    rounds: int,
    turn: float = TURN_SECONDS,
    progress: Callable[[int], None] = lambda _round: None,
) -> Iterator[Figure]:
    """Times all pairs, `rounds` times each, interleaved; yields the figures in order.

    `turn` is the length of one side's turn in CPU seconds; `progress` gets each round's number.
    """
    turns = {
        name: Turns(_turn(pair.work, turn), _turn(pair.floor, turn)) for name, pair in pairs.items()
    }
    times: dict[str, list[tuple[float, float | None]]] = {name: [] for name in pairs}
    for number in range(rounds):
        progress(number)
        for name, pair in pairs.items():
            if pair.work is None:
                continue
            value = seconds_of(pair.work, turns[name].work) / pair.items
            floor = None
            if pair.floor is not None:
                floor = seconds_of(pair.floor, turns[name].floor) / pair.floor_items
            times[name].append((value, floor))
    for name, pair in pairs.items():
        yield summarize(name, pair, times[name])


def _turn(work: Work | None, seconds: float) -> int:
    return 0 if work is None else repetitions(work, seconds)


def summarize(name: str, pair: Pair, times: Sequence[tuple[float, float | None]]) -> Figure:
    """The figure for seconds per item of each round: (the work's, the floor's)."""
    if not times:
        return Figure(name, None, pair.unit, None, None, pair.against, pair.note)
    value = median(spent for spent, _ in times)
    floors = [floor for _, floor in times if floor is not None]
    ratios = [spent / floor for spent, floor in times if floor]
    return Figure(
        name,
        _in_unit(value, pair.unit),
        pair.unit,
        _in_unit(median(floors), pair.unit) if floors else None,
        round(median(ratios), 3) if ratios else None,
        pair.against,
        pair.note,
    )


def _in_unit(seconds: float, unit: str) -> float:
    return round(seconds * 1e6, 4) if unit == "us" else round(1 / max(seconds, 1e-12), 1)
