# SPDX-License-Identifier: GPL-2.0-or-later
"""The facade over libunicorn: the only module that knows the library's calls and its traps.

The stock binding's register calls cost ten times what the emulated guest does, so this module calls
the C library directly: ctypes with the GIL held (`PyDLL`: no release and re-acquire per call),
every argument object made once, hooks as raw C function pointers. Rules that its users rely on:

* Code ends with HLT and `until` is 0: an `until` inside mapped code makes Unicorn retranslate.
* `timeout` is never used: it starts a thread per run. Budgets are counted in the block hook.
* A hook that should be seen by code already translated needs `flush_blocks()`.
* A host-side edit of a page table or a context restore needs `flush_tlb()`.
* Hooks never raise into C. They record, stop, and the caller re-raises.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import weakref
from collections.abc import Callable, Sequence
from typing import Final

from unicorn import unicorn_const as uc_const
from unicorn import x86_const
from unicorn.unicorn_py3.unicorn import uclib

from guestemu.abi.errors import EngineError

_ARCH_X86: Final = uc_const.UC_ARCH_X86
_MODE_64: Final = uc_const.UC_MODE_64
_PROT_ALL: Final = uc_const.UC_PROT_ALL

OK: Final = uc_const.UC_ERR_OK
ERR_EXCEPTION: Final = uc_const.UC_ERR_EXCEPTION
ERR_INSN_INVALID: Final = uc_const.UC_ERR_INSN_INVALID
MEM_READ: Final = uc_const.UC_MEM_READ
MEM_WRITE: Final = uc_const.UC_MEM_WRITE
MEM_WRITE_UNMAPPED: Final = uc_const.UC_MEM_WRITE_UNMAPPED

HOOK_BLOCK: Final = uc_const.UC_HOOK_BLOCK
HOOK_CODE: Final = uc_const.UC_HOOK_CODE
HOOK_INTR: Final = uc_const.UC_HOOK_INTR
HOOK_INSN: Final = uc_const.UC_HOOK_INSN
HOOK_INSN_INVALID: Final = uc_const.UC_HOOK_INSN_INVALID
HOOK_MEM: Final = uc_const.UC_HOOK_MEM_READ | uc_const.UC_HOOK_MEM_WRITE
HOOK_MEM_UNMAPPED: Final = uc_const.UC_HOOK_MEM_UNMAPPED
HOOK_TLB_FILL: Final = uc_const.UC_HOOK_TLB_FILL
HOOK_EDGE: Final = uc_const.UC_HOOK_EDGE_GENERATED
INSN_CPUID: Final = x86_const.UC_X86_INS_CPUID
INSN_IN: Final = x86_const.UC_X86_INS_IN
INSN_OUT: Final = x86_const.UC_X86_INS_OUT
INSN_RDTSC: Final = x86_const.UC_X86_INS_RDTSC
INSN_RDTSCP: Final = x86_const.UC_X86_INS_RDTSCP
INSN_SYSCALL: Final = x86_const.UC_X86_INS_SYSCALL


class _Msr(ctypes.Structure):
    _fields_ = (("index", ctypes.c_uint32), ("value", ctypes.c_uint64))


class _TableRegister(ctypes.Structure):
    """`uc_x86_mmr`: GDTR, IDTR, LDTR, TR."""

    _fields_ = (
        ("selector", ctypes.c_uint16),
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


REGISTERS: Final = {
    name: getattr(x86_const, f"UC_X86_REG_{name.upper()}")
    for name in (
        "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags "
        "cr0 cr2 cr3 cr4 fs_base gs_base mxcsr cs ss"
    ).split()
}
"""Register numbers of the library by name."""

_CODE_BUFFER: Final = 1 << 30
"""Bytes that the library reserves for translated code; it touches few of them."""

_MAP_NORESERVE: Final = 0x4000
"""Linux, x86; Python 3.11 has no name for it."""

_XMM: Final = tuple(getattr(x86_const, f"UC_X86_REG_XMM{i}") for i in range(16))


def _control(command: int, write: bool, arguments: int) -> ctypes.c_uint32:
    direction = uc_const.UC_CTL_IO_WRITE if write else uc_const.UC_CTL_IO_READ
    return ctypes.c_uint32(command | arguments << 26 | direction << 30)


class RegisterBatch:
    """A fixed set of registers that is read in one call, or written in one call.

    `values` is a memoryview of unsigned 64-bit values in the order of the names.
    """

    __slots__ = ("_count", "_engine", "_ids", "_read", "_storage", "_vals", "_write", "values")

    def __init__(self, engine: Engine, names: Sequence[str]) -> None:
        count = len(names)
        self._engine = engine.handle
        self._ids = (ctypes.c_int * count)(*(REGISTERS[name] for name in names))
        self._storage = (ctypes.c_uint64 * count)()
        base = ctypes.addressof(self._storage)
        self._vals = (ctypes.c_void_p * count)(*(base + 8 * i for i in range(count)))
        self._count = ctypes.c_int(count)
        self._read = engine.library.uc_reg_read_batch
        self._write = engine.library.uc_reg_write_batch
        self.values = memoryview(self._storage).cast("B").cast("Q")

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Host addresses of the register numbers and of the value pointers, and their count: the
        arguments of the library's batch calls."""
        return ctypes.addressof(self._ids), ctypes.addressof(self._vals), len(self._ids)

    @property
    def values_address(self) -> int:
        """Host address of `values`."""
        return ctypes.addressof(self._storage)

    def read(self) -> memoryview:
        """Fills and returns `values`."""
        self._read(self._engine, self._ids, self._vals, self._count)
        return self.values

    def write(self) -> None:
        """Writes `values` to the registers."""
        self._write(self._engine, self._ids, self._vals, self._count)


