# SPDX-License-Identifier: GPL-2.0-or-later
"""Where kernel packages are kept, and which image a name means.

Packages lie in $XDG_CACHE_HOME/guestemu/kernels (default ~/.cache) under the names that Debian
gives them: linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb, and from 6.19 on
linux-binary-7.3.4+deb13-cloud-amd64_7.3.4-1~bpo13+1_amd64.deb; linux-image-* is empty then.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError, MissingError

DEFAULT_FLAVOUR: Final = "cloud"
FLAVOURS: Final = (DEFAULT_FLAVOUR, "amd64", "rt")
"""Debian's builds of one source: for virtual machines, for all, with PREEMPT_RT."""

_PACKAGE: Final = re.compile(
    r"linux-(?:image|binary)-(?P<release>[^_]+?)-(?:(?P<flavour>cloud|rt)-)?amd64"
    r"_(?P<version>(\d+)\.(\d+)[^_]*)_amd64\.deb"
)
_SERIES: Final = re.compile(rf"(?P<series>\d+\.\d+)(?:-(?P<flavour>{'|'.join(FLAVOURS)}))?")
_MIN_SIZE: Final = 1 << 20
"""No kernel is that small; a package that is holds dependencies only."""


class FetchedImage(msgspec.Struct, frozen=True):
    """A package in the cache: its Debian version, the kernel series ("6.1"), which of `FLAVOURS`,
    and the file."""

    version: str
    series: str
    flavour: str
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
        if match is not None and path.stat().st_size >= _MIN_SIZE:
            version = match["version"].replace("%7e", "~").replace("%3a", ":")
            series = f"{match[4]}.{match[5]}"
            found.append(FetchedImage(version, series, match["flavour"] or "amd64", path))
    return tuple(sorted(found, key=lambda image: version_key(image.version), reverse=True))


def split_name(name: str) -> tuple[str, str | None]:
    """Series and flavour of a kernel's short name: "6.12-rt" is ("6.12", "rt"), "6.12" ("6.12",
    None). Another name is ("", None)."""
    match = _SERIES.fullmatch(name)
    return (match["series"], match["flavour"]) if match is not None else ("", None)


def find_image(name: str) -> Path:
    """The file that `name` means: a path, a series, or, empty, the newest fetched package.

    A series is its newest fetched package: "6.12" of the cloud flavour if there is one, "6.12-rt"
    of that flavour.

    Raises `InputError` for a file that does not exist, `MissingError` where nothing was fetched.
    """
    series, flavour = split_name(name)
    if name and (not series or Path(name).exists()):
        path = Path(name)
        if not path.is_file():
            raise InputError(
                f"{name}: no such kernel image; give a .deb, vmlinuz, bzImage or vmlinux, or a "
                "series such as 6.12 that `guestemu kernel fetch` has fetched"
            )
        return path
    images = [
        image
        for image in fetched_images()
        if image.series == (series or image.series) and image.flavour == (flavour or image.flavour)
    ]
    usual = [image for image in images if image.flavour == DEFAULT_FLAVOUR]
    for image in (*usual, *images):
        return image.path
    what = f"no {name} kernel" if name else "no kernel"
    raise MissingError(
        f"{what} in {kernel_directory()}; run `guestemu kernel fetch{' ' + name if name else ''}` "
        "or pass a .deb, vmlinuz, bzImage or vmlinux"
    )
