# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu bench`: the benchmark suite."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from guestemu.abi.errors import InputError
from guestemu.cli import console

if TYPE_CHECKING:
    from guestemu.bench.figure import Figure

GROUP: Final = "Study"
ORDER: Final = 40


def command(
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Measure this figure; may be repeated."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds; each figure is the median of them.")] = 7,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="DIR",
            help="Also measure the checkout in DIR, in turns with this one.",
            show_default=False,
        ),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the figures and end.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure speed beside a floor in C and beside peers.

    RATIO is the measured time divided by the floor's. Floors in C need a C compiler (cc, gcc or
    clang), campaigns need atheris; without them their cells stay empty. With --against it is
    divided by the other checkout's time: below 1 is faster.

    For example:

      guestemu bench

      guestemu bench --only execution --only hypercall-loop --json

      guestemu bench --only programs --against ../guestemu-before
    """
    from guestemu.bench import suite

    if rounds < 1:
        raise InputError(f"--rounds {rounds}: give at least 1")
    if show_list:
        entries = suite.entries()
        if json:
            console.emit_json({"benchmarks": entries}, "list")
        else:
            console.emit_table(("NAME", "MEASURES"), ((e.name, e.summary) for e in entries))
        return
    if against is not None:
        _compare(against, only or [], rounds, json)
        return
    figures = list(suite.run(only or [], rounds, progress=console.note))
    if json:
        console.emit_json({"figures": figures})
        return
    console.emit_table(("NAME", "VALUE", "UNIT", "FLOOR", "RATIO", "AGAINST"), map(_row, figures))


def _compare(directory: Path, names: list[str], rounds: int, json: bool) -> None:
    """Prints the figures of this checkout beside those of the one in `directory`."""
    import guestemu
    from guestemu.bench.against import compare, find_checkout

    own = Path(guestemu.__file__).parent.parent
    found = list(compare(own, find_checkout(directory), names, rounds, console.note))
    if json:
        console.emit_json({"comparisons": found}, "against")
        return
    rows = (
        (one.name, _number(one.value), one.unit, _number(one.other), _ratio(one.ratio))
        for one in found
    )
    console.emit_table(("NAME", "HERE", "UNIT", "THERE", "RATIO"), rows)


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _row(figure: Figure) -> tuple[str, ...]:
    return (
        figure.name,
        _number(figure.value),
        figure.unit,
        _number(figure.floor),
        _ratio(figure.ratio),
        f"{figure.against} ({figure.note})" if figure.note else figure.against,
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"
