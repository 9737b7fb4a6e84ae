# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of `guestemu fuzz`, and the summary that it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from guestemu.abi.errors import InputError
from guestemu.abi.files import read_regular
from guestemu.abi.names import command_line
from guestemu.cli import _names as names
from guestemu.cli import console
from guestemu.cli._duration import parse_duration
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_OK

if TYPE_CHECKING:
    from guestemu.campaign.campaign import Campaign
    from guestemu.campaign.figures import Figures

TargetName: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="One of `guestemu targets`.",
        show_default=False,
        autocompletion=names.targets,
    ),
]
Seconds: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--time",
        metavar="DURATION",
        help="End after this time: 90, 90s, 10m, 1h.",
        parser=parse_duration,
    ),
]
Executions: TypeAlias = Annotated[
    int | None, typer.Option("--execs", metavar="N", help="End after N executions.")
]
UntilFinding: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--until-finding",
        metavar="[N]",
        help="End at the first new finding, or at the N-th, as soon as it is saved.",
    ),
]
Jobs: TypeAlias = Annotated[int, typer.Option("--jobs", metavar="N", help="Worker processes.")]
EngineName: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="atheris (default where it is installed), hypothesis, random or exhaustive.",
        autocompletion=names.engines,
    ),
]
Bounds: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--bounds",
        metavar="OPS[,VALUES]",
        help="With --engine exhaustive: every program of up to OPS ops, with VALUES values for "
        "each argument (default 1,4).",
    ),
]
WorkDir: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--workdir",
        metavar="DIR",
        help="Where corpus, findings and figures go (default guestemu-work/TARGET, with host and "
        "guest in its name if they are given).",
    ),
]
Resume: TypeAlias = Annotated[
    bool, typer.Option("--resume", help="Go on with the campaign in the work directory.")
]
Seed: TypeAlias = Annotated[
    int,
    typer.Option(
        "--seed",
        metavar="N",
        min=0,
        help="Random numbers; with --execs and --engine random all is repeatable.",
    ),
]
Inputs: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--inputs",
        metavar="WHAT",
        help="First inputs: `flows` (what the modelled kernels do; the default), `none`, or a "
        "program or directory of programs, such as corpora/conversion; repeatable.",
    ),
]
MaxOps: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--max-ops",
        metavar="N",
        help="Ops in the longest program (default: the target's, 12 for a host of yours).",
    ),
]
Accept: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--accept",
        metavar="KEY|FILE",
        help="A finding that is known: counted, and no reason for exit status 1; or a file with "
        "one key a line. Repeatable.",
    ),
]
InjectFaults: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--faults",
        help="Also inject failures and call as no good caller would. Guests up to 6.12 have "
        "known defects there, so expect findings on any host.",
    ),
]


def accepted_keys(words: list[str] | None) -> frozenset[str]:
    """The keys that --accept names, itself or in files. Raises `InputError`."""
    from guestemu.campaign.store import is_key

    keys: set[str] = set()
    for word in words or ():
        path = Path(word)
        if not path.is_file():
            keys.add(word)
            continue
        try:
            lines = read_regular(path).decode().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--accept {path}: cannot be read; give one key a line") from error
        keys.update(line.partition("#")[0].strip() for line in lines)
    keys.discard("")
    for key in keys:
        if not is_key(key):
            raise InputError(
                f"--accept {key}: no file and no key of a finding; see guestemu status"
            )
    return frozenset(keys)


def campaign_object(campaign: Campaign, figures: Figures) -> dict[str, object]:
    """What `--json` prints."""
    return {
        "target": campaign.target.name,
        "engine": campaign.engine,
        "executions": figures.executions,
        "distinct_programs": figures.distinct_programs,
        "execs_per_second": figures.execs_per_second,
        "seconds": figures.seconds,
        "findings": [
            {
                "key": found.key,
                "check": found.check,
                "program": str(campaign.store.finding_path(found.key)),
                "first_seen_s": found.first_seen_s,
                "count": found.count,
                "accepted": campaign.is_accepted(found.key),
            }
            for found in figures.findings
        ],
        "corpus_size": figures.corpus_size,
        "coverage": {
            "guest_blocks": figures.guest_blocks,
            "model_states": figures.model_states,
            "near_misses": figures.near_misses,
        },
        "median_ops": figures.median_ops,
        "space": figures.space,
        "exhausted": figures.is_exhausted,
        "infrastructure": figures.infrastructure,
        "unstable": figures.unstable,
        "interrupted": figures.is_interrupted,
    }


def tell(campaign: Campaign, figures: Figures) -> None:
    """The end of a campaign, for people."""
    from guestemu.campaign.document import ended_document

    console.emit_document(ended_document(campaign, figures))
    _tell_next(campaign, figures)


def _tell_next(campaign: Campaign, figures: Figures) -> None:
    """Names the command that leads on."""
    from guestemu.host.permission import option_words

    root = campaign.store.root
    if figures.findings:
        allowed = option_words(campaign.configs[0].header.plugin)
        console.note(f"next: {command_line('triage', root, *allowed)}")
    elif not figures.is_exhausted:
        page = f"{campaign.target.name.partition(':')[0]}.html"
        console.note(
            f"next: {command_line('report', root, '-o', page)}; --resume goes on searching"
        )


def end(campaign: Campaign, figures: Figures) -> int:
    """The exit status of a campaign: 1 for a finding that was not accepted. Raises
    KeyboardInterrupt if that is how it ended."""
    if figures.is_interrupted:
        raise KeyboardInterrupt
    return EXIT_OK if campaign.is_clean(figures) else EXIT_FINDINGS
