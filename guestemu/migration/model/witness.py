# SPDX-License-Identifier: GPL-2.0-or-later
"""A single losing interleaving: its number, its steps, what it loses and why.

The losing interleavings of a scenario are numbered from 0 in lexicographic order, the guest's step
before the host's. The tallies of a `Space` lead to number K without listing those before it.

A witness holds the steps as records, so that a program for the machine can be made of it: the guest
steps before each host step, the host steps with their pass, STOP, and what is left for the
destination.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from guestemu.abi.errors import InputError
from guestemu.migration.model.count import Space, Tally
from guestemu.migration.model.notation import STOP, format_guest_step
from guestemu.migration.model.order_model import (
    PageVerdict,
    Scenario,
    State,
    after_guest,
    after_host,
    guest_step,
    initial,
    is_final,
    last_token,
    verdict,
)
from guestemu.migration.model.steps import GuestStep, HostStep


class Stop(msgspec.Struct, frozen=True):
    """The guest stops, the final pass runs, the guest resumes on the destination."""


class PassStep(msgspec.Struct, frozen=True):
    """A host step of live pass `number`, counted from 1."""

    step: HostStep
    number: int


class Moment(msgspec.Struct, frozen=True):
    """One step of an interleaving and the model's states around it."""

    step: GuestStep | PassStep | Stop
    before: State
    after: State


class Witness(msgspec.Struct, frozen=True):
    """An interleaving, replayed. `rank` is its number among those that lose by the verdict asked
    for, None if it was given by its steps."""

    scenario: Scenario
    rank: int | None
    moments: tuple[Moment, ...]

    @property
    def verdict(self) -> PageVerdict:
        """Of the whole interleaving."""
        return verdict(self.scenario, self.moments[-1].after)


def losing(tally: Tally, by_defined: bool) -> int:
    """Losing interleavings by `lost_strict`, or by `lost_defined`."""
    return tally.lost_defined if by_defined else tally.lost_strict


def unrank(space: Space, rank: int, by_defined: bool = False) -> Witness:
    """The losing interleaving number `rank`. Raises `InputError` if there is none."""
    scenario = space.scenario
    count = losing(space.tally, by_defined)
    if not 0 <= rank < count:
        name = "lost_defined" if by_defined else "lost_strict"
        there = f"give 0 to {count - 1}" if count else "there is none to show"
        raise InputError(
            f"--witness {rank}: {count} interleavings of order {scenario.order.name} and script "
            f"{scenario.script.name} lose by {name}; {there}"
        )
    state = initial(scenario)
    interleaving = []
    left = rank
    while not is_final(scenario, state):
        guest = after_guest(scenario, state)
        below = losing(space.tally_of(guest), by_defined) if guest is not None else 0
        is_guest = left < below
        if not is_guest:
            left -= below
        after = guest if is_guest else after_host(scenario, state)
        assert after is not None
        interleaving.append(is_guest)
        state = after
    return replay(scenario, tuple(interleaving), rank)


def witnesses(space: Space, by_defined: bool = False) -> Iterator[Witness]:
    """Every losing interleaving, by rank."""
    for rank in range(losing(space.tally, by_defined)):
        yield unrank(space, rank, by_defined)


def replay(scenario: Scenario, interleaving: tuple[bool, ...], rank: int | None = None) -> Witness:
    """Runs an interleaving (True: the guest's step) and keeps every state of it."""
    state = initial(scenario)
    moments = []
    for is_guest in interleaving:
        step = guest_step(scenario, state) if is_guest else _host_step(scenario, state)
        after = after_guest(scenario, state) if is_guest else after_host(scenario, state)
        if step is None or after is None:
            raise ValueError("no such interleaving")
        moments.append(Moment(step, state, after))
        state = after
    return Witness(scenario, rank, tuple(moments))


def _host_step(scenario: Scenario, state: State) -> PassStep | Stop:
    steps = scenario.order.steps
    if state.host == scenario.live_steps:
        return Stop()
    return PassStep(steps[state.host % len(steps)], state.host // len(steps) + 1)


def format_step(step: GuestStep | PassStep | Stop) -> str:
    """One step in the notation of `notation`."""
    if isinstance(step, PassStep):
        return step.step.value
    return STOP if isinstance(step, Stop) else format_guest_step(step)


def format_witness(witness: Witness) -> str:
    """The steps in a line."""
    return " ".join(format_step(moment.step) for moment in witness.moments)


def lost_token(witness: Witness) -> int:
    """The value that the destination should read at the end: the script's last write."""
    return last_token(witness.scenario.script.steps)
