# SPDX-License-Identifier: GPL-2.0-or-later
"""How many interleavings lose the page: exactly, over states.

Interleavings that lead to the same state continue alike, so the space is a graph in layers: layer
k holds the states after k steps. Counting backwards, each state's tally is the sum of its
successors'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