class Context:
    """A saved CPU context (registers, segment caches, control registers; not TLB, not memory).

    `bytes` is a view of the raw record at host `address`; its layout is private to one build of the
    library.
    """

    __slots__ = ("_engine", "_handle", "_restore", "address", "bytes")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._handle = ctypes.c_void_p()
        engine.check(
            engine.library.uc_context_alloc(engine.handle, ctypes.byref(self._handle)),
            "allocate a context",
        )
        self._restore = engine.library.uc_context_restore
        size = engine.library.uc_context_size(engine.handle)
        address = self._handle.value
        if address is None:
            raise EngineError("the emulator returned no context")
        self.address = address
        self.bytes = memoryview((ctypes.c_char * size).from_address(address)).cast("B")
        self.save()

    def save(self) -> None:
        """Takes the CPU's present state."""
        engine = self._engine
        engine.check(engine.library.uc_context_save(engine.handle, self._handle), "save a context")

    def restore(self) -> None:
        """Puts the state back. Does not flush the TLB."""
        self._restore(self._engine.handle, self._handle)


def _check_room() -> None:
    """Raises MemoryError where the library could not reserve its buffer for translated code: it
    would end the process with status 1."""
    try:
        mmap.mmap(-1, _CODE_BUFFER, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE).close()
    except OSError as error:
        raise MemoryError("no room for the emulator's buffer of translated code") from error


