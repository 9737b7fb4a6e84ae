# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks on a kernel's conversions as a file of JSON lines, so that a sweep can be continued."""

from __future__ import annotations

from pathlib import Path

import msgspec

from guestemu.abi.errors import InputError
from guestemu.study.outcomes.attacks import AttackRun, RowKey


def read_runs(path: Path) -> dict[RowKey, list[AttackRun]]:
    """The runs in `path` by row, none if there is no such file.

    Raises `InputError` for a malformed line; a last line cut off by a crash is dropped.
    """
    found: dict[RowKey, list[AttackRun]] = {}
    if not path.exists():
        return found
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            run = msgspec.json.decode(line, type=AttackRun)
        except msgspec.DecodeError as error:
            if number == len(lines):
                break
            raise InputError(
                f"{path}:{number}: not the run of an attack: {error}; delete the line"
            ) from None
        found.setdefault(run.key, []).append(run)
    return found


def append_run(path: Path, run: AttackRun) -> None:
    """Adds one line; a half line before it is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(msgspec.json.encode(run) + b"\n")
