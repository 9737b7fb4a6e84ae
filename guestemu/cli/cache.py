# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu cache`: what guestemu keeps in the user's cache, and taking it away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from guestemu.cli import console
from guestemu.cli._options import AsJson
from guestemu.cli.errors import EXIT_OK

if TYPE_CHECKING:
    from guestemu.cli._cache import CacheEntry

GROUP: Final = "Lists"
ORDER: Final = 30

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def command(context: typer.Context, as_json: AsJson = False) -> int:
    """Show what is cached, or clear it.

    Fetched kernels, prepared kernels (booted once, resumed from then on), package lists. All of it
    can be fetched or computed again.

    For example:

      guestemu cache

      guestemu cache clear

      guestemu cache clear prepared
    """
    from guestemu.cli._cache import cached, root

    if context.invoked_subcommand is not None:
        return EXIT_OK
    entries = cached()
    if as_json:
        console.emit_json({"directory": str(root()), "entries": entries, "bytes": _sum(entries)})
        return EXIT_OK
    console.emit_table(
        ("name", "files", "MiB", "what it is"),
        [(one.name, one.files, f"{one.bytes / 2**20:.1f}", one.about) for one in entries],
    )
    console.emit(f"{root()}: {_sum(entries) / 2**20:.1f} MiB; guestemu cache clear removes it")
    return EXIT_OK


@app.command()
def clear(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Only these, such as prepared; default: all."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Delete what is cached.

    For example:

      guestemu cache clear

      guestemu cache clear kernels prepared
    """
    from guestemu.cli._cache import remove

    removed = remove(names or ())
    if as_json:
        console.emit_json({"removed": removed, "bytes": _sum(removed)})
        return
    for one in removed:
        console.emit(f"{one.name}: {one.bytes / 2**20:.1f} MiB removed")
    if not removed:
        console.emit("nothing is cached")


def _sum(entries: tuple[CacheEntry, ...]) -> int:
    return sum(entry.bytes for entry in entries)
