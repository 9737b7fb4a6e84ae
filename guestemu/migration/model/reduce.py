# SPDX-License-Identifier: GPL-2.0-or-later
"""The same verdicts from fewer states: partial-order reduction.

Two steps, the guest's next and the host's next, are independent in a state if both orders lead to
the same state. (Neither can disable the other.) So a PTE flip is independent of every host step,
since no host step reads the PTE; a hypercall of every step but E, L and STOP; a write of E, of a
GET that finds the page in the snapshot already, of a CLEAR or send that finds it not there. Here
this is not a list by hand but tested in each state by running both orders, so it also holds for a
user's own orders and rules.

Interleavings that differ only in the order of independent neighbours end in the same state, so one
of them is enough. Two reductions use this (Godefroid, LNCS 1032, chapters 4 and 5):

- Persistent steps. A step of one side that is independent of everything the other side can do
  before it is taken alone; nothing is lost by not trying the other side first. Checked by running
  the other side to its end.
- Sleep. Where both sides must be tried, the guest's step first and then the host's, the second
  branch does not try the guest's step again until the host has made a step that depends on it: that
  was covered by the first branch. If the host ends before, the branch is dropped.

Only states with two branches are kept; between them the model just runs. Two of them that differ
only in what the destination holds, and in which the page is certain to be sent again, count as one.
Every final state is reached, and so every verdict, but not how many interleavings lead to each:
that is what `count` is for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import msgspec

from guestemu.migration.model.order_model import (
    NOTHING,
    Scenario,
    State,
    after_guest,
    after_host,
    initial,
    is_final,
    verdict,
)
from guestemu.migration.model.steps import SENDS, HostStep

_Move: TypeAlias = Callable[[Scenario, State], State | None]

_FETCHES: Final = frozenset({HostStep.AUTO_CLEAR, HostStep.GET})


class Reduction(msgspec.Struct, frozen=True):
    """What the reduced exploration found.

    `states` were kept, `steps` is how often the model was stepped, including the tests for
    independence; `ends` is the number of different final states. The verdicts: whether any
    interleaving loses.
    """

    states: int
    steps: int
    ends: int
    lost_strict: bool
    lost_defined: bool


class ReducedSearch:
    """A depth-first search; see the module's docstring."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.kept: set[State] = set()
        self.steps = 0
        self.ends: set[State] = set()
        self._todo = [initial(scenario)]

    def run(self) -> None:
        """Explores everything."""
        while self._todo:
            self._from(self._todo.pop())

    def _move(self, move: _Move, state: State) -> State | None:
        self.steps += 1
        return move(self.scenario, state)

    def _from(self, state: State) -> None:
        """Runs on from `state`, in which no step sleeps, to its next branch or the end."""
        while True:
            guest = self._move(after_guest, state)
            host = self._move(after_host, state)
            if guest is None and host is None:
                self._end(state)
                return
            if guest is None or (host is not None and self._is_persistent(state, after_host)):
                assert host is not None
                state = host
            elif host is None or self._is_persistent(state, after_guest):
                state = guest
            else:
                self._branch(state, guest)
                return

    def _end(self, state: State) -> None:
        if is_final(self.scenario, state):
            self.ends.add(state)

    def _branch(self, state: State, guest: State) -> None:
        key = state
        if _is_overwritten(self.scenario, state):
            key = state._replace(destination=NOTHING, sent_shared=False)
        if key in self.kept:
            return
        self.kept.add(key)
        self._todo.append(guest)
        woken = self._sleep(state)
        if woken is not None:
            self._todo.append(woken)

    def _sleep(self, state: State) -> State | None:
        """The host runs from `state` while the guest's next step sleeps: the state after the first
        host step that depends on it, None if there is none."""
        while True:
            host = self._move(after_host, state)
            if host is None:
                return None
            if not self._are_independent(state, host):
                return host
            state = host

    def _are_independent(self, state: State, host: State) -> bool:
        guest = self._move(after_guest, state)
        if guest is None:
            return False
        return self._move(after_guest, host) == self._move(after_host, guest)

    def _is_persistent(self, state: State, mine: _Move) -> bool:
        """Whether the step `mine` is independent of all that the other side can do before it."""
        other: _Move = after_guest if mine is after_host else after_host
        here = self._move(mine, state)
        while True:
            after = self._move(other, state)
            if after is None:
                return True
            both = self._move(mine, after)
            if here is None or both is None or self._move(other, here) != both:
                return False
            state, here = after, both


def _is_overwritten(scenario: Scenario, state: State) -> bool:
    """Whether what the destination holds is certain to be sent again, and so makes no difference.

    A page in the snapshot leaves it by a send only. A dirty page gets into the snapshot, at the
    latest in the final pass, if the order fetches before it sends.
    """
    rules = scenario.rules
    if rules.final_pass_is_missing or state.host > scenario.live_steps:
        return False
    if state.in_snapshot:
        return True
    steps = scenario.order.steps
    fetch = next((i for i, step in enumerate(steps) if step in _FETCHES), len(steps))
    fetches_first = any(step in SENDS for step in steps[fetch:])
    return state.is_dirty and fetches_first and not rules.clear_is_unconditional


def reduce(scenario: Scenario) -> Reduction:
    """Explores `scenario` with partial-order reduction."""
    search = ReducedSearch(scenario)
    search.run()
    verdicts = [verdict(scenario, end) for end in search.ends]
    return Reduction(
        states=len(search.kept),
        steps=search.steps,
        ends=len(search.ends),
        lost_strict=any(found.lost_strict for found in verdicts),
        lost_defined=any(found.lost_defined for found in verdicts),
    )
