# SPDX-License-Identifier: GPL-2.0-or-later
"""Real kernels for tests: fetched once, booted once for each configuration, rolled back per test.

Without a kernel these tests fail: they are what holds the models to the real thing. Where none can
be had, GUESTEMU_NO_KERNEL=1 skips them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestemu.abi.errors import GuestemuError
from guestemu.abi.regions import Region
from guestemu.events.exits import HypercallExit
from guestemu.events.memory import LeafChange
from guestemu.guest.linux import load
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.images import (
    DEFAULT_FLAVOUR,
    cache_root,
    fetched_images,
    kernel_directory,
)
from guestemu.guest.linux.load import LOADER, LinuxLoader, linux_config
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.kernel.apt import SERIES, Archive
from guestemu.kernel.sources import SUITES

BUDGET = 10_000_000
LARGE_MEMORY = 4096


def _image(series: str) -> Path:
    for image in fetched_images():
        if image.series == series and image.flavour == DEFAULT_FLAVOUR:
            return image.path
    archive = Archive(cache_root() / "apt", SUITES, lambda _line: None)
    return archive.fetch(archive.find([series])[0], kernel_directory())


@pytest.fixture(scope="session")
def image_of() -> Callable[[str], Path]:
    """The package of a series, fetched if need be."""
    if os.environ.get("GUESTEMU_NO_KERNEL") == "1":
        pytest.skip("GUESTEMU_NO_KERNEL=1: no real kernel here")
    found: dict[str, Path] = {}

    def image(series: str) -> Path:
        if series not in found:
            try:
                found[series] = _image(series)
            except GuestemuError as error:
                pytest.fail(
                    f"tests with a real kernel need Debian's cloud kernel {series}: {error} "
                    "(or set GUESTEMU_NO_KERNEL=1 to skip them)"
                )
        return found[series]

    return image


@pytest.fixture(params=SERIES)
def series(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def own_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands load guests of their own here: one whose instructions were counted stays slow."""
    monkeypatch.setattr(load, "LOADER", LinuxLoader())


class Bench:
    """A booted kernel with a host that answers 0 and keeps a log."""

    def __init__(self, guest: LinuxGuest) -> None:
        guest.reset()
        self.guest = guest
        self.recorder = BootRecorder()
        guest.machine.hooks.handler = self.recorder

    def gva(self, region: Region, page: int) -> int:
        return int(self.guest.gva(region, page))

    def hypercalls(self, region: Region) -> list[tuple[int, int, int]]:
        """(page in the region, pages, attributes) of every MAP_GPA_RANGE since the last call."""
        first = int(self.guest.gpa(region, 0))
        calls = [
            (told.args[0] - first >> 12, told.args[1], told.args[2])
            for told in self.recorder.exits
            if isinstance(told, HypercallExit) and told.nr == 12
        ]
        self.recorder.exits.clear()
        return calls

    def flips(self) -> list[LeafChange]:
        """C-bit changes since the last call."""
        return self.guest.leaf_map.update(self.guest.machine.ram.table_writes())


@pytest.fixture
def kernel(series: str, image_of: Callable[[str], Path]) -> Iterator[Bench]:
    guest = LOADER.guest(image_of(series), linux_config(128, 39, "sev"), BUDGET)
    yield Bench(guest)
    guest.reset()


@pytest.fixture
def large_kernel(series: str, image_of: Callable[[str], Path]) -> Iterator[Bench]:
    """With enough memory for 1 GiB leaves."""
    guest = LOADER.guest(image_of(series), linux_config(LARGE_MEMORY, 39, "sev"), BUDGET)
    yield Bench(guest)
    guest.reset()
