# SPDX-License-Identifier: GPL-2.0-or-later
"""Small scripts, orders and rules for the explorer's properties."""

from __future__ import annotations

from hypothesis import strategies as st

from guestemu.migration.model.order_model import Scenario
from guestemu.migration.model.rules import Rules
from guestemu.migration.model.steps import (
    SENDS,
    GuestStep,
    HostStep,
    Order,
    Pte,
    Script,
    StatusHypercall,
    Write,
)

_guest_steps: st.SearchStrategy[GuestStep] = st.one_of(
    st.builds(Pte, st.booleans()),
    st.builds(StatusHypercall, st.booleans()),
    st.builds(Write, st.integers(0, 2)),
)
scripts = st.lists(_guest_steps, min_size=1, max_size=4).map(
    lambda steps: Script("random", tuple(steps))
)
orders = (
    st.lists(st.sampled_from(HostStep), min_size=1, max_size=4)
    .filter(lambda steps: not SENDS.isdisjoint(steps))
    .map(lambda steps: Order("random", tuple(steps)))
)
rules = st.sets(st.sampled_from(Rules.__struct_fields__), max_size=3).map(
    lambda names: Rules(**dict.fromkeys(names, True))
)


def scenarios() -> st.SearchStrategy[Scenario]:
    return st.builds(Scenario, orders, scripts, st.integers(1, 2), rules)
