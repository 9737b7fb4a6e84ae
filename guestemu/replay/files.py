# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs that a user's paths mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from guestemu.abi.errors import InputError

SUFFIX: Final = ".prog"


def find_programs(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Files as named, directories searched for `*.prog` at any depth, sorted, each file once.

    Raises `InputError` for a path that does not exist and for a directory without a program.
    """
    return tuple(dict.fromkeys(file for path in paths for file in _files(path)))


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"{path}: no such file; give programs or directories of them")
        yield path
        return
    found = sorted(file for file in path.rglob(f"*{SUFFIX}") if file.is_file())
    if not found:
        raise InputError(f"{path}: no {SUFFIX} file in this directory; give another one")
    yield from found
