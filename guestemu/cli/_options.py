# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that several verbs share, with one help text each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from typer.models import OptionInfo

from guestemu.abi.errors import InputError
from guestemu.abi.files import check_place
from guestemu.cli import _names as names
from guestemu.program.layout import split_memory

if TYPE_CHECKING:
    from guestemu.program.program import SevKind


def _to_write(
    context: typer.Context, option: typer.CallbackParam, path: Path | None
) -> Path | None:
    """Refuses an output that cannot be written before the work whose result goes there."""
    if path is not None and not context.resilient_parsing:
        check_place(path, option.opts[0])
    return path


AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Html: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="OUT.html",
        help="Also write a page.",
        show_default=False,
        callback=_to_write,
    ),
]
Guests: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--guest",
        metavar="GUEST",
        help="snippet:6.12 or linux:IMAGE; repeatable.  [default: the snippet and the fetched "
        "kernels]",
        show_default=False,
        autocompletion=names.guests,
    ),
]
PageFile: TypeAlias = Annotated[
    Path | None,
    typer.Option("--page", metavar="FILE.md", help="Write the page there.", callback=_to_write),
]
ProgramPath: TypeAlias = Annotated[
    Path, typer.Argument(metavar="PROGRAM.prog", help="The program to run.", show_default=False)
]
GuestName: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--guest",
        metavar="GUEST",
        help="Run this guest; `guestemu guests` lists them.",
        autocompletion=names.guests,
    ),
]
HostName: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--host",
        metavar="HOST",
        help="Run on this host, one of `guestemu hosts` or FILE.py:CLASS; A,B,... with `run` "
        "compares several.",
        autocompletion=names.hosts,
    ),
]
Plugins: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugins",
        metavar="DIR",
        help="Programs may name hosts (FILE.py:CLASS) in this directory, whose code then runs; "
        "repeatable.  [default: tool.guestemu.plugins in pyproject.toml]",
        show_default=False,
    ),
]


def image_option(default: str) -> OptionInfo:
    """--image of a verb that looks at several kernels; `default` is what it takes without it."""
    option: OptionInfo = typer.Option(
        "--image",
        metavar="PATH",
        help=f"A kernel image or a fetched series; repeatable.  [default: {default}]",
        show_default=False,
        autocompletion=names.images,
    )
    return option


def sev_kind(text: str) -> SevKind:
    """The guest kind that --sev says. Raises `InputError`."""
    from guestemu.program.program import SevKind

    known = {kind.value: kind for kind in SevKind}
    if text not in known:
        raise InputError(f"--sev {text}: take one of {', '.join(known)}")
    return known[text]


def memory_of(text: str | None) -> tuple[int | None, str | None]:
    """The size in MiB and the layout that --memory says. Raises `InputError`."""
    if text is None:
        return None, None
    try:
        return split_memory(text)
    except ValueError as error:
        raise InputError(f"--memory {text}: {error}") from error


Limit: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--limit",
        metavar="SECONDS",
        min=0.01,
        help="CPU time that a program may take, and six times as much in all; then it has failed.  "
        "[default: 5, of a real kernel 300]",
        show_default=False,
    ),
]
Sev: TypeAlias = Annotated[str | None, typer.Option("--sev", metavar="sev", help="SEV feature.")]
CBit: TypeAlias = Annotated[
    int | None, typer.Option("--cbit", metavar="BIT", help="Position of the C-bit, 32 to 51.")
]
Memory: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="MIB[,PART@GPA+SIZE...]",
        help="Guest memory in MiB, and where memory slots lie: slot@32M begins another, and "
        "hole@48M+1M, mmio@..., rom@..., plain@... (no guest_memfd) and plug@... (hot-plugged by "
        "the operation host_commit_slot) are parts of another kind.",
    ),
]
Vcpus: TypeAlias = Annotated[
    int | None, typer.Option("--vcpus", metavar="N", help="Number of vCPUs, 1 to 64.")
]
Faults: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--fault",
        metavar="OP",
        help="Run this op before the program's own, such as 'fail_split after=0'; repeatable.",
    ),
]
Cluster: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="local|tcp://HOST:PORT",
        help="Run on the workers of a Dask cluster: --jobs of them here, or those of the "
        "scheduler at this address.",
    ),
]
