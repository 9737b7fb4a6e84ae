# SPDX-License-Identifier: GPL-2.0-or-later
"""The user's cache: $XDG_CACHE_HOME/guestemu."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.names import nearest

_BLOCK: Final = 512
_ABOUT: Final = {
    "kernels": "packages that `guestemu kernel fetch` got",
    "prepared": "kernels booted once, for a quick start",
    "oracle": "kernels and modules unpacked for `guestemu oracle`",
    "apt": "lists of packages, for `guestemu kernel fetch`",
    "digests": "checksums of kernel packages that did not change",
    "cells": "what `guestemu kernel test` measured",
}
_OTHER: Final = "compiled helpers"


class CacheEntry(msgspec.Struct, frozen=True):
    """A file or directory of the cache; `bytes` on disk."""

    name: str
    files: int
    bytes: int
    about: str


def root() -> Path:
    """The cache directory; it need not exist."""
    from guestemu.guest.linux.images import cache_root

    return cache_root()


def cached() -> tuple[CacheEntry, ...]:
    """What there is, by name."""
    if not root().is_dir():
        return ()
    return tuple(_entry(path) for path in sorted(root().iterdir()))


def remove(names: Iterable[str]) -> tuple[CacheEntry, ...]:
    """Deletes the entries called `names` (all if there are none) and returns what they were.

    Raises:
        InputError: no entry is called so.
    """
    entries = cached()
    known = {entry.name for entry in entries}
    wanted = set(names)
    for name in wanted - known:
        remedy = f"; {nearest(name, known)}" if known else ""
        raise InputError(f"nothing in {root()} is called {name!r}{remedy}")
    chosen = tuple(entry for entry in entries if not wanted or entry.name in wanted)
    for entry in chosen:
        path = root() / entry.name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return chosen


def _entry(path: Path) -> CacheEntry:
    inside = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
    size = sum(one.lstat().st_blocks * _BLOCK for one in inside)
    return CacheEntry(path.name, len(inside), size, _ABOUT.get(path.name, _OTHER))
