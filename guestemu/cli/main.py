# SPDX-License-Identifier: GPL-2.0-or-later
"""The `guestemu` command: finds the verb, imports its module, runs it, answers with its status.

Each verb is a module of this package named like it (`_` for `-`), with either `command`, a function
with typer's annotations whose docstring is the help, or `app`, a `typer.Typer` for a verb with
verbs of its own. A module that starts with `_` is no verb. Only the verb on the command line is
imported, all of them for `--help`; so a verb module imports its tools inside its function. A verb
returns None or an exit status (`errors.EXIT_FINDINGS`) and raises `InputError`, `MissingError` …
for the rest: `errors.report` turns every exception into one line and a status.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Final

import typer
import typer.core
import typer.main

from guestemu import __version__
from guestemu.abi.errors import InputError
from guestemu.cli import console, errors

_PROGRAM: Final = "guestemu"
_PACKAGE: Final = "guestemu.cli"
_STDOUT: Final = 1
_FRAME: Final = frozenset({"main", "console", "errors"})
_ORDER: Final = (
    *("run", "fuzz", "status", "report", "replay", "minimize", "triage", "merge", "show"),
    *("explore", "claims", "zoo", "ledger", "conform", "kernel", "dma", "bench"),
    *("targets", "hosts", "guests", "doctor"),
)
"""In `--help`; verbs not named here follow in alphabetical order."""


def find_verbs(package: str = _PACKAGE) -> dict[str, str]:
    """The verbs that exist, in the order of `--help`, with the names of their modules."""
    path = importlib.import_module(package).__path__
    modules = {
        module.name.replace("_", "-"): f"{package}.{module.name}"
        for module in pkgutil.iter_modules(path)
        if not module.name.startswith("_") and module.name not in _FRAME
    }
    order = {verb: position for position, verb in enumerate(_ORDER)}
    return dict(sorted(modules.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


def _show_version(value: bool) -> None:
    if value:
        console.emit(f"{_PROGRAM} {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Run, fuzz and replay AMD SEV page-encryption conversations without SEV hardware."""


def _build(verbs: dict[str, str]) -> typer.Typer:
    """A typer application of `verbs`, whose modules it imports."""
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for verb, name in verbs.items():
        module = importlib.import_module(name)
        group: object = getattr(module, "app", None)
        command: object = getattr(module, "command", None)
        if isinstance(group, typer.Typer):
            app.add_typer(group, name=verb)
        elif callable(command):
            app.command(verb)(command)
        else:
            raise TypeError(f"module {name} has neither `command` nor `app`")
    return app


def _wanted(arguments: Sequence[str], verbs: dict[str, str]) -> dict[str, str]:
    """The verbs whose modules this command line needs. Raises `InputError` for an unknown verb."""
    verb = next((word for word in arguments if not word.startswith("-")), None)
    if verb is None:
        return {} if "--version" in arguments else verbs
    if verb in verbs:
        return {verb: verbs[verb]}
    close = get_close_matches(verb, verbs, 1)
    remedy = f"did you mean {close[0]}?" if close else f"{_PROGRAM} --help lists them"
    raise InputError(f"no command {verb!r}; {remedy}")


def _run(arguments: Sequence[str], package: str) -> int:
    """The status of the verb on the command line."""
    verbs = _wanted(arguments, find_verbs(package))
    command = typer.main.get_command(_build(verbs))
    if isinstance(command, typer.core.TyperGroup):  # which lists its groups behind its commands
        command.commands = {verb: command.commands[verb] for verb in verbs}
    result: object = command.main(args=list(arguments), prog_name=_PROGRAM, standalone_mode=False)
    if result == errors.EXIT_INTERRUPTED:
        raise KeyboardInterrupt  # typer has made a status of it
    return result if isinstance(result, int) else errors.EXIT_OK


def _is_broken_pipe(error: BaseException) -> bool:
    """Typer turns a broken pipe into SystemExit(1), which would read as findings."""
    return isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError)


def _settle_stdout() -> None:
    """Writes what stdout still holds, or drops it where it cannot be written, so that the
    interpreter does not fail over it once more at its end and change the status."""
    try:
        sys.stdout.flush()
    except OSError:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, _STDOUT)
        os.close(devnull)


def main(argv: Sequence[str] | None = None, package: str = _PACKAGE) -> int:
    """Runs `guestemu` with `argv` (default: the process's) and returns the exit status.

    `package` holds the verbs. Never raises, apart from the SystemExit a verb asks for itself.
    """
    console.prepare_streams()
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        status = _run(arguments, package)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        if not _is_broken_pipe(error):
            raise
        status = errors.EXIT_BROKEN_PIPE
    except (KeyboardInterrupt, typer.Abort):
        status = errors.report(KeyboardInterrupt())
    except Exception as error:
        status = errors.report(error)
    _settle_stdout()
    return status
