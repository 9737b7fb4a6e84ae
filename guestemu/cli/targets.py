# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu targets`: what can be fuzzed."""

from __future__ import annotations

from typing import Final

from guestemu.cli import console
from guestemu.cli._options import AsJson

GROUP: Final = "Lists"
ORDER: Final = 10


def command(as_json: AsJson = False) -> None:
    """List what can be fuzzed.

    The names are for `guestemu fuzz`.
    """
    from guestemu.campaign.targets import TARGETS

    found = [{"name": target.name, "summary": target.summary} for target in TARGETS.values()]
    if as_json:
        console.emit_json({"targets": found})
    else:
        console.emit_table(("target", "what it is"), [tuple(row.values()) for row in found])
