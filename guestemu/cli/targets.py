# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu targets`: what can be fuzzed."""

from __future__ import annotations

from guestemu.cli import console
from guestemu.cli._options import AsJson


def command(as_json: AsJson = False) -> None:
    """List the targets of `guestemu fuzz`."""
    from guestemu.campaign.targets import TARGETS

    found = [{"name": target.name, "summary": target.summary} for target in TARGETS.values()]
    if as_json:
        console.emit_json({"targets": found})
    else:
        console.emit_table(("target", "what it is"), [tuple(row.values()) for row in found])
