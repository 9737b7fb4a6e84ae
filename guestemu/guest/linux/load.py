# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel image made a guest: analysed, booted and prepared once for each configuration.

Booting costs seconds, putting a booted guest back costs microseconds. So guests are kept:
requests for the same image in the same configuration get the same guest, one after the other.
Other processes get it from the user's cache (cache.py): a quarter of a second instead of four.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.errors import InputError
from guestemu.abi.msrs import SEV_STATUS_SEV, SEV_STATUS_SEV_ES, SEV_STATUS_SEV_SNP
from guestemu.guest.linux.analysed import load_analysis, save_analysis
from guestemu.guest.linux.boot import DEFAULT_COMMAND_LINE, STOP_AT, boot_kernel
from guestemu.guest.linux.cache import (
    CacheKey,
    build_id,
    cache_directory,
    file_digest,
    mark_used,
    prune,
)
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.kernel import Kernel, load_kernel
from guestemu.guest.linux.prepare import prepare
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.guest.linux.snapshot import SnapshotMismatch, load_snapshot, save_snapshot
from guestemu.guest.linux.symbol_map import stamp_beside
from guestemu.machine.machine import Machine, MachineConfig

BUDGET_FACTOR: Final = 10
"""A program's budget is made for snippets. A real kernel takes up to ten times as long for the same
operation: a WARN prints a stack trace, and 6.1 copies by REP MOVSB, a block for each byte."""

MIN_MEMORY: Final = 128
"""MiB. A header that asks for less gets this much: snippets run in 64, no kernel does."""

_TDX: Final = "tdx"
_SEV_STATUS: Final = {
    "sev": SEV_STATUS_SEV,
    "es": SEV_STATUS_SEV | SEV_STATUS_SEV_ES,
    "snp": SEV_STATUS_SEV | SEV_STATUS_SEV_ES | SEV_STATUS_SEV_SNP,
    _TDX: 0,
}


def linux_config(memory: int, cbit: int, sev: str, coherent: bool = True) -> MachineConfig:
    """The machine for a Linux guest: `memory` in MiB, `sev` as in program headers, `cbit` the
    number of the C-bit or of a TD's shared bit.

    Raises `InputError` for what cannot be.
    """
    status = _SEV_STATUS.get(sev)
    if status is None:
        known = ", ".join(_SEV_STATUS)
        raise InputError(f"sev {sev}: a linux guest runs as {known}")
    if cbit not in range(32, 52):
        raise InputError(f"cbit {cbit}: take a bit from 32 to 51 (39 is the fast one)")
    size = memory << 20
    if size > 1 << cbit:
        raise InputError(f"memory {memory} MiB reaches the C-bit; raise cbit or take less")
    return MachineConfig(
        frames=size >> PAGE_SHIFT,
        cbit=cbit,
        sev_status=status,
        coherent=coherent,
        tdx=sev == _TDX,
    )


class _Key(msgspec.Struct, frozen=True):
    digest: str
    config: MachineConfig
    command_line: str
    until: str


class LinuxLoader:
    """Analysed kernels by file and booted guests by (kernel, configuration, command line)."""

    def __init__(
        self,
        complain: Callable[[str], None] | None = None,
        watch: Callable[[Machine], None] | None = None,
    ) -> None:
        """`complain` is called once, with one line, if the cache cannot be written (default:
        standard error). `watch` is called with each machine before its kernel's first instruction;
        booted guests come from no cache then, and go into none."""
        self._complain = complain or _to_stderr
        self._watch = watch
        self._has_complained = False
        self._kernels: dict[tuple[Path, int, int], Kernel] = {}
        self._guests: dict[_Key, LinuxGuest] = {}

    def kernel(self, path: Path) -> Kernel:
        """The analysed kernel in `path`. Raises `InputError`."""
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        key = (path.resolve(), status.st_mtime_ns, status.st_size)
        kernel = self._kernels.get(key)
        if kernel is None:
            kernel = self._kernels[key] = self._analyse(path)
        return kernel

    def _analyse(self, path: Path) -> Kernel:
        directory = cache_directory()
        if directory is None:
            return load_kernel(path)
        key = CacheKey((file_digest(path), build_id(), stamp_beside(path)))
        file = directory / f"{key.name}.kernel"
        kernel = load_analysis(file, path.name, lambda: load_kernel(path))
        if kernel is None:
            kernel = load_kernel(path)
            self._keep(file, functools.partial(save_analysis, file, kernel))
        else:
            mark_used(file)
        return kernel

    def guest(
        self,
        path: Path,
        config: MachineConfig,
        budget: int,
        command_line: str = DEFAULT_COMMAND_LINE,
        until: str = STOP_AT,
    ) -> LinuxGuest:
        """The kernel in `path`, booted to the function `until` and prepared; `budget` bounds each
        operation, in basic blocks, and may differ from call to call.

        Raises `InputError` for an image or a configuration that does not boot.
        """
        kernel = self.kernel(path)
        key = _Key(kernel.digest, config, command_line, until)
        guest = self._guests.get(key)
        if guest is None:
            guest = self._guests[key] = self._boot(kernel, budget, key)
        guest.set_budget(budget)
        guest.reset()
        return guest

    def _boot(self, kernel: Kernel, budget: int, key: _Key) -> LinuxGuest:
        config, command_line = key.config, key.command_line
        directory = cache_directory() if self._watch is None else None
        machine = msgspec.json.encode(config).decode()
        parts = (kernel.digest, machine, command_line, key.until, build_id())
        file = None if directory is None else directory / f"{CacheKey(parts).name}.guest"
        if file is not None and file.exists():
            try:
                prepared = load_snapshot(file, kernel, config, command_line)
            except SnapshotMismatch:
                pass  # damaged, or not ours: booted anew and written over
            else:
                mark_used(file)
                return LinuxGuest(prepared, budget)
        recorder = BootRecorder()
        booted = boot_kernel(
            kernel,
            config,
            recorder,
            until=key.until,
            command_line=command_line,
            watch=self._watch,
        )
        # what regions cost, the host need not hear: no page changes its status
        prepared = prepare(booted, list(recorder.exits))
        if file is not None:
            self._keep(file, functools.partial(save_snapshot, file, prepared, command_line))
        return LinuxGuest(prepared, budget)

    def _keep(self, file: Path, save: Callable[[], object]) -> None:
        """Adds a file to the cache, if that can be."""
        try:
            save()
        except OSError as error:
            if not self._has_complained:
                self._has_complained = True
                self._complain(
                    f"guestemu: {file.parent}: booted kernels are not kept ({error.strerror}); "
                    f"each start takes seconds"
                )
            return
        prune(file.parent)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


LOADER: Final = LinuxLoader()
"""The process's own."""
