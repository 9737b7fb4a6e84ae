# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as a file of JSON lines, so that what was interrupted can be continued."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from guestemu.abi.errors import InputError

T = TypeVar("T")


def read_json_lines(path: Path, kind: type[T], what: str) -> list[T]:
    """The results in `path`, none if there is no such file; `what` says what a line should be.

    Raises `InputError` for a malformed line; a last line cut off by a crash is dropped.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found: list[T] = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            found.append(msgspec.json.decode(line, type=kind))
        except msgspec.DecodeError as error:
            if number == len(lines):
                break
            raise InputError(f"{path}:{number}: not {what}: {error}; delete the line") from None
    return found


def append_json_line(path: Path, result: msgspec.Struct) -> None:
    """Adds one line; a half line before it is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(msgspec.json.encode(result) + b"\n")
