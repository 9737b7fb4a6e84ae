# SPDX-License-Identifier: GPL-2.0-or-later
"""The `guestemu` command: finds the verb, imports its module, runs it, answers with its status.

Each verb is a module of this package named like it (`_` for `-`), and registers itself there:

- `command`, a function with typer's annotations, whose docstring is the help and whose first line,
  at most 60 characters, stands in `guestemu --help`; or `app`, a `typer.Typer` of a verb with verbs
  of its own; or the module is a package, and each of its modules is a verb below it.
- `GROUP`, one of `_help.GROUPS`, and `ORDER`, its place in the group.
- `RENAMED`, optional: old spellings of options that still work, such as {"--seeds": "--inputs"}.
- `NUMBERS`, optional: options whose number may be left out, and the number that is meant then.

A module that starts with `_` is not a verb. Only the verb on the command line is imported, and for
`guestemu --help` none: its lines come from the sources. So a verb module imports its tools inside
its function. A verb returns None or an
exit status (`errors.EXIT_FINDINGS`) and raises `InputError`, `MissingError` … for the rest:
`errors.report` turns every exception into one line and a status, and with `--json` into an object.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Final

from guestemu.abi.errors import InputError
from guestemu.cli import _help, console, errors
from guestemu.processes import EndSignals

if TYPE_CHECKING:
    import typer
    from typer.core import TyperGroup

_PROGRAM: Final = "guestemu"
_ABOUT: Final = "Run, fuzz and replay page-encryption conversions without SEV hardware."
_PACKAGE: Final = "guestemu.cli"
_STDOUT: Final = 1
_FRAME: Final = frozenset({"main", "console", "errors"})
_HELP: Final = frozenset({"--help", "-h"})
_WITHOUT_VERB: Final = frozenset({"--version", "--install-completion", "--show-completion"})
_COMPLETES: Final = "_GUESTEMU_COMPLETE"
"""Set by the shell while it completes a command line."""


def find_verbs(package: str = _PACKAGE) -> dict[str, str]:
    """The verbs that exist, by name, with the names of their modules."""
    path = importlib.import_module(package).__path__
    return {
        module.name.replace("_", "-"): f"{package}.{module.name}"
        for module in pkgutil.iter_modules(path)
        if not module.name.startswith("_") and module.name not in _FRAME
    }


def _register(app: typer.Typer, verb: str, name: str) -> ModuleType:
    """Adds the verb that the module called `name` defines; the module."""
    import typer

    module = importlib.import_module(name)
    group: object = getattr(module, "app", None)
    command: object = getattr(module, "command", None)
    if hasattr(module, "__path__"):
        below = typer.Typer(help=module.__doc__, no_args_is_help=True, rich_markup_mode=None)
        for inner, inner_name in find_verbs(name).items():
            _register(below, inner, inner_name)
        app.add_typer(below, name=verb)
    elif isinstance(group, typer.Typer):
        app.add_typer(group, name=verb)
    elif callable(command):
        app.command(verb)(command)
    else:
        raise TypeError(f"module {name} has neither `command` nor `app`")
    return module


def _build(verbs: Mapping[str, str]) -> tuple[typer.Typer, dict[str, ModuleType]]:
    """A typer application of `verbs`, and their modules, which it imports."""
    import typer

    from guestemu.cli._root import root

    app = typer.Typer(
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(root)
    return app, {verb: _register(app, verb, name) for verb, name in verbs.items()}


@functools.cache
def _command(verbs: tuple[tuple[str, str], ...]) -> tuple[TyperGroup, dict[str, ModuleType]]:
    """The command of `verbs`, names and their modules: made once by a process that calls `main`
    again and again."""
    from typer.core import TyperGroup
    from typer.main import get_command

    app, modules = _build(dict(verbs))
    command = get_command(app)
    assert isinstance(command, TyperGroup)  # it has a callback
    _help.keep_all_examples(command)
    return command, modules


def source_of(name: str) -> str:
    """The source of the module called `name`, which is not imported."""
    spec = importlib.util.find_spec(name)
    give: object = getattr(spec and spec.loader, "get_source", None)
    source: object = give(name) if callable(give) else None
    if isinstance(source, str):
        return source
    if spec is None or not spec.has_location or spec.origin is None:
        raise TypeError(f"module {name} has no source")
    with open(spec.origin, encoding="utf-8") as file:  # pytest's loader of plug-ins cannot tell
        return file.read()


def _overview(verbs: Mapping[str, str]) -> None:
    """Prints `guestemu --help`."""
    rows = [_help.verb_of(verb, source_of(name)) for verb, name in verbs.items()]
    for line in _help.overview(_PROGRAM, _ABOUT, rows):
        console.emit(line)


def _wanted(arguments: Sequence[str], verbs: Mapping[str, str]) -> dict[str, str]:
    """The verbs whose modules this command line needs. Raises `InputError` for an unknown verb."""
    if _COMPLETES in os.environ:
        return dict(verbs)
    verb = next((word for word in arguments if not word.startswith("-")), None)
    if verb is None or arguments[0] in _WITHOUT_VERB:
        return {}
    if verb in verbs:
        return {verb: verbs[verb]}
    from difflib import get_close_matches

    close = get_close_matches(verb, verbs, 1)
    remedy = f"did you mean {close[0]}?" if close else f"{_PROGRAM} --help lists them"
    raise InputError(f"no command {verb!r}; {remedy}")


def _with_new_names(arguments: Sequence[str], modules: Mapping[str, ModuleType]) -> list[str]:
    """`arguments` with the old spellings of options replaced and the numbers that were left out put
    in, up to a `--`."""
    renamed: dict[str, str] = {}
    numbers: dict[str, str] = {}
    for module in modules.values():
        renamed |= getattr(module, "RENAMED", {})
        numbers |= getattr(module, "NUMBERS", {})
    end = arguments.index("--") if "--" in arguments else len(arguments)
    found = []
    for place, word in enumerate(arguments[:end]):
        name, equals, value = word.partition("=")
        if word in numbers and not "".join(arguments[place + 1 : end][:1]).lstrip("-").isdecimal():
            equals, value = "=", numbers[word]
        found.append(f"{renamed.get(name, name)}{equals}{value}")
    return [*found, *arguments[end:]]


def _words(command: object, arguments: Sequence[str]) -> str:
    """The verb and those below it that `arguments` name: "kernel.boot"."""
    found = []
    for word in arguments:
        below: object = getattr(command, "commands", None)
        if not isinstance(below, Mapping):
            break
        if word in below:
            command = below[word]
            found.append(word)
    return ".".join(found)


def _run(arguments: Sequence[str], package: str) -> int:
    """The status of the verb on the command line."""
    verbs = find_verbs(package)
    if _COMPLETES not in os.environ and (not arguments or arguments[0] in _HELP):
        _overview(verbs)
        return errors.EXIT_OK
    wanted = _wanted(arguments, verbs)
    from guestemu.parts import load_parts

    load_parts()
    command, modules = _command(tuple(wanted.items()))
    words = _words(command, arguments)
    console.begin(words)
    with console.busy(f"{_PROGRAM} {words.replace('.', ' ')}"):
        result: object = command.main(
            args=_with_new_names(arguments, modules), prog_name=_PROGRAM, standalone_mode=False
        )
    if result == errors.EXIT_INTERRUPTED:
        raise KeyboardInterrupt  # typer has made a status of it
    return result if isinstance(result, int) else errors.EXIT_OK


def _is_broken_pipe(error: BaseException) -> bool:
    """Typer turns a broken pipe into SystemExit(1), which would read as findings."""
    return isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError)


def _is_abort(error: Exception) -> bool:
    """Whether typer made `error` of Ctrl-C or of the end of stdin."""
    typer = sys.modules.get("typer")
    return typer is not None and isinstance(error, typer.Abort)


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
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    console.begin("")
    with EndSignals() as signals:
        status = _answer(arguments, package, as_json, signals)
        if argv is None and status == errors.EXIT_INTERRUPTED:
            signals.keep()  # the process ends now
    return status


def _answer(arguments: list[str], package: str, as_json: bool, signals: EndSignals) -> int:
    """Runs the verb; its status, whatever it raises."""
    try:
        status = _run(arguments, package)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        if not _is_broken_pipe(error):
            raise
        status = errors.EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        signals.ignore()
        status = errors.report(KeyboardInterrupt(), as_json)
    except Exception as error:
        is_abort = _is_abort(error)
        if is_abort:
            signals.ignore()
        status = errors.report(KeyboardInterrupt() if is_abort else error, as_json)
    _settle_stdout()
    console.begin("")
    return status
