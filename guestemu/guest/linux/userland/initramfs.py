# SPDX-License-Identifier: GPL-2.0-or-later
"""The initramfs: an uncompressed cpio archive in "newc" format
(Documentation/driver-api/early-userspace/buffer-format.rst)."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from typing import Final

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"
_CONSOLE: Final = (5, 1)


def _member(name: str, data: bytes, mode: int, number: int, device: tuple[int, int]) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    head = _MAGIC + b"".join(b"%08X" % field for field in fields) + encoded
    head += bytes(-len(head) % 4)
    return head + data + bytes(-len(data) % 4)


def make_initramfs(init: bytes, files: Mapping[str, bytes]) -> bytes:
    """An archive with `init` as /init, an empty /dev with the console, and `files` by path without
    the leading slash, in directories that the paths do not need."""
    parts = [
        ("dev", b"", stat.S_IFDIR | 0o755, (0, 0)),
        ("dev/console", b"", stat.S_IFCHR | 0o600, _CONSOLE),
        ("init", init, stat.S_IFREG | 0o755, (0, 0)),
        *((name, data, stat.S_IFREG | 0o644, (0, 0)) for name, data in files.items()),
    ]
    archive = b"".join(
        _member(name, data, mode, number, device)
        for number, (name, data, mode, device) in enumerate(parts, 1)
    )
    return archive + _member(_TRAILER, b"", 0, 0, (0, 0))
