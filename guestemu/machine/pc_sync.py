# SPDX-License-Identifier: GPL-2.0-or-later
"""A switch of the emulator that leaves RIP as it is at loads and stores.

Before it calls a memory hook, the emulator looks up which instruction it is in and puts RIP right:
most of what a hook costs. One byte of its CPU record says that RIP needs no putting right; it
belongs to another purpose (RIP was written in a hook), has no place in the interface, and every run
clears it. So it is looked for in a CPU of its own, by what it does, once in a process: among the
bytes that a write of RIP in a hook sets and a stop does not, the one with which a run does all that
it did, and a memory hook finds RIP at the start of its block. Where not exactly one byte is such,
there is no switch, and RIP is put right as ever.

With the switch on, nothing that happens at a load or store may depend on RIP.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from typing import Final

from guestemu.abi.errors import EngineError
from guestemu.machine.callbacks import CodeHook, MemoryHook
from guestemu.machine.engine import HOOK_BLOCK, HOOK_MEM, OK, REGISTERS, Engine

_CODE: Final = 0x1000
_DATA: Final = 0x2000
_PROGRAM: Final = bytes.fromhex("90 488903 488b0b 90 eb00 488b13 488903 f4")
"""nop; mov [rbx], rax; mov rcx, [rbx]; nop; jmp next; next: mov rdx, [rbx]; mov [rbx], rax; hlt"""
_ACCESSES: Final = (0x1001, 0x1004, 0x100A, 0x100D)
_BLOCKS: Final = (0x1000, 0x1000, 0x100A, 0x100A)
_END: Final = 0x1011
_VALUE: Final = 0x1122_3344_5566_7788
_WHOLE: Final = {"rax": _VALUE, "rcx": _VALUE, "rdx": _VALUE, "rip": _END}


class _Trial:
    """A CPU on which the program above runs."""

    def __init__(self) -> None:
        self.engine = Engine()
        self._address = self.engine.handle.value or 0
        self._size = _record_size(self._address)
        self._memory = mmap.mmap(-1, _DATA, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.engine.map(_CODE, _DATA, ctypes.addressof(ctypes.c_char.from_buffer(self._memory)))
        self._memory[: len(_PROGRAM)] = _PROGRAM
        self._ask = ""
        self._byte = 0
        self.changed: set[int] = set()
        self.seen: list[int] = []
        self.engine.add_hook(HOOK_BLOCK, CodeHook(self._on_block))
        self.engine.add_hook(HOOK_MEM, MemoryHook(self._on_access))

    def _on_block(self, _uc: object, address: int, _length: int, _user: object) -> None:
        if self._byte:
            ctypes.c_uint8.from_address(self._address + self._byte).value = 1
        if not self._ask:
            return
        before = ctypes.string_at(self._address, self._size)
        if self._ask == "rip":
            self.engine.write(REGISTERS["rip"], address)
        else:
            self.engine.stop()
        after = ctypes.string_at(self._address, self._size)
        self.changed = {
            place for place in range(self._size) if not before[place] and after[place] == 1
        }
        self._ask = ""

    def _on_access(self, *_event: object) -> None:
        self.seen.append(self.engine.read(REGISTERS["rip"]))

    def set_by(self, what: str) -> set[int]:
        """The bytes that go from 0 to 1 where a block hook writes "rip", or asks for a "stop"."""
        self._ask = what
        self.changed = set()
        self.engine.start(_CODE)
        return self.changed

    def run(self, byte: int = 0) -> tuple[int, ...]:
        """The program, with `byte` of the record set in every block; where RIP stood at its
        accesses, empty if it did not run as it should."""
        engine = self.engine
        self._byte = byte
        self._memory[_DATA - _CODE : _DATA - _CODE + 8] = bytes(8)
        self.seen.clear()
        for name, value in {"rax": _VALUE, "rbx": _DATA, "rcx": 0, "rdx": 0}.items():
            engine.write(REGISTERS[name], value)
        code = engine.start(_CODE)
        self._byte = 0
        found = {name: engine.read(REGISTERS[name]) for name in _WHOLE}
        return tuple(self.seen) if code == OK and found == _WHOLE else ()


def _record_size(address: int) -> int:
    """How many bytes were allocated for the record at host `address`; 0 where nothing says it."""
    try:
        size = ctypes.CDLL(None).malloc_usable_size
    except (OSError, AttributeError):
        return 0
    size.argtypes = (ctypes.c_void_p,)
    size.restype = ctypes.c_size_t
    return int(size(address))


def _is_switch(trial: _Trial, byte: int) -> bool:
    """Whether `byte` does what it should, twice, and its effect is over with the run."""
    wanted = (_BLOCKS, _ACCESSES, _BLOCKS, _ACCESSES)
    return tuple(trial.run(number) for number in (byte, 0, byte, 0)) == wanted


@cache
def find_switch() -> int | None:
    """Where the byte lies in the emulator's CPU record; None where there is no such byte."""
    try:
        trial = _Trial()
        if trial.run() != _ACCESSES:
            return None
        candidates = trial.set_by("rip") - trial.set_by("stop")
        found = [byte for byte in sorted(candidates) if _is_switch(trial, byte)]
    except EngineError:
        return None
    return found[0] if len(found) == 1 else None
