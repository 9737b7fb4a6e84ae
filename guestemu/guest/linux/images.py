# SPDX-License-Identifier: GPL-2.0-or-later
"""Where kernel packages are kept, and which image a name means.

Packages lie in $XDG_CACHE_HOME/guestemu/kernels (default ~/.cache) under the names that Debian
gives them: linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError, MissingError

_PACKAGE: Final = re.compile(r"linux-image-\S+_(?P<version>(\d+)\.(\d+)[^_]*)_amd64\.deb")
_SERIES: Final = re.compile(r"\d+\.\d+")


class FetchedImage(msgspec.Struct, frozen=True):
    """A package in the cache: its Debian version, the kernel series ("6.1") and the file."""

    version: str
    series: str
    path: Path


def cache_root() -> Path:
    """The program's directory in the user's cache; it need not exist."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(cache) if cache.startswith("/") else Path.home() / ".cache"
    return root / "guestemu"


def kernel_directory() -> Path:
    """The directory of fetched kernels; it need not exist."""
    return cache_root() / "kernels"


def version_key(version: str) -> tuple[tuple[int, str], ...]:
    """Sorts Debian versions: digit runs as numbers, what follows "~" before the end."""
    key: list[tuple[int, str]] = []
    for number, tilde, text in re.findall(r"(\d+)|(~)|([^\d~]+)", version):
        key.append((int(number) + 1, "") if number else (-1, "") if tilde else (0, text))
    return (*key, (0, ""))


def fetched_images(directory: Path | None = None) -> tuple[FetchedImage, ...]:
    """The packages in the cache, newest version first."""
    where = directory or kernel_directory()
    found = []
    for path in where.glob("*.deb") if where.is_dir() else ():
        match = _PACKAGE.fullmatch(path.name)
        if match is not None:
            version = match["version"].replace("%7e", "~").replace("%3a", ":")
            found.append(FetchedImage(version, f"{match[2]}.{match[3]}", path))
    return tuple(sorted(found, key=lambda image: version_key(image.version), reverse=True))


def find_image(name: str) -> Path:
    """The file that `name` means: a path, a series ("6.12": its newest fetched package), or, empty,
    the newest fetched package.

    Raises `InputError` for a file that does not exist, `MissingError` where nothing was fetched.
    """
    if name and not (_SERIES.fullmatch(name) and not Path(name).exists()):
        path = Path(name)
        if not path.is_file():
            raise InputError(
                f"{name}: no such kernel image; give a .deb, vmlinuz, bzImage or vmlinux, or a "
                "series such as 6.12 that `guestemu kernel fetch` has fetched"
            )
        return path
    for image in fetched_images():
        if image.series == name or not name:
            return image.path
    what = f"no {name} kernel" if name else "no kernel"
    raise MissingError(
        f"{what} in {kernel_directory()}; run `guestemu kernel fetch{' ' + name if name else ''}` "
        "or pass a .deb, vmlinuz, bzImage or vmlinux"
    )
