# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of a kernel in user space: a read through its NVMe driver as an experiment. The newest
fetched kernel."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.bench.figure import Pair, Work
from guestemu.bench.kernel import with_kernel
from guestemu.bench.scene import BenchScene
from guestemu.guest.linux.load import LOADER
from guestemu.guest.linux.userland.initramfs import make_initramfs
from guestemu.guest.linux.userland.running import RunningKernel, command_line
from guestemu.guest.linux.userland.session import Setting, Userland
from guestemu.machine.machine import MachineConfig
from guestemu.native import guest_program
from guestemu.native.build import INIT

_FRAMES: Final = 128 << 20 >> PAGE_SHIFT
_READ: Final = "read /dev/nvme0n1 512 0"


def _reads(running: RunningKernel) -> Work:
    """Reads, one after the other."""

    def run(count: int) -> None:
        for _ in range(count):
            running.command(_READ)

    return run


@functools.lru_cache(maxsize=1)
def _experiments(image: Path) -> Work:
    """Reads with memory hooks on, each rolled back."""
    running = Userland(LOADER).start(image, Setting())
    running.checkpoint()

    def run(count: int) -> None:
        for _ in range(count):
            running.command(_READ)
            running.rollback()

    return run


def hooks(scene: BenchScene) -> Pair:
    """A read of 512 bytes through the NVMe driver and its rollback, memory hooks on, beside a read
    with hooks off."""
    against = "without hooks and rollback"

    def make(image: Path) -> Pair:
        floor = _reads(Userland(LOADER).start(image, Setting()))
        return Pair(_experiments(image), floor, against)

    return with_kernel(make, against)


def plain(scene: BenchScene) -> Pair:
    """The same beside a read in a machine without memory encryption: no bouncing, no hooks."""
    against = "without encryption"

    def make(image: Path) -> Pair:
        kernel = LOADER.kernel(image)
        running = RunningKernel(
            kernel,
            MachineConfig(frames=_FRAMES, cbit=None, sev_status=0),
            make_initramfs(guest_program(INIT), {}),
            devices=("nvme",),
            command_line=command_line(kernel, "sev"),
        )
        running.run()
        return Pair(_experiments(image), _reads(running), against)

    return with_kernel(make, against)
