# SPDX-License-Identifier: GPL-2.0-or-later
"""Each kind of host, each way to end: one finding, nothing else lost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from guestemu.native import build

sys.path.insert(0, str(Path(__file__).with_name("deaths")))

import ends

_CASES = [(kind, end) for kind in ends.KINDS for end in ends.ENDS[kind]]


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "end"), _CASES)
def test_an_end_is_one_finding_and_the_campaign_goes_on(kind, end, monkeypatch):
    if kind != ends.PYTHON and build.find_compiler() is None:
        pytest.skip("no C compiler")
    row = ends.campaign(kind, end)
    has_end = end not in {"", "Correct"}
    assert row.checks == ["host-failed"] * has_end
    assert row.status == int(has_end)
    assert row.infrastructure == []
    assert row.executions == 1500
