# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel fetch` does."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from guestemu.cli import console

if TYPE_CHECKING:
    from guestemu.kernel.apt import Archive


class Fetched(msgspec.Struct, frozen=True):
    """A kernel in the cache; `name` is what it is called wherever a guest is named."""

    name: str
    series: str
    flavour: str
    version: str
    path: str


class FetchedSource(msgspec.Struct, frozen=True):
    """Debian's source of a series, unpacked at `path`."""

    series: str
    version: str
    path: str


class PackageOffer(msgspec.Struct, frozen=True):
    """A kernel that can be fetched. `size` in bytes; `path` where it is in the cache already."""

    name: str
    series: str
    flavour: str
    version: str
    package: str
    size: int
    path: str | None


def _archive(suites: Sequence[str]) -> Archive:
    from guestemu.guest.linux.images import cache_root
    from guestemu.kernel.apt import Archive
    from guestemu.kernel.sources import SUITES

    return Archive(cache_root() / "apt", suites or SUITES, console.note)


def list_kernels(names: Sequence[str], suites: Sequence[str]) -> list[PackageOffer]:
    """What there is, newest of every series and flavour; only `names` if there are some."""
    from guestemu.guest.linux.images import kernel_directory

    archive = _archive(suites)
    directory = kernel_directory()
    offers = []
    for package in archive.find(names) if names else archive.newest():
        path = directory / package.file
        offers.append(
            PackageOffer(
                name=package.title,
                series=package.series,
                flavour=package.flavour,
                version=package.version,
                package=package.name,
                size=package.size,
                path=str(path) if path.is_file() else None,
            )
        )
    return offers


def fetch_kernels(
    names: Sequence[str], suites: Sequence[str], *, modules: bool = False
) -> list[Fetched]:
    """Downloads, with `modules` those in packages of their own. Raises `InputError`,
    `MissingError`."""
    from guestemu.guest.linux.images import kernel_directory
    from guestemu.kernel.apt import WANTED_BY_TESTS

    archive = _archive(suites)
    directory = kernel_directory()
    rows = []
    for package in archive.find(names or WANTED_BY_TESTS):
        console.note(f"{package.name} {package.version}, {package.size / 1e6:.0f} MB")
        path = archive.fetch(package, directory, modules=modules)
        rows.append(
            Fetched(package.title, package.series, package.flavour, package.version, str(path))
        )
    return rows


def fetch_sources(names: Sequence[str], suites: Sequence[str]) -> list[FetchedSource]:
    """Downloads Debian's source of each series and unpacks it into linux-source-SERIES of the
    current directory. The packages are not kept.

    Raises `InputError` without a name and for a directory that exists, `MissingError` for what this
    machine lacks, with the words of the program that failed.
    """
    from guestemu.abi.errors import InputError
    from guestemu.guest.linux.images import cache_root

    if not names:
        raise InputError("--source: name a series; `guestemu kernel fetch --list` shows all")
    archive = _archive(suites)
    directory = cache_root() / "sources"
    rows = []
    for series in dict.fromkeys(package.series for package in archive.find(names)):
        target = Path(f"linux-source-{series}")
        if target.exists():
            raise InputError(f"{target}: is there already; remove it, or work in another directory")
        console.note(f"source of {series}, about 150 MB")
        version, package = archive.fetch_source(series, directory)
        console.note(f"unpacking {package.name}")
        _unpack_source(package, target)
        package.unlink()
        rows.append(FetchedSource(series, version, str(target)))
    return rows


def _unpack_source(package: Path, target: Path) -> None:
    """Puts the tree in the archive in `package` at `target`."""
    from guestemu.abi.errors import InputError, MissingError
    from guestemu.kernel.apt import run_command

    try:
        scratch = tempfile.mkdtemp(dir=".", prefix=".linux-source-")
    except OSError as error:
        raise InputError(f"{Path.cwd()}: cannot be written: {error.strerror}") from error
    tree = Path(scratch, target.name)
    archive = Path(scratch, "usr/src", f"{target.name}.tar.xz")
    try:
        for command in (
            ["dpkg-deb", "-x", str(package), scratch],
            ["tar", "-xf", str(archive), "-C", scratch],
        ):
            if shutil.which(command[0]) is None:
                raise MissingError(f"no {command[0]} on this machine; install dpkg, tar, xz-utils")
            result = run_command(command, None)
            if result.returncode:
                words = (result.stderr.strip().splitlines() or [f"status {result.returncode}"])[-1]
                raise MissingError(f"{package.name} cannot be unpacked: {words}")
        if not (tree / "Kbuild").is_file():
            raise MissingError(f"{package.name} holds no kernel source at {target.name}")
        tree.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def tell_list(offers: Sequence[PackageOffer]) -> None:
    """For people."""
    for offer in offers:
        mark = "  fetched" if offer.path is not None else ""
        console.emit(f"{offer.name:<12} {offer.version:<24} {offer.size / 1e6:4.0f} MB{mark}")
