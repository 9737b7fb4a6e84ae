# SPDX-License-Identifier: GPL-2.0-or-later
"""The overview that `guestemu --help` prints, and examples that no terminal wraps."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Protocol, runtime_checkable

import msgspec

GROUPS: Final = (
    *("Start", "Search", "Regression", "Kernels and hosts", "Migration", "Study", "Lists"),
    "More",
)
"""The groups of verbs, in the order of `--help`. A verb's module names its own as `GROUP`; one
that names none stands in the last."""

_OPTIONS: Final = (
    ("--version", "Print the version."),
    ("--install-completion", "Install completion for this shell."),
    ("--show-completion", "Print the completion script."),
    ("-h, --help", "Print this help; after a command, its own."),
)
_LAST: Final = 99
_ENOUGH: Final = re.compile(
    r'^def command\b.*?""".*?"""|(?=^@app\.command\b)', re.DOTALL | re.MULTILINE
)
"""Where the source of a verb's module has said all that `verb_of` wants to know."""

_UNWRAPPED: Final = "\b"
_INDENT: Final = "  "


class VerbLine(msgspec.Struct, frozen=True, order=True):
    """One line of the overview; `order` is its place in the group."""

    group: str
    order: int
    name: str
    summary: str


def verb_of(name: str, source: str) -> VerbLine:
    """The verb that a module with this source defines: its help is that of `command`, else what
    `app` is given as `help`, else (a package of verbs) the module's own."""
    module = _parse(source)
    group, order = GROUPS[-1], _LAST
    about = ast.get_docstring(module, clean=False)
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "command":
            about = ast.get_docstring(statement, clean=False)
            break
        if not isinstance(statement, ast.Assign | ast.AnnAssign):
            continue
        target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
        value = statement.value
        match target, value:
            case ast.Name("GROUP"), ast.Constant(str(group)):
                pass
            case ast.Name("ORDER"), ast.Constant(int(order)):
                pass
            case ast.Name("app"), ast.Call(keywords=keywords):
                texts = [word.value for word in keywords if word.arg == "help"]
                about = next((ast.literal_eval(text) for text in texts), about)
    if group not in GROUPS:
        raise TypeError(f"verb {name}: GROUP {group!r} is none of {', '.join(GROUPS)}")
    return VerbLine(group, order, name, summary_of(about))


def _parse(source: str) -> ast.Module:
    """`source` as far as it matters: parsing the verbs' bodies would take most of the time of
    `guestemu --help`."""
    found = _ENOUGH.search(source)
    try:
        return ast.parse(source[: found.end()] if found else source)
    except SyntaxError:
        return ast.parse(source)


def summary_of(about: str | None) -> str:
    """The first line of a docstring, without its full stop."""
    return (about or "").strip().split("\n", 1)[0].strip().rstrip(".")


def overview(program: str, about: str, verbs: Iterable[VerbLine]) -> Iterator[str]:
    """The lines of the overview."""
    listed = sorted(verbs, key=lambda verb: (GROUPS.index(verb.group), verb.order, verb.name))
    width = max((len(verb.name) for verb in listed), default=0)
    yield f"Usage: {program} COMMAND [OPTIONS] ..."
    yield ""
    yield about
    group = ""
    for verb in listed:
        if verb.group != group:
            group = verb.group
            yield ""
            yield f"{group}:"
        yield f"{_INDENT}{verb.name:<{width}}  {verb.summary}".rstrip()
    yield ""
    yield "Options:"
    width = max(len(names) for names, _ in _OPTIONS)
    for names, what in _OPTIONS:
        yield f"{_INDENT}{names:<{width}}  {what}"


def keep_examples(about: str) -> str:
    """`about` with every indented paragraph marked as not to be wrapped; neighbours are joined."""
    joined: list[str] = []
    for paragraph in about.split("\n\n"):
        if not paragraph.startswith(_INDENT):
            joined.append(paragraph)
        elif joined and joined[-1].startswith(_UNWRAPPED):
            joined[-1] += f"\n{paragraph}"
        else:
            joined.append(f"{_UNWRAPPED}\n{paragraph}")
    return "\n\n".join(joined)


@runtime_checkable
class Documented(Protocol):
    """A command of typer, in any of its versions."""

    help: str | None


def keep_all_examples(command: object) -> None:
    """`keep_examples` on a command and on those below it."""
    from inspect import cleandoc

    if isinstance(command, Documented) and isinstance(command.help, str):
        command.help = keep_examples(cleandoc(command.help))
    below: object = getattr(command, "commands", None)
    if isinstance(below, Mapping):
        for one in below.values():
            keep_all_examples(one)
