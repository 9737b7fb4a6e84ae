# SPDX-License-Identifier: GPL-2.0-or-later
"""New programs and changed ones: the kind that pays gets the larger share."""

from __future__ import annotations

import random

import pytest

from guestemu.campaign.shares import ALL, LEAST, MOST, OPENING, Shares


def share_after(inputs: int, pays: dict[bool, float]) -> float:
    """The share of new programs after so many inputs, which pay by kind with these chances."""
    rng = random.Random(1)
    shares = Shares()
    for _ in range(inputs):
        is_new = rng.randrange(ALL) < shares.fresh_below
        shares.note(is_new)
        if rng.random() < pays[is_new]:
            shares.gain()
    return shares.fresh_below / ALL


def test_a_campaign_begins_with_new_programs() -> None:
    shares = Shares()
    for _ in range(OPENING):
        assert shares.fresh_below == ALL
        shares.note(True)
    assert shares.fresh_below <= MOST


@pytest.mark.parametrize(
    ("new", "changed", "least", "most"),
    [
        (0.5, 0.01, MOST / ALL, 1),
        (0.001, 0.2, 0, 0.05),
        (0, 0, 0.4, MOST / ALL),
    ],
)
def test_what_pays_gets_the_larger_share(new, changed, least, most) -> None:
    assert least <= share_after(20_000, {True: new, False: changed}) <= most


def test_what_no_longer_pays_loses_its_share() -> None:
    rng = random.Random(1)
    shares = Shares()
    for count in range(40_000):
        is_new = rng.randrange(ALL) < shares.fresh_below
        shares.note(is_new)
        if is_new == (count < 4_000) and not count % 5:
            shares.gain()
    assert shares.fresh_below < ALL // 8


def test_no_kind_ever_stops() -> None:
    assert share_after(20_000, {True: 0, False: 1}) == LEAST / ALL
    assert share_after(20_000, {True: 1, False: 0}) == MOST / ALL


def test_inputs_that_were_not_made_here_count_for_none() -> None:
    shares = Shares()
    for _ in range(1000):
        shares.gain()
    for count in range(OPENING):
        shares.note(count % 2 == 0)
    assert ALL // 3 < shares.fresh_below <= MOST
