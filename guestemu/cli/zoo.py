# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu zoo`: known bugs, planted one at a time, and the campaigns that must find them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import msgspec
import typer

from guestemu.abi.files import write_atomically
from guestemu.cli import _names as names
from guestemu.cli import console
from guestemu.cli._duration import parse_duration
from guestemu.cli._options import AsJson, Html
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_OK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guestemu.campaign.planted.bug import ZooBug
    from guestemu.campaign.planted.cell import CellResult, HuntCell
    from guestemu.report.document import Document

GROUP: Final = "Study"
ORDER: Final = 30
RENAMED: Final = {"--seeds": "--campaigns"}

app = typer.Typer(
    help="Plant known bugs, and measure how campaigns find them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Ids: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[ID]...",
        help="Bugs such as M6; default: all.",
        show_default=False,
        autocompletion=names.bugs,
    ),
]
Repaired: TypeAlias = Annotated[
    bool, typer.Option("--repaired", help="The configurations without a bug instead.")
]


class BugFigures(msgspec.Struct, frozen=True):
    """One bug in `--json` output: `found` in most campaigns; medians over the seeds."""

    id: str
    found: bool
    execs: int
    seconds: float
    seeds: int
    check: str


@app.command("list")
def list_bugs(ids: Ids = None, repaired: Repaired = False, as_json: AsJson = False) -> int:
    """Show the planted bugs, or with --repaired the configurations without any.

    For example:

      guestemu zoo list

      guestemu zoo list M31 M39 --json

      guestemu zoo list --repaired
    """
    from guestemu.campaign.planted.catalogue import find_bugs, repaired_configurations

    bugs = find_bugs(ids or ())
    if repaired:
        twins = repaired_configurations(bugs)
        if as_json:
            console.emit_json(
                {
                    "repaired": [
                        {
                            "target": twin.target,
                            "configuration": twin.configuration.name,
                            "bugs": twin.bugs,
                        }
                        for twin in twins
                    ]
                },
                "repaired",
            )
        else:
            console.emit_table(
                ("TARGET", "CONFIGURATION", "TWIN OF"),
                [(twin.target, twin.configuration.name, ", ".join(twin.bugs)) for twin in twins],
            )
        return EXIT_OK
    if as_json:
        fields = ("id", "title", "facts", "where", "target", "check")
        console.emit_json({"bugs": [{name: getattr(bug, name) for name in fields} for bug in bugs]})
    else:
        console.emit_table(
            ("BUG", "TARGET", "CHECK", "WHAT IS WRONG"),
            [(bug.id, bug.target, bug.check, bug.title) for bug in bugs],
        )
    return EXIT_OK


@app.command()
def run(
    ids: Ids = None,
    repaired: Repaired = False,
    seeds: Annotated[
        int,
        typer.Option("--campaigns", metavar="N", min=1, help="Campaigns of each, seeds 1 to N."),
    ] = 5,
    execs: Annotated[
        int | None,
        typer.Option("--execs", metavar="N", min=1, help="Budget of a campaign."),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--time",
            metavar="DURATION",
            help="Budget of a campaign: 90, 90s, 10m, 1h.",
            parser=parse_duration,
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="atheris, random or blind.")
    ] = "atheris",
    no_feedback: Annotated[
        bool,
        typer.Option(
            "--no-feedback", help="Plain atheris: its own coverage and mutator, not ours."
        ),
    ] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", metavar="N", min=1, help="Campaigns at a time.")
    ] = 1,
    results: Annotated[
        Path | None,
        typer.Option(
            "--results",
            metavar="FILE",
            help="Append results to FILE and skip campaigns that it has.",
        ),
    ] = None,
    html: Html = None,
    as_json: AsJson = False,
) -> int:
    """Run a campaign against each planted bug until its check fails.

    A campaign has 200000 executions where neither --execs nor --time says otherwise. Once more
    than half of a bug's seeds found nothing, its median is known and the others are left out. With
    --repaired any violation is a false positive.

    Exit status 0: every bug found in most campaigns, or no false positive; 1 otherwise.

    For example:

      guestemu zoo run M6 M31 --campaigns 1

      guestemu zoo run --results zoo.jsonl --jobs 2 --html zoo.html

      guestemu zoo run --repaired --time 10m --campaigns 1
    """
    from guestemu.campaign.engines import choose_engine
    from guestemu.campaign.planted.catalogue import find_bugs
    from guestemu.campaign.planted.cell import OURS, PLAIN
    from guestemu.campaign.planted.results import read_results
    from guestemu.campaign.planted.runner import plan_cells

    bugs = find_bugs(ids or ())
    choose_engine(engine)
    if engine not in {"atheris", "random", "blind"} or (no_feedback and engine != "atheris"):
        wanted = "atheris" if no_feedback else "atheris, random or blind"
        raise typer.BadParameter(f"--engine {engine}: the zoo runs with {wanted}")
    cells = plan_cells(
        bugs,
        is_repaired=repaired,
        engine=engine,
        arm=PLAIN if no_feedback else OURS,
        seeds=range(1, seeds + 1),
        execs=200_000 if execs is None and seconds is None else execs,
        seconds=seconds,
    )
    known = [] if results is None else read_results(results)
    gathered, is_interrupted = _gather(cells, known, jobs, seeds, results)
    if html is not None:
        from guestemu.campaign.planted.tried import zoo_document

        console.write_document(html, zoo_document(bugs, gathered))
    status = _tell(bugs, gathered, repaired, as_json)
    if is_interrupted:
        raise KeyboardInterrupt
    return status


