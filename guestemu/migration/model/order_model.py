# SPDX-License-Identifier: GPL-2.0-or-later
"""The order model of G.2: one page, a guest that converts it, a host that migrates it.

Two sequences are merged in every possible way: the guest's script, and the host's live passes
followed by STOP. Each step is atomic. STOP holds the guest, runs one more pass and resumes the
guest on the destination, where it does what is left of its script.

Values are tokens. Source memory holds E_s(t), what a write of t through a private PTE leaves, or t
itself. A private send delivers E_d(t) for E_s(t) and garbage for plain t; a plain send delivers the
bytes as they are, and E_s(t) cannot be read on the destination.

The model is functions over `State`, a flat tuple: hashing and comparing it is what exploration
spends its time on. Where the guest is in its script decides the PTE, and on the source also the
status and the bytes; they are fields all the same, so that a rule reads like the sentence it
models.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

import msgspec

from guestemu.migration.model.rules import Rules
from guestemu.migration.model.steps import (
    SENDS,
    Chunk,
    GuestStep,
    HostStep,
    Order,
    Pte,
    Script,
    StatusHypercall,
    Write,
    perform,
)

LIVE_PASSES: Final = 2
"""Of G.2, before the final one."""

START_TOKEN: Final = 0


class Form(enum.IntEnum):
    """How bytes in DRAM relate to their token."""

    PLAIN = 0
    SOURCE_KEY = 1
    """E_s(t)."""
    DESTINATION_KEY = 2
    """E_d(t)."""
    GARBAGE = 3
    """Nothing that any key reads; also what the destination holds before the first send."""


class Page(NamedTuple):
    """The page's bytes in one machine's DRAM. Garbage has token -1."""

    form: Form
    token: int


NOTHING: Final = Page(Form.GARBAGE, -1)


class State(NamedTuple):
    """The whole model between two steps.

    `guest` and `host` count the steps done; the host's last is STOP. Of the booleans, `is_shared`
    is the guest's PTE, `status_shared` the host's record, `enc_shared` the copy made by E,
    `sent_shared` how the page was last sent (kept only for the rule that reads it). After STOP what
    belonged to the source is set to fixed values.
    """

    guest: int
    host: int
    is_shared: bool
    status_shared: bool
    is_dirty: bool
    in_snapshot: bool
    enc_shared: bool
    sent_shared: bool
    source: Page
    destination: Page
    lost_at_resume: bool


class Scenario(msgspec.Struct, frozen=True):
    """One cell: a guest script against `passes` live passes of a host order, under `rules`."""

    order: Order
    script: Script
    passes: int = LIVE_PASSES
    rules: Rules = Rules()

    @property
    def live_steps(self) -> int:
        """Host steps before STOP."""
        return self.passes * len(self.order.steps)

    @property
    def steps(self) -> int:
        """Steps of every interleaving: the guest's, the host's and STOP."""
        return len(self.script.steps) + self.live_steps + 1


class PageVerdict(NamedTuple):
    """What is wrong with the page after the guest's last step.

    `lost_strict`: it does not read as the last value the guest wrote, whatever flips came after.
    `lost_defined`: that, and the value is still defined: written after the last flip (H.4, 4).
    """

    lost_strict: bool
    lost_defined: bool


def initial(scenario: Scenario) -> State:
    """Private page with the start token, private status, marked dirty."""
    return State(
        guest=0,
        host=0,
        is_shared=False,
        status_shared=False,
        is_dirty=not scenario.rules.starts_clean,
        in_snapshot=False,
        enc_shared=False,
        sent_shared=False,
        source=Page(Form.SOURCE_KEY, START_TOKEN),
        destination=NOTHING,
        lost_at_resume=False,
    )


def is_stopped(scenario: Scenario, state: State) -> bool:
    """Whether the guest is on the destination."""
    return state.host > scenario.live_steps


def is_final(scenario: Scenario, state: State) -> bool:
    """Whether nothing is left to do."""
    return is_stopped(scenario, state) and state.guest == len(scenario.script.steps)


def guest_step(scenario: Scenario, state: State) -> GuestStep | None:
    """The guest's next step, None after its last."""
    steps = scenario.script.steps
    return steps[state.guest] if state.guest < len(steps) else None


def after_guest(scenario: Scenario, state: State) -> State | None:
    """The state after the guest's next step; None if it has none."""
    if state.guest == len(scenario.script.steps):
        return None
    step = scenario.script.steps[state.guest]
    on_source = state.host <= scenario.live_steps
    rules = scenario.rules
    match step:
        case Pte(to_shared):
            is_dirty = state.is_dirty or (on_source and rules.pte_sets_dirty)
            return state._replace(guest=state.guest + 1, is_shared=to_shared, is_dirty=is_dirty)
        case StatusHypercall(to_shared):
            if not on_source:
                return state._replace(guest=state.guest + 1)
            is_dirty = state.is_dirty or rules.hypercall_sets_dirty
            return state._replace(guest=state.guest + 1, status_shared=to_shared, is_dirty=is_dirty)
        case Chunk():
            return state._replace(guest=state.guest + 1)
        case Write(token):
            key = Form.SOURCE_KEY if on_source else Form.DESTINATION_KEY
            page = Page(Form.PLAIN if state.is_shared else key, token)
            if on_source:
                return state._replace(guest=state.guest + 1, source=page, is_dirty=True)
            return state._replace(guest=state.guest + 1, destination=page)


