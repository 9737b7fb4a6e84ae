# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios walked one interleaving after the other: slow, and with nothing shared between this and
the counting but the model's steps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from guestemu.migration.model.count import Space, Tally
from guestemu.migration.model.order_model import (
    Scenario,
    State,
    after_guest,
    after_host,
    initial,
    verdict,
)
from guestemu.migration.model.witness import PassStep, Stop, Witness, losing


def interleavings(scenario: Scenario) -> Iterator[tuple[bool, ...]]:
    """Every merge, as one boolean per step (True: the guest's), in lexicographic order with the
    guest before the host: the order of witness ranks."""
    guest = len(scenario.script.steps)
    for places in combinations(range(scenario.steps), guest):
        if scenario.rules.guest_ends_on_source and scenario.steps - 1 in places:
            continue
        chosen = frozenset(places)
        yield tuple(place in chosen for place in range(scenario.steps))


def end_of(scenario: Scenario, interleaving: tuple[bool, ...]) -> State:
    """The final state of one of `interleavings(scenario)`."""
    state = initial(scenario)
    for is_guest in interleaving:
        after = after_guest(scenario, state) if is_guest else after_host(scenario, state)
        assert after is not None, "no such interleaving"
        state = after
    return state


def walk(scenario: Scenario) -> Tally:
    """The tally of a scenario, by every interleaving."""
    total = lost_strict = lost_defined = 0
    for interleaving in interleavings(scenario):
        strict, defined = verdict(scenario, end_of(scenario, interleaving))
        total += 1
        lost_strict += strict
        lost_defined += defined
    return Tally(total, lost_strict, lost_defined)


def rank_of(space: Space, witness: Witness, by_defined: bool = False) -> int:
    """The number of a losing interleaving: what `unrank` is the inverse of."""
    rank = 0
    for moment in witness.moments:
        if isinstance(moment.step, PassStep | Stop):
            guest = after_guest(space.scenario, moment.before)
            if guest is not None:
                rank += losing(space.tally_of(guest), by_defined)
    return rank
