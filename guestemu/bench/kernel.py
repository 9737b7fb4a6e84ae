# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of the real-kernel guest: a call, a boot, a restored boot. The newest fetched kernel."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from guestemu.abi.errors import MissingError
from guestemu.abi.regions import Region
from guestemu.bench.figure import Pair, Work
from guestemu.bench.scene import BenchScene, NoHost
from guestemu.guest.base import Guest
from guestemu.guest.linux.boot import DEFAULT_COMMAND_LINE, boot_kernel
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.images import find_image
from guestemu.guest.linux.load import LOADER, linux_config
from guestemu.guest.linux.prepare import prepare
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.guest.linux.snapshot import load_snapshot, save_snapshot

_MEMORY: Final = 128
_BUDGET: Final = 10_000_000
_CONFIG: Final = linux_config(_MEMORY, 39, "sev")


def with_kernel(make: Callable[[Path], Pair], against: str) -> Pair:
    """The pair that `make` prepares for the newest fetched kernel; without one, a note."""
    try:
        return make(find_image(""))
    except MissingError:
        return Pair(None, None, against, note="no kernel here: run `guestemu kernel fetch`")


def _conversions(guest: Guest) -> Work:
    gva = guest.gva(Region.D, 3)
    hooks = guest.machine.hooks

    def run(count: int) -> None:
        handler, hooks.handler = hooks.handler, NoHost()
        for _ in range(count):
            guest.reset()
            guest.set_memory_decrypted(gva, 1)
        hooks.handler = handler

    return run


def call(scene: BenchScene) -> Pair:
    """Reset and set_memory_decrypted() of one page on a 4 KiB leaf in a real kernel, beside the
    snippet's."""
    against = "the snippet's"

    def make(image: Path) -> Pair:
        guest = LOADER.guest(image, _CONFIG, _BUDGET)
        return Pair(_conversions(guest), _conversions(scene.testbed.guest), against)

    return with_kernel(make, against)


class _File:
    """A guest's file as the cache keeps it, in a directory that goes with this object."""

    def __init__(self, image: Path) -> None:
        self.kernel = LOADER.kernel(image)
        self._directory = tempfile.TemporaryDirectory(prefix="guestemu-bench-")
        self.path = Path(self._directory.name) / "guest"
        recorder = BootRecorder()
        booted = boot_kernel(self.kernel, _CONFIG, recorder)
        save_snapshot(self.path, prepare(booted, list(recorder.exits)), DEFAULT_COMMAND_LINE)
        booted.machine.close()

    def restore(self, count: int) -> None:
        """Makes guests of it."""
        for _ in range(count):
            prepared = load_snapshot(self.path, self.kernel, _CONFIG, DEFAULT_COMMAND_LINE)
            LinuxGuest(prepared, _BUDGET).machine.close()

    def read(self, count: int) -> None:
        """Reads its bytes."""
        for _ in range(count):
            self.path.read_bytes()

    def boot(self, count: int) -> None:
        """Boots the kernel that it was made of."""
        for _ in range(count):
            boot_kernel(self.kernel, _CONFIG, BootRecorder()).machine.close()


@functools.lru_cache(maxsize=1)
def _file(image: Path) -> _File:
    return _File(image)


def restore(scene: BenchScene) -> Pair:
    """A prepared kernel guest from its file in the cache, beside reading that file."""
    against = "reading the file"

    def make(image: Path) -> Pair:
        file = _file(image)
        return Pair(file.restore, file.read, against)

    return with_kernel(make, against)


def boot(scene: BenchScene) -> Pair:
    """A boot of an analysed kernel to rest_init, beside restoring a prepared one from its file."""
    against = "restoring"

    def make(image: Path) -> Pair:
        file = _file(image)
        return Pair(file.boot, file.restore, against)

    return with_kernel(make, against)
