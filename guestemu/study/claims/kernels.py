# SPDX-License-Identifier: GPL-2.0-or-later
"""Real kernels for experiments: booted once in a process, put back before each use."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from guestemu.abi.msrs import MSR_KVM_MIGRATION_CONTROL
from guestemu.events.exits import HypercallExit, WrmsrExit
from guestemu.guest.base import CallOutcome
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.images import fetched_images, find_image
from guestemu.guest.linux.load import LOADER, linux_config
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.guest.registry import guests

MEMORY: Final = 128
"""MiB of a kernel's RAM."""

BUDGET: Final = 10_000_000
"""Basic blocks of one call."""

_LINUX: Final = "linux:"


def found_kernels() -> tuple[str, ...]:
    """The kernels that this machine has, as `--guest` takes them; oldest first."""
    if not fetched_images():
        return ()
    return tuple(entry.name for entry in guests() if entry.name.startswith(_LINUX))


def image(name: str) -> Path:
    """The file behind a name of `Lab.kernels`. Raises `InputError`, `MissingError`."""
    return find_image(name.removeprefix(_LINUX))


class CalledKernel:
    """A kernel booted as a guest of kind `sev` ("sev", "es"), its exits answered with `answer` and
    kept."""

    def __init__(self, name: str, answer: int = 0, sev: str = "sev") -> None:
        self.name = name
        self.guest: LinuxGuest = LOADER.guest(image(name), linux_config(MEMORY, 39, sev), BUDGET)
        self.recorder = BootRecorder(answer)
        self.guest.machine.hooks.handler = self.recorder

    def call(self, function: str, *arguments: int) -> CallOutcome:
        """Calls a kernel function; the exits before it are forgotten."""
        self.recorder.exits.clear()
        return self.guest.call(function, *arguments)

    @property
    def migration_control(self) -> tuple[int, ...]:
        """What the last call wrote to MIGRATION_CONTROL."""
        return tuple(
            told.args[0]
            for told in self.recorder.exits
            if isinstance(told, WrmsrExit) and told.nr == MSR_KVM_MIGRATION_CONTROL
        )

    @property
    def hypercalls(self) -> tuple[tuple[int, ...], ...]:
        """Arguments of the hypercalls of the last call."""
        return tuple(told.args for told in self.recorder.exits if isinstance(told, HypercallExit))