def _gather(
    cells: list[HuntCell], known: list[CellResult], jobs: int, seeds: int, path: Path | None
) -> tuple[list[CellResult], bool]:
    """Runs what `known` does not answer and adds it to the file `path`; all results of `cells`,
    and whether the user stopped it."""
    from guestemu.abi.json_lines import append_json_line
    from guestemu.campaign.planted.runner import is_covered, is_settled, run_cells
    from guestemu.cli._step_progress import StepProgress

    by_key = {one.cell.key: one for one in known}
    gathered: list[CellResult] = []
    missing: list[HuntCell] = []
    for cell in cells:
        result = by_key.get(cell.key)
        if result is not None and is_covered(cell, result):
            gathered.append(result)
        else:
            missing.append(cell)
    with StepProgress(len(missing)) as progress:

        def done(result: CellResult) -> None:
            gathered.append(result)
            if path is not None:
                append_json_line(path, result)
            progress.advance()

        def is_needless(cell: HuntCell) -> bool:
            settled = is_settled(cell, gathered, seeds)
            if settled:
                progress.advance()
            return settled

        try:
            run_cells(missing, jobs, done, is_needless)
        except KeyboardInterrupt:
            return gathered, True
    return gathered, False


def _tell(
    bugs: tuple[ZooBug, ...], gathered: list[CellResult], repaired: bool, as_json: bool
) -> int:
    """Prints what was found; the exit status."""
    from guestemu.campaign.planted.results import median_of

    figures: list[BugFigures] = []
    for bug in bugs:
        median = median_of(one for one in gathered if one.cell.bug == bug.id and one.cell.planted)
        if median is not None:
            figures.append(
                BugFigures(
                    bug.id,
                    not median.is_bound,
                    median.execs,
                    median.seconds,
                    median.seeds,
                    bug.check,
                )
            )
    wrong = [one for one in gathered if not one.cell.planted and one.found]
    if as_json:
        console.emit_json({"bugs": figures, "false_positives": len(wrong)})
    elif repaired:
        twins = [one for one in gathered if not one.cell.planted]
        console.emit_document(_false_positives(wrong, sum(one.executions for one in twins)))
    else:
        console.emit_table(
            ("BUG", "CHECK", "FOUND", "EXECUTIONS", "SECONDS"),
            [
                (one.id, one.check, "yes" if one.found else "no", one.execs, f"{one.seconds:.2f}")
                for one in figures
            ],
        )
    is_fine = not wrong and all(one.found for one in figures)
    return EXIT_OK if is_fine else EXIT_FINDINGS


def _false_positives(wrong: Sequence[CellResult], executions: int) -> Document:
    """What repaired hosts were found guilty of, with the programs."""
    from guestemu.report.document import Code, Document, Item

    items = (
        Item(
            f"{one.cell.bug} repaired: {one.check}: {one.message}",
            (Code("\n".join(one.program)),),
            indent=4,
        )
        for one in wrong
    )
    title = f"{len(wrong)} false positives in {executions} executions"
    return Document(title, lead=tuple(items))


@app.command()
def table(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="Files that `zoo run` wrote.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", metavar="FILE", help="Write FILE instead of stdout.")
    ] = None,
    html: Html = None,
) -> int:
    """Write the page of the zoo (docs/zoo.md) from results.

    If -o names a page that exists, its figures stay for bugs and configurations that the results
    do not have.

    For example:

      guestemu zoo table zoo.jsonl -o docs/zoo.md

      guestemu zoo table zoo.jsonl -o docs/zoo.md --html zoo.html
    """
    from guestemu.abi.errors import InputError
    from guestemu.campaign.planted.catalogue import BUGS
    from guestemu.campaign.planted.results import read_results
    from guestemu.campaign.planted.table import zoo_page

    for path in results:
        if not path.is_file():
            raise InputError(f"{path}: no such file; guestemu zoo run --results {path} makes it")
    found = [one for path in results for one in read_results(path)]
    if html is not None:
        from guestemu.campaign.planted.tried import zoo_document

        console.write_document(html, zoo_document(tuple(BUGS.values()), found))
    earlier = ""
    if output is not None and output.is_file():
        earlier = output.read_text(encoding="utf-8", errors="replace")
    page = zoo_page(tuple(BUGS.values()), found, earlier)
    if output is None:
        console.emit_text(page)
    else:
        write_atomically(output, page.encode(), "-o")
    return EXIT_OK
