# SPDX-License-Identifier: GPL-2.0-or-later
"""The heat strip groups tries by function, and a folded cell is the worst of its tries."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from guestemu.migration.sweep.heat import KEPT, LOST, UNDEFINED, Heat, heat_of
from guestemu.report.heat import heat_lines, heat_svg


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


def test_a_bar_is_as_long_as_its_share_and_red_where_pages_are_lost() -> None:
    heats = [Heat("memset<>", KEPT * 3 + LOST * 3), Heat("walk", KEPT * 12)]
    picture = ElementTree.fromstring(heat_svg(heats, "heat"))
    whole, half = (float(rect.get("width", "")) for rect in picture.findall("rect[@class='rail']"))
    assert half == 2 * whole
    (lost,) = [rect for rect in picture.findall("rect[@class='lost']") if len(rect)]
    assert float(lost.get("width", "")) == whole / 2
    assert lost.findtext("title") == "memset<>, tries 3 to 5: lost"
    assert picture.findtext("title") == "18 tries in 2 functions, 3 lost"
    assert picture.findtext("desc", "").startswith("memset<>: 3 kept, 3 lost. walk: 12 kept.")
