# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu fuzz`: a campaign."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guestemu.cli import console
from guestemu.cli._options import AsJson, CBit, GuestName, HostName
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_OK

if TYPE_CHECKING:
    from guestemu.campaign.campaign import Campaign
    from guestemu.campaign.figures import Figures


def command(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="One of `guestemu targets`.")],
    seconds: Annotated[
        float | None, typer.Option("--time", metavar="S", help="End after S seconds.")
    ] = None,
    execs: Annotated[
        int | None, typer.Option("--execs", metavar="N", help="End after N executions.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", help="Worker processes.")] = 1,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine", metavar="NAME", help="atheris (default where it is installed) or random."
        ),
    ] = None,
    workdir: Annotated[
        Path | None,
        typer.Option(
            "--workdir",
            metavar="DIR",
            help="Where corpus, findings and figures go (default guestemu-work/TARGET).",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the campaign in the work directory.")
    ] = False,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            metavar="N",
            min=0,
            help="Random numbers; with --execs and --engine random all is repeatable.",
        ),
    ] = 0,
    faults: Annotated[
        bool,
        typer.Option(
            "--faults",
            help="Also inject failures and call as no good caller would. Guests up to 6.12 have "
            "known defects there, so expect findings on any host.",
        ),
    ] = False,
    host: HostName = None,
    guest: GuestName = None,
    cbit: CBit = None,
    as_json: AsJson = False,
) -> int:
    """Look for programs that break a rule, until --time, --execs or Ctrl-C.

    Each finding is minimised and saved as WORKDIR/findings/KEY.prog, which `guestemu run` runs.

    Exit status 0: nothing found; 1: findings.

    For example:

      guestemu fuzz hypercall --time 60

      guestemu fuzz conversion --host my_host.py:MyHost --execs 100000 --engine random --seed 1

      guestemu fuzz msr --jobs 2 --workdir /tmp/msr --resume
    """
    from guestemu.campaign.campaign import Options, prepare
    from guestemu.campaign.screen import Screen

    options = Options(
        target=target,
        seconds=seconds,
        execs=execs,
        jobs=jobs,
        engine=engine,
        workdir=workdir,
        resume=resume,
        seed=seed,
        host=host,
        guest=guest,
        cbit=cbit,
        faults=faults,
    )
    campaign = prepare(options)
    for line in campaign.notes:
        console.note(line)
    title = f"fuzz {target}, {campaign.engine}"
    with Screen(title, console.notes(), console.is_live()) as screen:
        figures = campaign.run(screen.show)
    if as_json:
        console.emit_json(_object(campaign, figures))
    else:
        _tell(campaign, figures)
    if figures.is_interrupted:
        raise KeyboardInterrupt
    return EXIT_FINDINGS if figures.findings else EXIT_OK


def _object(campaign: Campaign, figures: Figures) -> dict[str, object]:
    return {
        "target": campaign.target.name,
        "engine": campaign.engine,
        "executions": figures.executions,
        "execs_per_second": figures.execs_per_second,
        "seconds": figures.seconds,
        "findings": [
            {
                "key": found.key,
                "check": found.check,
                "program": str(campaign.store.finding_path(found.key)),
                "first_seen_s": found.first_seen_s,
                "count": found.count,
            }
            for found in figures.findings
        ],
        "corpus_size": figures.corpus_size,
        "coverage": {
            "guest_blocks": figures.guest_blocks,
            "model_states": figures.model_states,
        },
        "median_ops": figures.median_ops,
        "infrastructure": figures.infrastructure,
        "unstable": figures.unstable,
        "interrupted": figures.is_interrupted,
    }


def _tell(campaign: Campaign, figures: Figures) -> None:
    from guestemu.campaign.screen import duration, status_line

    console.emit(status_line(figures))
    if figures.executions:
        console.emit(
            f"{figures.median_ops} ops per program (median); last new coverage after "
            f"{duration(figures.last_new_s)}; work directory {campaign.store.root}"
        )
    for line in figures.infrastructure:
        console.emit(console.paint(f"infrastructure: {line}", "yellow"))
    for line in figures.unstable:
        console.emit(console.paint(f"not reproducible: {line}", "yellow"))
    if not figures.findings:
        console.emit(console.paint("nothing found", "green"))
        return
    console.emit()
    console.emit_table(
        ("finding", "count", "first after", "program"),
        (
            (
                found.key,
                f"{found.count:,}",
                duration(found.first_seen_s),
                campaign.store.finding_path(found.key),
            )
            for found in figures.findings
        ),
    )
