# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose code may run as a host: what the user typed, and files in directories the user allowed.

A program is data that others write: its header may name a host that is code (`FILE.py:CLASS`), and
to run it is to run that code. So a name in a file is never enough. `Permissions.find` is the one
function that decides: it returns the path of the file to load, or raises. The path then travels in
`Header.plugin`, which no file can set, and `load_host` loads no code without one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError

_PROJECT: Final = "pyproject.toml"
_TABLE: Final = "guestemu"
_KEY: Final = "plugins"
_COMMANDS: Final = ("cmd:", "kvm:")
_FILES: Final = (".py", ".so")
REMEDY: Final = (
    "allow its directory with --plugins DIR, or with plugins = [DIR] under [tool.guestemu] in "
    "pyproject.toml"
)


def is_code(spec: str) -> bool:
    """Whether a host's spec names code that is not guestemu's: FILE.py:CLASS, FILE.so, a command
    (`cmd:`) or a virtual machine of this computer (`kvm:`)."""
    return spec.startswith(_COMMANDS) or file_of(spec) != ""


def file_of(spec: str) -> str:
    """The file that `spec` names, without the class; empty if it names none."""
    for name in (spec, spec.rpartition(":")[0]):
        if name.endswith(_FILES):
            return name
    return ""


def named_by_user(spec: str) -> tuple[str, str]:
    """How programs will name the host that the user typed as `spec`, and the path of its code or
    its command (empty for a host of guestemu). An absolute path becomes relative to the working
    directory, or the bare name of the file."""
    if spec.startswith(_COMMANDS):
        return spec, spec
    name = file_of(spec)
    if not name:
        return spec, ""
    path = Path(name).absolute()
    if Path(name).is_absolute():
        here = Path.cwd()
        short = path.relative_to(here) if path.is_relative_to(here) else path.name
        spec = f"{short}{spec.removeprefix(name)}"
    return spec, str(path)


class Permissions(msgspec.Struct, frozen=True):
    """The directories, resolved, whose code programs may name; `remedy` says how to allow more."""

    directories: tuple[Path, ...] = ()
    remedy: str = REMEDY

    def find(self, spec: str, program: Path) -> str:
        """The path of the code that a `program` names as its host; empty for a host of guestemu.

        FILE.py is looked for beside the program, in the directories above it, in the working
        directory and in the allowed directories. Raises `InputError` for code that may not run.
        """
        if not is_code(spec):
            return ""
        name = file_of(spec)
        if not name:
            raise InputError(f"{program}: host {spec}: a program names no command; use --host")
        if Path(name).is_absolute():
            raise InputError(
                f"{program}: host {spec}: a program names code by a relative path; change it to "
                f"{Path(name).name}, or use --host"
            )
        found = list(self._candidates(name, program))
        for path in found:
            if any(path.is_relative_to(directory) for directory in self.directories):
                return str(path)
        if found:
            where = f"{found[0].parent} is not allowed"
        else:
            where = "no such file beside the program, above it or in the working directory"
        raise InputError(
            f"{program}: host {spec} is code, which a program runs only where you allow it: "
            f"{where}; {self.remedy}"
        )

    def _candidates(self, name: str, program: Path) -> Iterator[Path]:
        places = (*program.absolute().parents, Path.cwd(), *self.directories)
        for place in dict.fromkeys(places):
            try:
                path = (place / name).resolve()
                is_there = path.is_file()
            except (OSError, ValueError, RuntimeError):  # a name that no file can have, a loop
                continue
            if is_there:
                yield path


def permissions(options: Sequence[Path] | None, start: Path | None = None) -> Permissions:
    """The permissions of a command with `--plugins` DIR..., or without any those of the project
    around `start` (default: the working directory). Raises `InputError`."""
    if options:
        for path in options:
            if not path.is_dir():
                raise InputError(f"--plugins {path}: no such directory; name the one of FILE.py")
        return Permissions(tuple(path.resolve() for path in options))
    return Permissions(tuple(_of_project(start or Path.cwd())))


def _of_project(start: Path) -> Iterator[Path]:
    """The directories that the nearest pyproject.toml with [tool.guestemu] names."""
    for directory in (start.absolute(), *start.absolute().parents):
        path = directory / _PROJECT
        if not path.is_file():
            continue
        try:
            tools = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {})
        except (OSError, ValueError, RecursionError):
            continue  # a broken file allows nothing; the tools that own it say what is wrong
        if not isinstance(tools, dict) or _TABLE not in tools:
            continue
        table = tools[_TABLE]
        names = table.get(_KEY, []) if isinstance(table, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(
                f'{path}: tool.guestemu.plugins must list directories; write plugins = ["DIR"]'
            )
        yield from ((directory / name).resolve() for name in names)
        return


def option_words(plugin: str) -> list[str]:
    """The words of a command line that allow the code at `plugin` again; none without any."""
    if not plugin:
        return []
    return ["--plugins", shown_path(str(Path(plugin).parent))]


def shown_path(name: str) -> str:
    """A path for people: relative where it lies below the working directory."""
    path, here = Path(name), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else name