class Engine:
    """One emulated x86-64 CPU with its physical address space."""

    FLUSH_TLB_COMMAND: Final = int(_control(uc_const.UC_CTL_TLB_FLUSH, True, 0).value)
    """The argument of `uc_ctl` that flushes the TLB."""

    @staticmethod
    def library_path() -> str:
        """The shared object that the installed binding loaded."""
        return str(uclib._name)

    def __init__(self) -> None:
        _check_room()
        self.library = ctypes.PyDLL(self.library_path())
        self.library.uc_context_size.restype = ctypes.c_size_t
        self.handle = ctypes.c_void_p()
        code = self.library.uc_open(_ARCH_X86, _MODE_64, ctypes.byref(self.handle))
        self.check(code, "create a CPU")
        self._close = weakref.finalize(self, self.library.uc_close, self.handle)
        self._close.atexit = False
        self._word = ctypes.c_uint64()
        self._word_ref = ctypes.byref(self._word)
        self._rip = ctypes.c_uint64()
        self._zero = ctypes.c_uint64(0)
        self._no_count = ctypes.c_size_t(0)
        self._one = ctypes.c_size_t(1)
        self._alone = self._start = self.library.uc_emu_start
        self._sharing = ctypes.CDLL(self.library_path()).uc_emu_start
        self._reg_read = self.library.uc_reg_read
        self._reg_write = self.library.uc_reg_write
        self._flush_tlb = (self.library.uc_ctl, _control(uc_const.UC_CTL_TLB_FLUSH, True, 0))
        self._keep: list[object] = []
        self._sites: dict[int, list[tuple[ctypes.c_size_t, Callable[..., object]]]] = {}
        self.stops = 0
        """How often `stop` was called."""

    def close(self) -> None:
        """Frees the CPU, as happens without a call when no reference to it is left. The memory
        that was mapped stays the caller's."""
        self._close()
        self.handle = ctypes.c_void_p()

    def check(self, code: int, what: str) -> None:
        """Raises `EngineError` unless `code` is UC_ERR_OK."""
        if code != OK:
            raise EngineError(f"cannot {what}: emulator error {code}")

    # Memory ---------------------------------------------------------------------------------

    def map(self, address: int, size: int, host_address: int) -> None:
        """Maps `size` bytes of host memory at physical `address`."""
        self.check(
            self.library.uc_mem_map_ptr(
                self.handle,
                ctypes.c_uint64(address),
                ctypes.c_uint64(size),
                ctypes.c_uint32(_PROT_ALL),
                ctypes.c_void_p(host_address),
            ),
            f"map {size:#x} bytes at {address:#x}",
        )

    def map_mmio(self, address: int, size: int, read: object, write: object) -> None:
        """Maps `size` bytes at physical `address` without memory: loads call `read`, stores call
        `write` (`MmioReadHook` and `MmioWriteHook`, which must not raise)."""
        self._keep.extend((read, write))
        call = functools.partial(
            self.library.uc_mmio_map, self.handle, ctypes.c_uint64(address), ctypes.c_size_t(size)
        )
        self.check(call(read, None, write, None), f"map {size:#x} bytes of MMIO at {address:#x}")

    def flush_tlb(self) -> None:
        """Forgets every cached translation."""
        call, command = self._flush_tlb
        call(self.handle, command)

    def flush_blocks(self) -> None:
        """Forgets every translated block: needed after code or hooks change."""
        self.check(
            self.library.uc_ctl(self.handle, _control(uc_const.UC_CTL_TB_FLUSH, True, 0)),
            "flush translated blocks",
        )

    def forget_block(self, address: int, size: int) -> None:
        """Forgets the translated blocks of `size` bytes at virtual `address`, which the CPU's
        present tables map."""
        self.check(
            self.library.uc_ctl(
                self.handle,
                _control(uc_const.UC_CTL_TB_REMOVE_CACHE, True, 2),
                ctypes.c_uint64(address),
                ctypes.c_uint64(address + size),
            ),
            f"forget the code at {address:#x}",
        )

    def use_virtual_tlb(self) -> None:
        """Lets a TLB-fill hook translate addresses instead of the CPU's own walker."""
        self.check(
            self.library.uc_ctl(
                self.handle,
                _control(uc_const.UC_CTL_TLB_TYPE, True, 1),
                ctypes.c_int(uc_const.UC_TLB_VIRTUAL),
            ),
            "switch the TLB mode",
        )

    # Registers ------------------------------------------------------------------------------

    def read(self, register: int) -> int:
        """A register of up to 64 bits."""
        self._word.value = 0
        self._reg_read(self.handle, register, self._word_ref)
        return self._word.value

    def write(self, register: int, value: int) -> None:
        """Sets a register of up to 64 bits."""
        self._word.value = value
        self._reg_write(self.handle, register, self._word_ref)

    def read_msr(self, index: int) -> int:
        """An MSR that the CPU itself implements (0 for others)."""
        msr = _Msr(index, 0)
        self._reg_read(self.handle, x86_const.UC_X86_REG_MSR, ctypes.byref(msr))
        return int(msr.value)

    def write_msr(self, index: int, value: int) -> None:
        """Sets an MSR that the CPU itself implements."""
        msr = _Msr(index, value)
        self._reg_write(self.handle, x86_const.UC_X86_REG_MSR, ctypes.byref(msr))

    def write_table(
        self, name: str, base: int, limit: int, selector: int = 0, flags: int = 0
    ) -> None:
        """Loads "gdtr", "idtr" or "tr"."""
        register = getattr(x86_const, f"UC_X86_REG_{name.upper()}")
        table = _TableRegister(selector, base, limit, flags)
        self.check(
            self._reg_write(self.handle, register, ctypes.byref(table)), f"load {name.upper()}"
        )

    def read_table(self, name: str) -> tuple[int, int]:
        """Base and limit of "gdtr", "idtr" or "tr"."""
        register = getattr(x86_const, f"UC_X86_REG_{name.upper()}")
        table = _TableRegister()
        self._reg_read(self.handle, register, ctypes.byref(table))
        return int(table.base), int(table.limit)

    def read_xmm(self) -> bytes:
        """XMM0 to XMM15, 16 bytes each."""
        buffer = (ctypes.c_char * 16)()
        parts = []
        for register in _XMM:
            self._reg_read(self.handle, register, buffer)
            parts.append(bytes(buffer))
        return b"".join(parts)

    def write_xmm(self, data: bytes) -> None:
        """Sets XMM0 to XMM15."""
        for i, register in enumerate(_XMM):
            value = (ctypes.c_char * 16).from_buffer_copy(data, 16 * i)
            self._reg_write(self.handle, register, value)

    # Execution ------------------------------------------------------------------------------

    def share_interpreter(self, is_on: bool) -> None:
        """Whether `start` lets other threads run Python meanwhile."""
        self._start = self._sharing if is_on else self._alone

    def start(self, rip: int) -> int:
        """Runs from `rip` until HLT, a stop, or an error; returns the UC_ERR code."""
        self._rip.value = rip
        code: int = self._start(self.handle, self._rip, self._zero, self._zero, self._no_count)
        return code

    def step(self, rip: int) -> int:
        """Runs one instruction (one repetition of a string instruction); returns the UC_ERR code.
        For engines that only step: Unicorn ignores the limit in blocks that `start` translated."""
        self._rip.value = rip
        code: int = self._start(self.handle, self._rip, self._zero, self._zero, self._one)
        return code

    def stop(self) -> None:
        """Ends the run, from inside a hook."""
        self.stops += 1
        self.library.uc_emu_stop(self.handle)

    def function(self, name: str) -> int:
        """The host address of a function of the library, for native hook bodies."""
        return ctypes.cast(getattr(self.library, name), ctypes.c_void_p).value or 0

    # Hooks ----------------------------------------------------------------------------------

    def add_hook(
        self,
        kind: int,
        callback: Callable[..., object],
        begin: int = 1,
        end: int = 0,
        instruction: int | None = None,
    ) -> None:
        """Adds a hook whose body is a ctypes callback that must not raise."""
        self._keep.append(callback)
        handle = self._add(kind, callback, None, begin, end, instruction)
        if kind == HOOK_CODE and begin == end:
            self._sites.setdefault(begin, []).append((handle, callback))

    def take_sites(self) -> dict[int, tuple[Callable[..., object], ...]]:
        """Takes the hooks of single instructions out, and returns their bodies by linear address.

        The library asks every hook of its list before each instruction that has one, so that a hook
        of all instructions costs more with each site. Its body has to call these instead. Flush
        the translated blocks afterwards.
        """
        sites, self._sites = self._sites, {}
        for hooks in sites.values():
            for handle, _callback in hooks:
                self.check(self.library.uc_hook_del(self.handle, handle), "remove a hook")
        return {rip: tuple(callback for _, callback in hooks) for rip, hooks in sites.items()}

    def add_native_hook(self, kind: int, address: int, user: ctypes.Structure) -> None:
        """Adds a hook whose body is host machine code at `address` working on the record `user`."""
        self._keep.append(user)
        self._add(kind, ctypes.c_void_p(address), ctypes.byref(user), 1, 0, None)

    def _add(
        self,
        kind: int,
        callback: object,
        user: object,
        begin: int,
        end: int,
        instruction: int | None,
    ) -> ctypes.c_size_t:
        handle = ctypes.c_size_t()
        extra = () if instruction is None else (ctypes.c_int(instruction),)
        self.check(
            self.library.uc_hook_add(
                self.handle,
                ctypes.byref(handle),
                ctypes.c_int(kind),
                callback,
                user,
                ctypes.c_uint64(begin),
                ctypes.c_uint64(end),
                *extra,
            ),
            "add a hook",
        )
        return handle
