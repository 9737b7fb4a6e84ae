# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading files of others, without waiting, up to a size; writing outputs, whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from guestemu.abi.errors import GuestemuError, InputError, MissingError

LARGEST_INPUT: Final = 64 << 20
"""Bytes of a file in a campaign's directory: far more than any has."""
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What a full disk says."""


_REMEDIES: Final = {
    errno.ENOENT: "make its directory, or ",
    **dict.fromkeys(FULL, "make room there, or "),
}


def write_failure(path: Path, error: OSError, option: str) -> GuestemuError:
    """What to raise where `path`, which `option` chose, cannot be written: `MissingError` for a
    full disk, where the path is right, else `InputError`."""
    remedy = _REMEDIES.get(error.errno or 0, "")
    text = f"{path}: {error.strerror or error}; {remedy}name another place with {option}"
    return MissingError(text) if error.errno in FULL else InputError(text)


def check_place(path: Path, option: str) -> None:
    """Raises the error of `write_atomically` for a directory, or where the directory of `path`
    does not exist: before the work whose result goes there."""
    number = errno.EISDIR if path.is_dir() else errno.ENOENT
    if path.is_dir() or not path.parent.is_dir():
        raise write_failure(path, OSError(number, os.strerror(number)), option)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which stands at `path` afterwards, or not at all. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes) -> None:
    """Puts `data` at `path`, whole or not at all; a pipe, a device and what a link leads to are
    written to. Raises OSError."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(data)
        return
    with whole_file(path) as file:
        file.write(data)


def write_atomically(path: Path, data: bytes, option: str) -> None:
    """`replace_file`, but raises the error of `write_failure`, which names the file and the
    `option` that chose it."""
    try:
        replace_file(path, data)
    except OSError as error:
        raise write_failure(path, error, option) from error


def read_regular(path: Path, limit: int = LARGEST_INPUT) -> bytes:
    """The content of the regular file `path`.

    A pipe, a device or a directory, and a file of more than `limit` bytes, raise OSError like a
    file that cannot be read, and never wait for a writer.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes", str(path))
        return file.read(status.st_size)


def _open_at_once(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)
