# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu demo`: what guestemu does, in three acts."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import typer

from guestemu.cli._duration import parse_duration

GROUP: Final = "Start"
ORDER: Final = 10
DEFAULT_SECONDS: Final = 10.0


def command(
    seconds: Annotated[
        float,
        typer.Option(
            "--time",
            metavar="DURATION",
            help="How long the campaign of act 2 searches.",
            parser=parse_duration,
        ),
    ] = DEFAULT_SECONDS,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="DIR", help="Keep the files of the acts in DIR."),
    ] = None,
    fetch: Annotated[
        bool,
        typer.Option("--fetch/--no-fetch", help="Fetch a kernel for act 3 if there is none."),
    ] = True,
) -> int:
    """Three acts: a lost page, a bug found, a real kernel.

    Each act runs commands that it prints. Act 3 needs a kernel image; it is skipped if none was
    fetched and none can be.

    Exit status 0: every act went as expected; 1: one did not.

    For example:

      guestemu demo

      guestemu demo --time 5s --keep tried
    """
    from guestemu.cli._demo import play

    with ExitStack() as stack:
        if keep is None:
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="guestemu-demo-")))
        else:
            keep.mkdir(parents=True, exist_ok=True)
            directory = keep
        return play(seconds, fetch, directory)
