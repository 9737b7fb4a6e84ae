# SPDX-License-Identifier: GPL-2.0-or-later
"""How many interleavings lose the page: exactly, over states, and by walking every one of them.

Interleavings that lead to the same state continue alike, so the space is a graph in layers: layer
k holds the states after k steps. Counting backwards, each state's tally is the sum of its
successors'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import NamedTuple

from guestemu.migration.model.order_model import (
    Scenario,
    State,
    after_guest,
    after_host,
    initial,
    is_final,
    verdict,
)


class Tally(NamedTuple):
    """Interleavings from a state to the end: all of them and those that lose, by either verdict."""

    total: int
    lost_strict: int
    lost_defined: int


class Space:
    """Every state of a scenario that can be reached, with its tally."""

    def __init__(self, scenario: Scenario, on_layer: Callable[[], None] = lambda: None) -> None:
        """Explores; `on_layer` is called after each of the `2 * (scenario.steps + 1)` layers."""
        self.scenario = scenario
        self._tallies: dict[State, Tally] = {}
        layers = [{initial(scenario)}]
        for _ in range(scenario.steps):
            layers.append({after for state in layers[-1] for after in successors(scenario, state)})
            on_layer()
        for layer in reversed(layers):
            for state in layer:
                self._tallies[state] = self._count(state)
            on_layer()

    @property
    def states(self) -> int:
        """How many different states there are."""
        return len(self._tallies)

    @property
    def tally(self) -> Tally:
        """Of all interleavings."""
        return self._tallies[initial(self.scenario)]

    @property
    def ends(self) -> frozenset[State]:
        """The different final states."""
        return frozenset(state for state in self._tallies if is_final(self.scenario, state))

    def tally_of(self, state: State) -> Tally:
        """Of the interleavings that go on from `state`, a state of this space."""
        return self._tallies[state]

    def _count(self, state: State) -> Tally:
        if is_final(self.scenario, state):
            strict, defined = verdict(self.scenario, state)
            return Tally(1, int(strict), int(defined))
        total = lost_strict = lost_defined = 0
        for after in successors(self.scenario, state):
            tally = self._tallies[after]
            total += tally.total
            lost_strict += tally.lost_strict
            lost_defined += tally.lost_defined
        return Tally(total, lost_strict, lost_defined)


def successors(scenario: Scenario, state: State) -> Iterator[State]:
    """The states one step after `state`: the guest's step first, then the host's."""
    for after in (after_guest(scenario, state), after_host(scenario, state)):
        if after is not None:
            yield after


def interleavings(scenario: Scenario) -> Iterator[tuple[bool, ...]]:
    """Every merge, as one boolean per step (True: the guest's), in lexicographic order with the
    guest before the host: the order of witness ranks."""
    guest = len(scenario.script.steps)
    for places in combinations(range(scenario.steps), guest):
        if scenario.rules.guest_ends_on_source and scenario.steps - 1 in places:
            continue
        chosen = frozenset(places)
        yield tuple(place in chosen for place in range(scenario.steps))


def run(scenario: Scenario, interleaving: tuple[bool, ...]) -> State:
    """The final state of one interleaving, which must be one of `interleavings(scenario)`."""
    state = initial(scenario)
    for is_guest in interleaving:
        after = after_guest(scenario, state) if is_guest else after_host(scenario, state)
        if after is None:
            raise ValueError("no such interleaving")
        state = after
    return state


def enumerate_tally(scenario: Scenario) -> Tally:
    """The tally by running every interleaving from the start: slow, and with nothing shared
    between it and `Space` but the model's steps."""
    total = lost_strict = lost_defined = 0
    for interleaving in interleavings(scenario):
        strict, defined = verdict(scenario, run(scenario, interleaving))
        total += 1
        lost_strict += strict
        lost_defined += defined
    return Tally(total, lost_strict, lost_defined)
