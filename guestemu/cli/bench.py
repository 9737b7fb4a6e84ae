# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu bench`: the benchmark suite."""

from __future__ import annotations

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
    show_list: Annotated[bool, typer.Option("--list", help="List the figures and end.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure speed beside a floor in C and beside peers.

    RATIO says how many times the floor's time is taken. Floors in C need a C compiler (cc, gcc or
    clang), campaigns need atheris; without them their cells stay empty.

    For example:

      guestemu bench

      guestemu bench --only execution --only hypercall-loop --json
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
    figures = list(suite.run(only or [], rounds, progress=console.note))
    if json:
        console.emit_json({"figures": figures})
        return
    console.emit_table(("NAME", "VALUE", "UNIT", "FLOOR", "RATIO", "AGAINST"), map(_row, figures))


def _row(figure: Figure) -> tuple[str, ...]:
    return (
        figure.name,
        _number(figure.value),
        figure.unit,
        _number(figure.floor),
        "" if figure.ratio is None else f"{figure.ratio:.2f}",
        f"{figure.against} ({figure.note})" if figure.note else figure.against,
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"
