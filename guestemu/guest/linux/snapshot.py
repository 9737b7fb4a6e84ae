# SPDX-License-Identifier: GPL-2.0-or-later
"""A prepared kernel guest in a file: boot once, restore in a fraction of a second.

The file is Zstandard over MessagePack: a header that says what made it, the CPU context (opaque,
good for the same build of the emulator only), the platform's state, the placed regions, and every
page of either view that is current and not zero. A file that does not fit (other kernel, other
library, other configuration, damaged) is refused by `SnapshotMismatch`, and the caller boots again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import unicorn
import zstandard

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.regions import Region
from guestemu.events.base import kind_of
from guestemu.events.exits import HypercallExit, MapGpaRangeExit, WrmsrExit
from guestemu.guest.base import BootExit, PlacedRegion
from guestemu.guest.linux.boot import BootedKernel, build_machine
from guestemu.guest.linux.cache import read_sealed, write_sealed
from guestemu.guest.linux.es import EsState
from guestemu.guest.linux.kernel import Kernel
from guestemu.guest.linux.platform import Console
from guestemu.guest.linux.prepare import Prepared
from guestemu.machine.engine import Context
from guestemu.machine.exits import Trap
from guestemu.machine.machine import Machine, MachineConfig
from guestemu.machine.resident import resident_pages

FORMAT: Final = 4
_LEVEL: Final = 1


class SnapshotMismatch(Exception):
    """The file is not a snapshot of what was asked for; the text says why."""


class _Header(msgspec.Struct, frozen=True):
    format: int
    unicorn: str
    digest: str
    config: MachineConfig
    command_line: str
    context_size: int


class _Body(msgspec.Struct, frozen=True):
    header: _Header
    context: bytes
    platform_msrs: dict[int, int]
    tsc: int
    console: str
    regions: dict[int, PlacedRegion]
    private: dict[int, bytes]
    shared: dict[int, bytes]
    shared_frames: list[int]
    shared_current: list[int]
    boot_exits: list[tuple[str, int, tuple[int, ...]]]
    sev: EsState | None
    sept: bytes


def _header(kernel: Kernel, config: MachineConfig, command_line: str, size: int) -> _Header:
    return _Header(FORMAT, unicorn.__version__, kernel.digest, config, command_line, size)


def save_snapshot(path: Path, prepared: Prepared, command_line: str) -> int:
    """Writes `prepared` to `path` (through a temporary file); returns its size in bytes.

    Raises OSError where it cannot be written.
    """
    booted = prepared.booted
    machine = booted.machine
    context = Context(machine.engine)
    shared = set(prepared.shared_current)
    body = _Body(
        header=_header(booted.kernel, machine.config, command_line, len(context.bytes)),
        context=bytes(context.bytes),
        platform_msrs=dict(machine.msrs.platform),
        tsc=booted.platform.tsc,
        console=booted.console.text,
        regions={int(region): placed for region, placed in prepared.regions.items()},
        private=_pages(machine, machine.ram.private, lambda gfn: gfn not in shared),
        shared=_pages(machine, machine.ram.shared, lambda gfn: gfn in shared),
        shared_frames=prepared.shared_frames,
        shared_current=prepared.shared_current,
        boot_exits=[(_kept_kind(one), one.nr, one.args) for one in prepared.boot_exits],
        sev=booted.platform.sev.save() if booted.platform.sev is not None else None,
        sept=booted.platform.td.sept.dump() if booted.platform.td is not None else b"",
    )
    compressor = zstandard.ZstdCompressor(level=_LEVEL, threads=-1, write_checksum=True)
    data = compressor.compress(msgspec.msgpack.encode(body))
    write_sealed(path, data)
    return len(data)


def _pages(machine: Machine, view: memoryview, wanted: Callable[[int], bool]) -> dict[int, bytes]:
    """The pages of one view that are wanted and not zero."""
    zero = bytes(PAGE_SIZE)
    pages = {}
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    for gfn in resident_pages(address, machine.ram.frames):
        page = view[gfn * PAGE_SIZE : (gfn + 1) * PAGE_SIZE]
        if wanted(gfn) and (content := bytes(page)) != zero:
            pages[gfn] = content
    return pages


def _check_places(path: Path, body: _Body, frames: int) -> None:
    """Raises `SnapshotMismatch` for pages and frames that the machine does not have."""
    pages = [*body.private.items(), *body.shared.items()]
    numbers = [*body.shared_frames, *body.shared_current, *(gfn for gfn, _ in pages)]
    if any(len(page) != PAGE_SIZE for _, page in pages) or not all(
        0 <= gfn < frames for gfn in numbers
    ):
        raise SnapshotMismatch(f"{path}: has pages that the machine has not")
    if any(number not in set(Region) for number in body.regions):
        raise SnapshotMismatch(f"{path}: has a region that does not exist")


def load_snapshot(path: Path, kernel: Kernel, config: MachineConfig, command_line: str) -> Prepared:
    """A machine as `save_snapshot` left it. Raises `SnapshotMismatch` with the reason."""
    packed = read_sealed(path)
    if packed is None:
        raise SnapshotMismatch(f"{path}: its checksum is wrong, or it was written for another name")
    try:
        data = zstandard.ZstdDecompressor().decompress(packed)
        body = msgspec.msgpack.decode(data, type=_Body)
    except (OSError, zstandard.ZstdError, msgspec.MsgspecError, MemoryError) as error:
        raise SnapshotMismatch(f"{path}: {error}") from None
    _check_places(path, body, config.frames)
    console = Console()
    expected = _header(kernel, config, command_line, body.header.context_size)
    if body.header != expected:
        raise SnapshotMismatch(f"{path}: made for another kernel, configuration or emulator")
    bare = msgspec.structs.replace(config, defer_memory_hooks=True)
    machine, platform = build_machine(kernel, bare, console, load=False)
    context = Context(machine.engine)
    if len(context.bytes) != body.header.context_size:
        raise SnapshotMismatch(f"{path}: the emulator's context has another size")
    for view, pages in ((machine.ram.private, body.private), (machine.ram.shared, body.shared)):
        for gfn, page in pages.items():
            view[gfn * PAGE_SIZE : (gfn + 1) * PAGE_SIZE] = page
    context.bytes[:] = body.context
    context.restore()
    machine.engine.flush_tlb()
    machine.hooks.forget_code()
    machine.msrs.platform.update(body.platform_msrs)
    if platform.sev is not None and body.sev is not None:
        platform.sev.load(body.sev)
    if platform.td is not None:
        platform.td.sept.load(body.sept)
    platform.tsc = body.tsc
    console.resume(body.console)
    stop = Trap(machine.current.read_register("rip"))
    platform.hook_stop(stop.rip)
    booted = BootedKernel(kernel, machine, platform, console, stop, 0.0)
    regions = {Region(number): placed for number, placed in body.regions.items()}
    boot_exits = [_boot_exit(*one) for one in body.boot_exits]
    return Prepared(booted, regions, body.shared_frames, body.shared_current, boot_exits)


def _kept_kind(exit_: BootExit) -> str:
    """How a snapshot names the exit: its kind, and the way of a page-state change."""
    if isinstance(exit_, MapGpaRangeExit):
        return f"{kind_of(exit_)} {exit_.origin}"
    return kind_of(exit_)


def _boot_exit(kind: str, nr: int, args: tuple[int, ...]) -> BootExit:
    """The exit that `_kept_kind` named."""
    name, _, origin = kind.partition(" ")
    if name == kind_of(WrmsrExit):
        return WrmsrExit(nr, args, args[0], 0)
    if origin:
        return MapGpaRangeExit(nr, args, 0, 0, origin=origin)
    return HypercallExit(nr, args, 0, 0)
