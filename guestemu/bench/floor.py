# SPDX-License-Identifier: GPL-2.0-or-later
"""The C floor: compiles `floor.c` at first use and sets it up with a booted guest's memory.

The shared object is kept in the user's cache directory under a name made from the source, so an
edit of the source is compiled anew. It runs in this process on the libunicorn that is already
loaded, with a CPU of its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Final

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.errors import EngineError, MissingError
from guestemu.abi.x86 import Mode
from guestemu.machine.engine import HOOK_BLOCK, HOOK_INSN_INVALID, REGISTERS, Context, Engine
from guestemu.machine.hooks import COUNTER_SIZE, BlockWatch
from guestemu.machine.layout import LOW_PAGES
from guestemu.machine.machine import Machine
from guestemu.machine.memory import GuestRam
from guestemu.machine.native import HostCode

COMPILERS: Final = ("cc", "gcc", "clang")
_FLAGS: Final = ("-O2", "-shared", "-fPIC", "-Wall")
_COMPILE_SECONDS: Final = 60
_MAX_INPUTS: Final = 8
_IN: Final = ("rip", "rax", "rbx", "rcx", "rdx", "rsi", "cs")
_OUT: Final = ("rax", "rip")
_ZERO_PAGE: Final = bytes(PAGE_SIZE)


class _Page(ctypes.Structure):
    _fields_ = (("live", ctypes.c_void_p), ("base", ctypes.c_void_p))


class FloorCall(ctypes.Structure):
    """`struct call`: a function, and values of the registers that the floor was made with."""

    _fields_ = (("rip", ctypes.c_uint64), ("inputs", ctypes.c_uint64 * _MAX_INPUTS))


class FloorProgram(ctypes.Structure):
    """`struct program`."""

    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("first_call", "calls", "first_page", "pages", "flush")
    )


class FloorState(ctypes.Structure):
    """`struct floor` of floor.c: everything one CPU's loop works on."""

    _fields_ = (
        ("uc", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
        ("rip", ctypes.c_uint64),
        ("input_ids", ctypes.c_int * _MAX_INPUTS),
        ("inputs", ctypes.c_uint64 * _MAX_INPUTS),
        ("input_count", ctypes.c_uint64),
        ("in_ids", ctypes.c_int * (len(_IN) + 1)),
        ("out_ids", ctypes.c_int * len(_OUT)),
        ("pages", ctypes.c_void_p),
        ("page_count", ctypes.c_uint64),
        ("dirty", ctypes.c_uint64),
        ("dirty_count", ctypes.c_void_p),
        ("log_count", ctypes.c_void_p),
        ("flags", ctypes.c_void_p),
        ("base_flags", ctypes.c_void_p),
        ("views", ctypes.c_uint64),
        ("blocks_left", ctypes.c_void_p),
        ("budget", ctypes.c_int64),
        ("flush", ctypes.c_uint64),
        ("bitmap", ctypes.c_void_p),
        ("frames", ctypes.c_uint64),
        ("hypercalls", ctypes.c_uint64),
        ("last", ctypes.c_uint64 * 4),
        ("result", ctypes.c_uint64),
        ("error", ctypes.c_uint64),
    )


def cache_directory() -> Path:
    """Where compiled floors are kept: $XDG_CACHE_HOME/guestemu or ~/.cache/guestemu."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "guestemu"


def find_compiler() -> str | None:
    """The first C compiler on the path, None without one."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def compile_floor(directory: Path) -> Path:
    """The shared object of `floor.c`, compiled into `directory` unless it is there already.

    Raises `MissingError` without a compiler, with one that fails, or where nothing can be written.
    """
    return compile_unit("floor", directory)


def compile_unit(name: str, directory: Path, *flags: str) -> Path:
    """The shared object of NAME.c beside this file. See `compile_floor`."""
    source = (files(__package__) / f"{name}.c").read_bytes()
    target = directory / f"{name}-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if target.exists():
        return target
    compiler = find_compiler()
    if compiler is None:
        raise MissingError(f"no C compiler ({', '.join(COMPILERS)}); install one for {name}.c")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            text = Path(scratch, f"{name}.c")
            text.write_bytes(source)
            made = Path(scratch, f"{name}.so")
            subprocess.run(
                [compiler, *_FLAGS, *flags, "-o", made, text, "-ldl"],
                check=True,
                capture_output=True,
                timeout=_COMPILE_SECONDS,
            )
            made.replace(target)
    except subprocess.SubprocessError as error:
        raise MissingError(f"{compiler} cannot compile {name}.c: {error}") from error
    except OSError as error:
        raise MissingError(f"{directory}: {error.strerror}; set XDG_CACHE_HOME") from error
    return target


class FloorLibrary:
    """The compiled floor, bound to the libunicorn of this process."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.PyDLL(str(path))
        code = self._library.floor_open(
            Engine.library_path().encode(), ctypes.c_uint32(Engine.FLUSH_TLB_COMMAND)
        )
        if code:
            raise EngineError("the C floor cannot open the emulator's library")
        self.run = self._library.floor_run
        self.programs = self._library.floor_programs
        self.fuzz = self._library.floor_fuzz
        self.one = ctypes.cast(self._library.floor_one, ctypes.c_void_p)
        """libFuzzer's target; `fuzz` says on which floor."""
        self.invalid_hook = ctypes.cast(self._library.floor_invalid, ctypes.c_void_p).value or 0


class Floor:
    """One CPU that runs one piece of a guest's code from C.

    `machine` is the booted one, at its checkpoint, whose memory and 64-bit context are taken over;
    `rip` and `registers` start each execution; `dirty` are the pages it writes, as indices of the
    dirty list; `hooks` adds guestemu's own native memory and block hooks.
    """

    def __init__(
        self,
        library: FloorLibrary,
        machine: Machine,
        rip: int,
        registers: dict[str, int],
        dirty: list[int],
        hooks: bool,
    ) -> None:
        self._run = library.run
        self._run_programs = library.programs
        self._engine = Engine()
        ram = machine.ram
        self._ram = GuestRam(self._engine, ram.frames, ram.bit, ram.cipher, LOW_PAGES)
        _copy_sparse(ram.private, self._ram.private)
        _copy_sparse(ram.shared, self._ram.shared)
        self._context = Context(self._engine)
        self._context.bytes[:] = machine.modes.context(Mode.LONG64, 0).bytes
        self.state = FloorState()
        self.counters = 0
        """Host address of the block counters; 0 without hooks."""
        self._keep: list[object] = []
        self._set_registers(rip, registers)
        self._set_pages(machine, dirty)
        self._set_host(ram.frames)
        if hooks:
            self._add_hooks(machine)
        self._engine.add_native_hook(HOOK_INSN_INVALID, library.invalid_hook, self.state)

    def run(self, count: int) -> None:
        """`count` executions. Raises `EngineError` if one did not end as the first."""
        self._run(ctypes.byref(self.state), ctypes.c_uint64(count))
        if self.state.error:
            raise EngineError(f"the C floor stopped with error {self.state.error}")

    def run_programs(
        self,
        calls: ctypes.Array[FloorCall],
        programs: ctypes.Array[FloorProgram],
        pages: ctypes.Array[ctypes.c_uint32],
    ) -> None:
        """Runs each of `programs` once; `pages` are indices of the dirty list, all of them among
        those that the floor was made with. Raises `EngineError` if one did not end as it should."""
        self.state.pages = ctypes.addressof(self._by_index)
        self.state.page_count = len(self._by_index)
        count = ctypes.c_uint64(len(programs))
        self._run_programs(ctypes.byref(self.state), calls, programs, pages, count)
        if self.state.error:
            raise EngineError(f"the C floor stopped with error {self.state.error}")

    def is_private(self, gfn: int) -> bool:
        """The C host's record of a frame."""
        return bool(self._bitmap[gfn >> 6] >> (gfn & 63) & 1)

    def close(self) -> None:
        """Frees the CPU."""
        self._engine.close()

    def _set_registers(self, rip: int, registers: dict[str, int]) -> None:
        state = self.state
        state.uc = self._engine.handle
        state.context = self._context.address
        state.rip = rip
        for position, (name, value) in enumerate(registers.items()):
            state.input_ids[position] = REGISTERS[name]
            state.inputs[position] = value
        state.input_count = len(registers)
        for position, name in enumerate(_IN):
            state.in_ids[position] = REGISTERS[name]
        for position, name in enumerate(_OUT):
            state.out_ids[position] = REGISTERS[name]

    def _set_pages(self, machine: Machine, dirty: list[int]) -> None:
        frames = machine.ram.frames
        pages = (_Page * (2 * frames))()
        listed = (_Page * len(dirty))()
        for position, index in enumerate(dirty):
            gfn = index % frames
            view = self._ram.private if index >= frames or gfn < LOW_PAGES else self._ram.shared
            live = view[gfn * PAGE_SIZE : (gfn + 1) * PAGE_SIZE]
            base = ctypes.create_string_buffer(bytes(live), PAGE_SIZE)
            self._keep.append(base)
            page = _Page(ctypes.addressof(ctypes.c_char.from_buffer(live)), ctypes.addressof(base))
            pages[index] = listed[position] = page
        self._by_index = pages
        self._listed = listed
        self.state.pages = ctypes.addressof(listed)
        self.state.page_count = len(dirty)
        self.state.flush = any(machine.ram.is_table(index) for index in dirty)

    def _set_host(self, frames: int) -> None:
        self._bitmap = (ctypes.c_uint64 * (frames + 63 >> 6))()
        for word in range(len(self._bitmap)):
            self._bitmap[word] = (1 << 64) - 1
        self.state.bitmap = ctypes.addressof(self._bitmap)
        self.state.frames = frames

    def _add_hooks(self, machine: Machine) -> None:
        """Guestemu's native hook bodies, and rollback by the list of dirty pages that they keep."""
        code = HostCode()
        if not code.available:
            raise MissingError("this host does not run guestemu's native hooks")
        ram = self._ram
        state = self.state
        ram.flags[:] = machine.ram.flags
        ram.install(code)
        self._base_flags = ctypes.create_string_buffer(bytes(ram.flags), len(ram.flags))
        watch = ram.watch
        kind = type(watch)
        start = ctypes.addressof(watch)
        state.dirty = watch.dirty
        state.dirty_count = start + kind.dirty_count.offset
        state.log_count = start + kind.log_count.offset
        state.flags = watch.flags
        state.base_flags = ctypes.addressof(self._base_flags)
        state.views = ram.frames
        state.pages = ctypes.addressof(self._by_index)
        state.page_count = len(self._by_index)
        blocks = BlockWatch()
        counters = ctypes.create_string_buffer(COUNTER_SIZE)
        blocks.counters = self.counters = ctypes.addressof(counters)
        blocks.mask = COUNTER_SIZE - 1
        blocks.stop = self._engine.function("uc_emu_stop")
        state.blocks_left = ctypes.addressof(blocks) + BlockWatch.left.offset
        state.budget = 1 << 40
        blocks.left = state.budget
        self._engine.add_native_hook(HOOK_BLOCK, code.block_hook, blocks)
        self._keep.extend((code, blocks, counters))


def _copy_sparse(source: memoryview, target: memoryview) -> None:
    """Copies the pages that are not zero."""
    for start in range(0, len(source), PAGE_SIZE):
        page = bytes(source[start : start + PAGE_SIZE])
        if page != _ZERO_PAGE:
            target[start : start + PAGE_SIZE] = page
