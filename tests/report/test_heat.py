# SPDX-License-Identifier: GPL-2.0-or-later
"""The heat strip groups tries by function, and a folded cell is the worst of its tries."""

from __future__ import annotations

from guestemu.migration.sweep.heat import KEPT, LOST, UNDEFINED, Heat, heat_of
from guestemu.report.heat import heat_lines


def test_functions_in_the_order_in_which_they_come_first() -> None:
    tries = [("a", KEPT), ("b", LOST), ("a", UNDEFINED)]
    assert heat_of(tries) == (Heat("a", KEPT + UNDEFINED), Heat("b", LOST))


def test_one_lost_try_among_thousands_is_seen() -> None:
    places = KEPT * 5000 + LOST + KEPT * 5000
    line, legend = (one.text for one in heat_lines([Heat("x" * 60, places)], is_ascii=True))
    assert line.count("#") == 1
    assert line.count(".") == 33 + len("..")
    assert len(line) <= 80
    assert legend == ". kept  u undefined bytes differ  # lost"
