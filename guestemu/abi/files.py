# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading files of others, without waiting, up to a size; and outputs that cannot be written."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from guestemu.abi.errors import GuestemuError, InputError, MissingError

LARGEST_INPUT: Final = 64 << 20
"""Bytes of a file in a campaign's directory: far more than any has."""
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What a full disk says."""


def not_written(path: Path, what: str, error: OSError) -> GuestemuError:
    """What to raise where `what` cannot be written to `path`: `MissingError` for a full disk, which
    is no fault of the path, else `InputError`."""
    text = f"{path}: cannot write the {what}: {error.strerror}"
    if error.errno in FULL:
        return MissingError(f"{text}; make room there, or name another place")
    return InputError(f"{text}; give a path that can be written")


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
