# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel fetch` does."""

from __future__ import annotations

from collections.abc import Sequence
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


def tell_list(offers: Sequence[PackageOffer]) -> None:
    """For people."""
    for offer in offers:
        mark = "  fetched" if offer.path is not None else ""
        console.emit(f"{offer.name:<12} {offer.version:<24} {offer.size / 1e6:4.0f} MB{mark}")
