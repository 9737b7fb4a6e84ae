# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu explain`: what an id, an op, a check or a finding's key stands for."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from guestemu.cli import _names as names
from guestemu.cli import console
from guestemu.cli._options import AsJson

GROUP: Final = "Start"
ORDER: Final = 60


def command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="ID",
            help="Such as K3-c, 'H.4 item 1', an op, a check.",
            show_default=False,
            autocompletion=names.ids,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Explain a fact, an op, a check or a finding's key.

    A fact is an item of docs/facts: its text, what it was read from, and the places in guestemu and
    its documentation that rest on it. For an op: its arguments. For a check, or a key such as
    status-5d2f1a90 that starts with its name: the property, and why it matters.

    For example:

      guestemu explain A26c

      guestemu explain H.4 item 1

      guestemu explain set_memory_decrypted

      guestemu explain free-pages --json
    """
    from guestemu.cli._explain import document, explanation

    found = explanation(" ".join(words))
    if as_json:
        console.emit_json(found)
        return
    console.emit_document(document(found))
