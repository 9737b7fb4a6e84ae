# SPDX-License-Identifier: GPL-2.0-or-later
"""A conversion takes a short way through the rooms."""

from __future__ import annotations

import crossings

MOST = 17
"""Calls of one conversion that enter another room; docs/architecture.md has the figure. Only
falls."""


def test_a_conversion_enters_few_rooms() -> None:
    calls = crossings.follow()
    assert calls[0].path == "runner/testbed.py"
    assert {"guest", "machine", "host", "checks"} <= {call.path.split("/")[0] for call in calls}
    entered = [f"{call.path}: {call.name}" for call in calls if call.enters]
    assert len(entered) <= MOST, "\n".join(entered)
