# SPDX-License-Identifier: GPL-2.0-or-later
"""Random interleavings by priorities: PCT (Burckhardt and others, ASPLOS 2010).

Guest and host get a random priority each, and of the k steps of an interleaving `depth` - 1 are
chosen as change points. The side with the higher priority runs; at a change point it falls below
the other. A loss that needs `depth` ordering constraints between steps is met by one run with a
probability of at least 1 / (2 k^(depth-1)), however rare it is among all interleavings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import comb
from random import Random
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.migration.model.order_model import (
    PageVerdict,
    Scenario,
    after_guest,
    after_host,
    initial,
    verdict,
)

_SIDES: Final = 2


class PctResult(msgspec.Struct, frozen=True):
    """What `runs` random interleavings showed.

    `distinct` of the `total` interleavings were run; `lost_strict` and `lost_defined` count
    distinct ones. `new_chance` estimates the chance that one more run is an interleaving not seen
    yet (Good-Turing: the share of those seen once). `miss_bound` is the greatest chance with which
    a loss of the given depth stays unseen in this many runs. `first` is the first losing
    interleaving (True: the guest's step).
    """

    runs: int
    depth: int
    seed: int
    distinct: int
    total: int
    lost_strict: int
    lost_defined: int
    new_chance: float
    miss_bound: float
    first: tuple[bool, ...] | None
    is_interrupted: bool = False


def check_depth(scenario: Scenario, depth: int) -> None:
    """Raises `InputError` unless there can be `depth` - 1 change points."""
    if not 1 <= depth <= scenario.steps:
        raise InputError(
            f"--depth {depth}: an interleaving of {scenario.steps} steps takes 1 to "
            f"{scenario.steps}"
        )


def schedule(
    scenario: Scenario, depth: int, random: Random
) -> tuple[tuple[bool, ...], PageVerdict]:
    """One random interleaving (True: the guest's step) and its verdict."""
    guest_first = random.random() < 1 / _SIDES
    changes = frozenset(random.sample(range(scenario.steps), depth - 1))
    state = initial(scenario)
    interleaving = []
    for place in range(scenario.steps):
        if place in changes:
            guest_first = not guest_first
        guest = after_guest(scenario, state) if guest_first else None
        host = after_host(scenario, state) if guest is None else None
        after = guest or host or after_guest(scenario, state)
        assert after is not None
        interleaving.append(after.guest > state.guest)
        state = after
    return tuple(interleaving), verdict(scenario, state)


def explore_random(
    scenario: Scenario, runs: int, depth: int, seed: int, on_run: Callable[[], None] = lambda: None
) -> PctResult:
    """`runs` random interleavings. Ctrl-C ends it early with what was found. `on_run` is called
    after each run. Raises `InputError` for a depth that the scenario has no room for."""
    check_depth(scenario, depth)
    random = Random(seed)
    seen: Counter[tuple[bool, ...]] = Counter()
    verdicts: dict[tuple[bool, ...], PageVerdict] = {}
    is_interrupted = False
    try:
        for _ in range(runs):
            interleaving, found = schedule(scenario, depth, random)
            verdicts[interleaving] = found
            seen[interleaving] += 1
            on_run()
    except KeyboardInterrupt:
        is_interrupted = True
    done = seen.total()
    hit = 1 / (_SIDES * scenario.steps ** (depth - 1))
    free = scenario.steps - int(scenario.rules.guest_ends_on_source)
    return PctResult(
        runs=done,
        depth=depth,
        seed=seed,
        distinct=len(seen),
        total=comb(free, len(scenario.script.steps)),
        lost_strict=sum(verdicts[steps].lost_strict for steps in seen),
        lost_defined=sum(verdicts[steps].lost_defined for steps in seen),
        new_chance=sum(count == 1 for count in seen.values()) / done if done else 1.0,
        miss_bound=(1 - hit) ** done,
        first=next((steps for steps in seen if verdicts[steps].lost_strict), None),
        is_interrupted=is_interrupted,
    )
