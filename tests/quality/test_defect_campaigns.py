# SPDX-License-Identifier: GPL-2.0-or-later
"""Campaigns on hosts with one defect find it once, on hosts with two both, and name no other line.

A sample of short ones here; all of `defects.py` in the soak, as table.py runs them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).with_name("defects")))

import defects
import table

SAMPLE = (("align-2k",), ("table-gap",))
SHORT = 6_000
ALL = [(name,) for name in defects.DEFECTS] + list(defects.PAIRS)


def found_in(names: tuple[str, ...], seed: int) -> list[list[object]]:
    ((_, _, directory),) = table.run([(names, seed)])
    _, found, _, _ = json.loads((directory / "result.json").read_text())
    return found


@pytest.fixture(autouse=True)
def in_one_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(table.tempfile, "tempdir", str(tmp_path))


@pytest.mark.parametrize("names", SAMPLE, ids="+".join)
def test_a_short_campaign_finds_a_defect_once(names, monkeypatch):
    monkeypatch.setattr(table, "EXECS", SHORT)
    (finding,) = found_in(names, 1)
    assert not finding[2]


@pytest.mark.soak
@pytest.mark.parametrize("names", ALL, ids="+".join)
def test_campaigns_find_each_defect_once_in_two_of_three_seeds(names):
    seen = [found_in(names, seed) for seed in (1, 2, 3)]
    assert sum(len(found) == len(names) for found in seen) >= 2
    assert all(len(found) <= len(names) for found in seen)
    assert not any(finding[2] for found in seen for finding in found)
