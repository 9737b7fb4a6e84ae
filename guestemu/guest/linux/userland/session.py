# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel brought to user space with its devices' drivers loaded, and experiments from there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from guestemu.abi.errors import InputError
from guestemu.guest.linux.cache import CacheKey, build_id, cache_directory, mark_used, prune
from guestemu.guest.linux.kernel import Kernel
from guestemu.guest.linux.load import LinuxLoader, linux_config
from guestemu.guest.linux.snapshot import SnapshotMismatch
from guestemu.guest.linux.userland.cpus import with_cpus
from guestemu.guest.linux.userland.initramfs import make_initramfs
from guestemu.guest.linux.userland.modules import VIRTIO_PCI, package_of, read_modules
from guestemu.guest.linux.userland.running import (
    COMMAND_BUDGET,
    RunningKernel,
    command_line,
)
from guestemu.guest.linux.userland.snapshot import load_running, save_running
from guestemu.machine.devices import find_device
from guestemu.machine.devices.disk import SECTOR
from guestemu.native import guest_program
from guestemu.native.build import INIT


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What a kernel runs with. `memory` in MiB, `append` is added to the command line; `modules` is
    the package with the modules, "" for the one that belongs to the image."""

    sev: str = "sev"
    memory: int = 128
    cbit: int = 39
    devices: tuple[str, ...] = ("nvme",)
    append: str = ""
    modules: str = ""
    cpus: int = 1


class Userland:
    """Kernels in user space, from a snapshot in the cache where there is one."""

    def __init__(self, loader: LinuxLoader, on_line: Callable[[str], None] | None = None) -> None:
        self._loader = loader
        self._on_line = on_line
        self.was_restored = False
        """Whether the last `start` took a snapshot."""

    def start(self, image: Path, setting: Setting, is_cold: bool = False) -> RunningKernel:
        """The kernel in `image`: PID 1 of this package waits for commands, modules are loaded.

        `is_cold` boots even where there is a snapshot. Raises `InputError` for what cannot be, and
        where the kernel does not arrive.
        """
        kernel = self._loader.kernel(image)
        devices = [find_device(name) for name in setting.devices]
        wanted = tuple(name for device in devices for name in device.MODULES)
        optional = tuple(name for device in devices for name in device.OPTIONAL_MODULES)
        package = Path(setting.modules) if setting.modules else package_of(image)
        names = (*VIRTIO_PCI, *optional, *wanted) if wanted or optional else ()
        files = read_modules(package, names, wanted)
        initramfs = make_initramfs(
            guest_program(INIT), {f"{name}.ko": data for name, data in files.items()}
        )
        made_from = CacheKey(
            (
                kernel.digest,
                msgspec.json.encode(setting).decode(),
                hashlib.sha256(initramfs).hexdigest(),
                build_id(),
            )
        ).name
        directory = cache_directory()
        file = None if directory is None else directory / f"{made_from}.user"
        if file is not None and not is_cold:
            restored = self._restore(kernel, setting, file, made_from)
            if restored is not None:
                return restored
        running = self._boot(kernel, setting, initramfs, tuple(files))
        if file is None:
            running.save_state()
        else:
            self._keep(file, running, made_from)
        return running

    def empty(self, image: Path, setting: Setting, key: bytes) -> RunningKernel:
        """A machine for the kernel in `image` that holds nothing yet, with `key` as its memory key:
        the destination of a migration."""
        return self._make(self._loader.kernel(image), setting, b"", load=False, key=key)

    def _make(
        self,
        kernel: Kernel,
        setting: Setting,
        initramfs: bytes,
        load: bool,
        key: bytes | None = None,
    ) -> RunningKernel:
        config = linux_config(setting.memory, setting.cbit, setting.sev)
        config = with_cpus(config, setting.cpus)
        return RunningKernel(
            kernel,
            config if key is None else msgspec.structs.replace(config, key=key),
            initramfs,
            devices=setting.devices,
            command_line=command_line(
                kernel, setting.sev, setting.append, setting.cpus, setting.devices
            ),
            on_line=self._on_line,
            load=load,
        )

    def _restore(
        self, kernel: Kernel, setting: Setting, file: Path, made_from: str
    ) -> RunningKernel | None:
        if not file.exists():
            return None
        running = self._make(kernel, setting, b"", load=False)
        try:
            load_running(file, running, made_from)
        except SnapshotMismatch:
            return None
        mark_used(file)
        self.was_restored = True
        return running

    def _boot(
        self, kernel: Kernel, setting: Setting, initramfs: bytes, modules: Sequence[str]
    ) -> RunningKernel:
        self.was_restored = False
        running = self._make(kernel, setting, initramfs, load=True)
        ended = running.run()
        if ended.reason != "idle":
            raise InputError(f"{kernel.name}: no user space: {ended.text}")
        for name in modules:
            loaded = running.command(f"mod /{name}.ko")
            if loaded.value:
                raise InputError(f"{kernel.name}: module {name}: error {-loaded.value}")
        return running

    @staticmethod
    def _keep(file: Path, running: RunningKernel, made_from: str) -> None:
        try:
            save_running(file, running, made_from)
        except OSError:
            running.save_state()  # the next run boots again
            return
        prune(file.parent)


class DeviceRead(msgspec.Struct, frozen=True):
    """One read through a device's real driver: `size` bytes that are, or are not, what the device
    holds; `error` is an errno, 0 for none."""

    device: str
    node: str
    size: int
    is_right: bool
    error: int


def read_device(running: RunningKernel, name: str, budget: int = COMMAND_BUDGET) -> DeviceRead:
    """Reads through the driver of device `name` and compares with what the device holds.

    Raises `InputError` for a device without a file to read, `CommandFailed`.
    """
    device = running.hardware.devices[name]
    if not device.NODE:
        raise InputError(f"device {name}: it has no file to read from")
    result = running.command(device.read_command(SECTOR, 0), budget)
    is_right = result.value == SECTOR and device.holds(result.data)
    return DeviceRead(name, device.NODE, len(result.data), is_right, max(-result.value, 0))