def after_host(scenario: Scenario, state: State) -> State | None:
    """The state after the host's next step, the last of which is STOP; None if it cannot move."""
    live_steps = scenario.live_steps
    if state.host < live_steps:
        steps = scenario.order.steps
        after = _pass_step(scenario.rules, steps[state.host % len(steps)], state)
        return after._replace(host=state.host + 1)
    if state.host > live_steps:
        return None
    if scenario.rules.guest_ends_on_source and state.guest < len(scenario.script.steps):
        return None
    return _stop(scenario, state)


class _Tokens:
    """One page of tokens as a world; `state` is what the steps leave."""

    __slots__ = ("_rules", "state")

    def __init__(self, rules: Rules, state: State) -> None:
        self.state = state
        self._rules = rules

    def fetch(self, clear: bool) -> None:
        """See `World`."""
        state = self.state
        if state.is_dirty:
            self.state = state._replace(in_snapshot=True, is_dirty=not clear)

    def clear(self) -> None:
        """See `World`."""
        if self.state.in_snapshot or self._rules.clear_is_unconditional:
            self.state = self.state._replace(is_dirty=False)

    def copy_status(self) -> None:
        """See `World`."""
        self.state = self.state._replace(enc_shared=self.state.status_shared)

    def send(self, live: bool) -> None:
        """See `World`."""
        state = self.state
        if state.in_snapshot:
            self.state = send(self._rules, state, state.status_shared if live else state.enc_shared)


def _pass_step(rules: Rules, step: HostStep, state: State) -> State:
    """The state after one step of a pass, without counting it."""
    world = _Tokens(rules, state)
    perform(step, world)
    return world.state


def send(rules: Rules, state: State, as_shared: bool) -> State:
    """The state after the page was sent, plain (`as_shared`) or under the transport key."""
    source = state.source
    if as_shared:
        delivered = source
    elif source.form is Form.SOURCE_KEY:
        delivered = Page(Form.DESTINATION_KEY, source.token)
    else:
        delivered = source if rules.plain_survives_private_send else NOTHING
    return state._replace(
        destination=delivered,
        in_snapshot=rules.snapshot_is_kept,
        sent_shared=as_shared and rules.final_resends_changed,
    )


def _stop(scenario: Scenario, state: State) -> State:
    """The guest is stopped, the final pass runs, the guest resumes on the destination."""
    rules = scenario.rules
    after, _ = final_pass(scenario, state)
    is_live = HostStep.ENC not in scenario.order.steps
    synced = after.status_shared if is_live else after.enc_shared
    lost = rules.cut_reads_success and _is_cut(scenario.script.steps, state.guest)
    if rules.compared_at_resume_only or rules.compared_at_resume_too:
        expected = last_token(scenario.script.steps[: state.guest])
        lost = lost or not reads(rules, after, expected)
    return after._replace(
        host=state.host + 1,
        status_shared=False,
        is_dirty=False,
        in_snapshot=False,
        enc_shared=synced and (rules.stale_status_is_lost or rules.lost_only_if_stale),
        sent_shared=False,
        source=NOTHING,
        lost_at_resume=lost,
    )


def _is_cut(steps: tuple[GuestStep, ...], done: int) -> bool:
    """Whether a MapGPA has begun before step `done` and has chunks left there."""
    return 0 < done < len(steps) and (
        isinstance(steps[done - 1], Chunk) and isinstance(steps[done], Chunk | StatusHypercall)
    )


def final_pass(scenario: Scenario, state: State) -> tuple[State, bool | None]:
    """The order's steps once more on a stopped guest: the state after them, and how the page was
    sent last (True: plain), None if it was not."""
    rules = scenario.rules
    sent: bool | None = None
    if rules.final_pass_is_missing:
        return state, sent
    for step in scenario.order.steps:
        if step is HostStep.ENC and rules.final_reuses_status:
            continue
        if rules.final_sends_always and step in SENDS:
            state = state._replace(in_snapshot=True)
        if step in SENDS and state.in_snapshot:
            sent = state.status_shared if step is HostStep.SEND_LIVE else state.enc_shared
        state = _pass_step(rules, step, state)
    if rules.final_resends_changed and state.sent_shared != state.status_shared:
        sent = state.status_shared
        state = send(rules, state, sent)
    return state, sent


def reads(rules: Rules, state: State, token: int) -> bool:
    """Whether the destination's page reads as `token` through the guest's PTE."""
    form, found = state.destination
    if found != token:
        return False
    if state.is_shared:
        return form is Form.PLAIN
    is_source = form is Form.SOURCE_KEY and rules.source_key_is_readable
    return form is Form.DESTINATION_KEY or is_source


def last_token(steps: tuple[GuestStep, ...]) -> int:
    """The token of the last write among `steps`; the start token without one."""
    return next((s.token for s in reversed(steps) if isinstance(s, Write)), START_TOKEN)


def is_defined(scenario: Scenario) -> bool:
    """Whether the script's last value is defined at its end: no flip (by the rule
    `undefined_from_hypercall`: no notification) came after its last write."""
    kind = StatusHypercall if scenario.rules.undefined_from_hypercall else Pte
    now = False
    defined = True
    for step in scenario.script.steps:
        if isinstance(step, Write):
            defined = True
        elif isinstance(step, kind):
            defined = defined and step.to_shared == now
            now = step.to_shared
    return defined


def verdict(scenario: Scenario, state: State) -> PageVerdict:
    """The verdict on a final state."""
    rules = scenario.rules
    lost = not reads(rules, state, last_token(scenario.script.steps))
    if rules.compared_at_resume_only:
        lost = state.lost_at_resume
    lost = lost or state.lost_at_resume
    is_stale = state.enc_shared != state.is_shared
    if rules.stale_status_is_lost:
        lost = lost or is_stale
    if rules.lost_only_if_stale:
        lost = lost and is_stale
    return PageVerdict(lost, lost and is_defined(scenario))
