# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu` without a verb: its own options."""

from __future__ import annotations

from typing import Annotated

import typer

from guestemu import __version__
from guestemu.cli import console


def _show_version(value: bool) -> None:
    if value:
        console.emit(f"guestemu {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Run, fuzz and replay page-encryption conversions without SEV hardware."""
