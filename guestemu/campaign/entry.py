# SPDX-License-Identifier: GPL-2.0-or-later
"""A target as libFuzzer knows it: `python fuzz/TARGET.py [-flags] [CORPUS…]`.

All of libFuzzer's flags work; a finding is a crash, as libFuzzer's users expect. `-fork`, `-jobs`,
`-merge` and `-minimize_crash` start the program again through a shell by its first argument, so
that argument is an executable script made for the purpose. GUESTEMU_HOST and GUESTEMU_GUEST name
another host or guest, as --host and --guest do.
"""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from guestemu.abi.errors import GuestemuError, InputError, MissingError
from guestemu.campaign.campaign import Options, header_of
from guestemu.campaign.engines.atheris import AtherisEngine, fuzz
from guestemu.campaign.session import Plan, Session
from guestemu.campaign.targets import find_target
from guestemu.program.program import Program
from guestemu.program.text import format_text

_MODE: Final = stat.S_IRUSR | stat.S_IWUSR | stat.S_IXUSR
_WRAPPER: Final = "GUESTEMU_FUZZ_WRAPPER"
_MERGING: Final = "GUESTEMU_FUZZ_MERGING"
_LENGTH_FLAG: Final = "-max_len="
_MERGE_FLAG: Final = "-merge=1"


class FindingError(GuestemuError):
    """A check failed while libFuzzer drives."""


def _command(script: str) -> list[str]:
    """What runs `script` again: this interpreter, or the program that PyInstaller made of both (so
    OSS-Fuzz packs targets)."""
    if getattr(sys, "frozen", False):
        return [str(Path(sys.executable).resolve())]
    return [sys.executable, str(Path(script).resolve())]


def _wrapper(script: str) -> str:
    """The path of an executable that runs `script` with this interpreter."""
    known = os.environ.get(_WRAPPER)
    if known:
        return known
    directory = Path(tempfile.mkdtemp(prefix="guestemu-fuzz-"))
    path = directory / Path(script).stem
    command = shlex.join(_command(script))
    path.write_text(f'#!/bin/sh\n{_WRAPPER}={shlex.quote(str(path))} exec {command} "$@"\n')
    path.chmod(_MODE)
    return str(path)


def _arguments(argv: Sequence[str], max_size: int) -> list[str]:
    flags = list(argv[1:])
    if not any(flag.startswith(_LENGTH_FLAG) for flag in flags):
        flags.insert(0, f"{_LENGTH_FLAG}{max_size}")
    return [_wrapper(argv[0]), *flags]


def _run(name: str, argv: Sequence[str]) -> None:
    engine = AtherisEngine()
    if not engine.is_available():
        raise MissingError(f"{argv[0]}: {engine.remedy}")
    target = find_target(name)
    chosen = Options(
        name, host=os.environ.get("GUESTEMU_HOST"), guest=os.environ.get("GUESTEMU_GUEST")
    )
    session = Session(Plan(target, header_of(target, chosen)))
    executor = session.executor

    def test_one_input(data: bytes) -> None:
        ops = executor.decode(data)
        violations = executor.run(ops)
        if violations:
            first = violations[0]
            raise FindingError(
                f"{first.check} at op {first.op}: {first.message} ({first.fact})\n"
                + format_text(Program(executor.header, ops))
            )

    fuzz(_arguments(argv, executor.max_size), test_one_input, session)


def _merge(argv: Sequence[str]) -> int:
    """Lets a process of its own merge, and holds it to its result: libFuzzer answers 0 also where
    it merged nothing. Raises `InputError`."""
    done = subprocess.run(
        [*_command(argv[0]), *argv[1:]], env={**os.environ, _MERGING: "1"}, check=False
    ).returncode
    directories = [word for word in argv[1:] if not word.startswith("-")]
    if done == 0 and not (directories and any(Path(directories[0]).iterdir())):
        names = " ".join(directories[1:]) or "its other arguments"
        into = directories[0] if directories else "no directory"
        raise InputError(f"{_MERGE_FLAG} into {into}: 0 files merged; put inputs into {names}")
    return done


def main(name: str, argv: Sequence[str]) -> int:
    """Fuzzes target `name` with libFuzzer's command line `argv`; libFuzzer decides the status,
    2 and 3 are as everywhere, 2 also for a merge that leaves nothing."""
    try:
        if _MERGE_FLAG in argv and _MERGING not in os.environ:
            return _merge(argv)
        _run(name, argv)
    except (InputError, MissingError) as error:
        print(error, file=sys.stderr)
        return 3 if isinstance(error, MissingError) else 2
    return 0
