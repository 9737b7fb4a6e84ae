# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel in user space, kept in a file.

A boot to user space takes 5 to 20 seconds, mapping this file a few milliseconds (fact U24): guest
memory lies in it page by page, with holes for pages that are zero, and is mapped copy-on-write over
the machine's own buffers. The record in front of it has a checksum and names what it was made from;
memory has none, because reading it would cost what the file saves.
"""

from __future__ import annotations

import ctypes
import errno
import hmac
import mmap
import os
from pathlib import Path
from typing import Final

import msgspec
import unicorn

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.events.exits import HypercallExit, MapGpaRangeExit, WrmsrExit
from guestemu.guest.linux.cache import SEAL_SIZE, cache_file, open_own, seal
from guestemu.guest.linux.es import EsState
from guestemu.guest.linux.snapshot import SnapshotMismatch
from guestemu.guest.linux.userland.running import RunningKernel, RunState
from guestemu.machine.engine import Context
from guestemu.machine.resident import resident_pages

FORMAT: Final = 3
_LENGTH: Final = 8
_MAX_RECORD: Final = 64 << 20


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A run between two basic blocks, all but its memory: what a snapshot keeps and what a
    migration hands over. `contexts` are the registers of each CPU, empty for one that has not
    executed yet; they fit the same build of the emulator only."""

    contexts: list[bytes]
    segments: tuple[int, bytes]
    msrs: dict[int, int]
    console: str
    parts: list[bytes]
    exits: list[HypercallExit | MapGpaRangeExit | WrmsrExit]
    state: RunState
    sev: EsState | None
    sept: bytes


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot file holds in front of memory. `made_from` names kernel, machine, initramfs
    and devices."""

    format: int
    unicorn: str
    made_from: str
    run: RunRecord


def capture_run(running: RunningKernel) -> RunRecord:
    """The run as it is; see `RunningKernel.save_state` for its hash."""
    machine, platform = running.machine, running.platform
    segments = machine.current.kernel_segments
    if segments is None:
        raise ValueError("the kernel has not reached user space")
    return RunRecord(
        contexts=running.save_contexts(),
        segments=segments.state,
        msrs=dict(machine.msrs.platform),
        console=running.console.text,
        parts=[part.dump() for part in running.hardware.parts],
        exits=list(running.recorder.exits),
        state=running.save_state(),
        sev=platform.sev.save() if platform.sev is not None else None,
        sept=platform.td.sept.dump() if platform.td is not None else b"",
    )


def take_over(running: RunningKernel, record: RunRecord) -> None:
    """Makes `running`, which has executed nothing and has the memory already, what `record` is of.
    Devices and machine must be of the same kind."""
    machine, platform = running.machine, running.platform
    running.attach_segments(record.segments)
    machine.hooks.forget_code()
    machine.msrs.platform.update(record.msrs)
    for part, data in zip(running.hardware.parts, record.parts, strict=True):
        part.restore(data)
    running.load_contexts(record.contexts)
    if platform.sev is not None and record.sev is not None:
        platform.sev.load(record.sev)
    if platform.td is not None:
        platform.td.sept.load(record.sept)
    running.console.resume(record.console)
    running.recorder.exits[:] = record.exits
    running.load_state(record.state)
    for exit_ in record.exits:
        running.rules.hear(exit_)


def save_running(path: Path, running: RunningKernel, made_from: str) -> None:
    """Writes `running`, whose PID 1 is idle, to `path` through a temporary file. Raises OSError."""
    ram = running.machine.ram
    head = _Head(
        format=FORMAT,
        unicorn=unicorn.__version__,
        made_from=made_from,
        run=capture_run(running),
    )
    body = msgspec.msgpack.encode(head)
    with cache_file(path) as file:
        file.write(len(body).to_bytes(_LENGTH, "little") + seal(path, body) + body)
        start = _memory_at(len(body))
        for view in (ram.private, ram.shared):
            _write_view(file.fileno(), start, view)
            start += len(view)
        file.truncate(start)


def _memory_at(size: int) -> int:
    """Where memory begins behind a record of `size` bytes."""
    return _LENGTH + SEAL_SIZE + size + PAGE_SIZE - 1 & ~(PAGE_SIZE - 1)


def _write_view(file: int, start: int, view: memoryview) -> None:
    zero = bytes(PAGE_SIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    for gfn in resident_pages(address, len(view) // PAGE_SIZE):
        at = gfn * PAGE_SIZE
        page = bytes(view[at : at + PAGE_SIZE])
        if page != zero:
            os.pwrite(file, page, start + at)


def load_running(path: Path, running: RunningKernel, made_from: str) -> None:
    """Makes `running`, which has executed nothing, what `save_running` wrote.

    Raises `SnapshotMismatch` with the reason; `running` is unchanged then.
    """
    try:
        with open(path, "rb", opener=open_own) as file:
            record, start = _read_record(path, file.fileno(), made_from)
            _check(path, running, record, os.fstat(file.fileno()).st_size - start)
            for view in (running.machine.ram.private, running.machine.ram.shared):
                _map_view(file.fileno(), start, view)
                running.mapped += _data_of(file.fileno(), start, view)
                start += len(view)
    except OSError as error:
        raise SnapshotMismatch(f"{path}: {error.strerror}") from None
    take_over(running, record)


def _read_record(path: Path, file: int, made_from: str) -> tuple[RunRecord, int]:
    head = os.pread(file, _LENGTH + SEAL_SIZE, 0)
    size = int.from_bytes(head[:_LENGTH], "little")
    body = os.pread(file, size, _LENGTH + SEAL_SIZE) if size <= _MAX_RECORD else b""
    if not hmac.compare_digest(head[_LENGTH:], seal(path, body)):
        raise SnapshotMismatch(f"{path}: its checksum is wrong")
    try:
        found = msgspec.msgpack.decode(body, type=_Head)
    except (msgspec.MsgspecError, MemoryError) as error:
        raise SnapshotMismatch(f"{path}: {error}") from None
    expected = (FORMAT, unicorn.__version__, made_from)
    if (found.format, found.unicorn, found.made_from) != expected:
        raise SnapshotMismatch(f"{path}: made from something else")
    return found.run, _memory_at(size)


def _check(path: Path, running: RunningKernel, record: RunRecord, memory: int) -> None:
    """Raises `SnapshotMismatch` for a record that does not fit the machine."""
    ram = running.machine.ram
    size = len(Context(running.machine.engine).bytes)
    contexts = record.contexts
    if (
        len(contexts) != len(running.machine.vcpus)
        or any(len(context) not in {0, size} for context in contexts)
        or len(record.parts) != len(running.hardware.parts)
    ):
        raise SnapshotMismatch(f"{path}: made for another emulator or other devices")
    if memory != len(ram.private) + len(ram.shared):
        raise SnapshotMismatch(f"{path}: the file is cut off or made for another memory size")


def _data_of(file: int, start: int, view: memoryview) -> list[memoryview]:
    """The parts of `view` that are not holes of the file behind it. Raises OSError."""
    found = []
    end = start + len(view)
    at = start
    while at < end:
        try:
            first = os.lseek(file, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                break
            raise
        at = min(os.lseek(file, first, os.SEEK_HOLE), end)
        if first < end:
            found.append(view[(first - start) & ~(PAGE_SIZE - 1) : at - start])
    return found


def _map_view(file: int, start: int, view: memoryview) -> None:
    """Maps the file copy-on-write over the buffer of `view`. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    call = library.mmap
    call.restype = ctypes.c_void_p
    call.argtypes = (
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
        *(ctypes.c_int, ctypes.c_int, ctypes.c_long),
    )
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    flags = mmap.MAP_PRIVATE | _MAP_FIXED
    if call(address, len(view), protection, flags, file, start) != address:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_MAP_FIXED: Final = 0x10
"""Linux; Python has no name for it."""
