# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu guests`: what can run on the emulated machine."""

from __future__ import annotations

from typing import Final

from guestemu.cli import console
from guestemu.cli._options import AsJson

GROUP: Final = "Lists"
ORDER: Final = 20


def command(as_json: AsJson = False) -> None:
    """List the guests.

    The names are for --guest and for program headers; those that start with model: are for
    `guestemu dma` only.
    """
    from guestemu.dma.model import models
    from guestemu.guest.registry import guests

    found = guests() + models()
    if as_json:
        console.emit_json({"guests": found})
    else:
        console.emit_table(
            ("guest", "what it is"), [(entry.name, entry.summary) for entry in found]
        )
