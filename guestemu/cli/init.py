# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu init`: the example project."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Annotated, Final

import typer

from guestemu.abi.errors import InputError, MissingError
from guestemu.abi.names import command_line
from guestemu.abi.shipped import shipped_path
from guestemu.cli import console
from guestemu.cli._options import AsJson

GROUP: Final = "Start"
ORDER: Final = 20
_LEFT_OUT: Final = ("__pycache__", "*.pyc", "guestemu-work", ".pytest_cache")


def command(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A new or empty directory.", show_default=False),
    ],
    as_json: AsJson = False,
) -> None:
    """Make an example project: a host, programs, a workflow.

    The project tests a host model of its own: vmm_host.py with the host, programs/ with regression
    programs, a workflow that replays them on every push and searches every night. README.md in it
    says what to do with it.

    For example:

      guestemu init my-host
    """
    if directory.is_dir() and any(directory.iterdir()):
        raise InputError(f"{directory}: not empty; name a new directory")
    try:
        shutil.copytree(
            shipped_path("host-project"),
            directory,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns(*_LEFT_OUT),
        )
    except shutil.Error as error:
        reason = str(error.args[0][0][2]).partition(": ")[0].partition("] ")[2]
        raise MissingError(f"{directory}: not complete: {reason}; name another place") from error
    except OSError as error:
        raise InputError(f"{directory}: {error.strerror}; name another directory") from error
    files = sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())
    if as_json:
        console.emit_json({"directory": str(directory), "files": files})
        return
    for name in files:
        console.emit(str(directory / name))
    check = command_line("hosts", "--check", "vmm_host.py:VmmHost")
    console.note(f"next: cd {shlex.quote(str(directory))}; {check}")
