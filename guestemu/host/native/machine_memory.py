# SPDX-License-Identifier: GPL-2.0-or-later
"""The usual calls of a native handler in this process, done on the model's memory by machine code.

`guestemu_run` (guestemu_serve.c) hands an exit to the handler and does its calls as `GuestMemory`
does, and says whether a converted frame is not as the check `guest-memory` demands. What is not
usual (an error, a frame beyond RAM, a page freed in use, a device) is left to Python, from the
first such call on.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from typing import Final

from bitarray import bitarray

from guestemu.host.kvm.guest_memory import GuestMemory
from guestemu.host.native import wire

_WORD: Final = 64
_CALLS, _DONE, _SUSPECT = range(3)
_POINTER: Final = ctypes.c_void_p
FUNCTIONS: Final = ("exit", "reset", "close", "open")
"""Those of the handler that `MachineMemory` calls, in this order."""


class _Memory(ctypes.Structure):
    """`struct memory`."""

    _fields_ = (
        ("maps", _POINTER * 6),
        ("frames", ctypes.c_uint64),
        ("slot", _POINTER),
        ("slots", ctypes.c_uint32),
        ("is_usable", ctypes.c_uint32),
        ("fail_at", ctypes.c_int32),
        ("fail_with", ctypes.c_int32),
        ("calls", ctypes.c_uint32),
        ("done", ctypes.c_uint32),
        ("suspect", ctypes.c_uint32),
    )


class _Running(ctypes.Structure):
    """`struct running`."""

    _fields_ = (
        ("memory", _POINTER),
        ("half", _POINTER),
        ("functions", _POINTER * len(FUNCTIONS)),
        ("vm", _POINTER),
        ("told", _POINTER),
        ("is_new", ctypes.c_uint32),
    )


class MachineMemory:
    """`memory` as `library`, which has `guestemu_run`, works on it.

    `half` and `told` are the addresses of the kernel's half and of the exit that the handler is
    told, `functions` of the handler's.
    """

    def __init__(
        self,
        memory: GuestMemory,
        library: ctypes.CDLL,
        half: int,
        functions: Sequence[int],
        told: int,
    ) -> None:
        self._memory = memory
        library.guestemu_run.argtypes = (_POINTER,)
        self._run: Callable[[int], int] = library.guestemu_run
        self._backing: bitarray | None = None
        self._was_failing = False
        self._words = _Memory(fail_at=wire.NO_FAILURE)
        end = memoryview(self._words).cast("B")[_Memory.calls.offset : _Memory.calls.offset + 12]
        self._last = end.cast("I")
        self._running = _Running(ctypes.addressof(self._words), half)
        self._running.functions[:] = functions
        self._running.told = told
        self._at = ctypes.addressof(self._running)
        at = _Running.is_new.offset
        self._new = memoryview(self._running).cast("B")[at : at + 4].cast("I")
        self._slots = (ctypes.c_uint8 * (wire.SLOT.size * wire.MAX_SLOTS))()
        self._has_words = (
            type(memory) is GuestMemory and not memory.frames % _WORD and sys.byteorder == "little"
        )

    @property
    def vm(self) -> int | None:
        """The handler's VM; None where it could not be opened."""
        vm: int | None = self._running.vm
        return vm

    @vm.setter
    def vm(self, vm: int | None) -> None:
        self._running.vm = vm

    def run(self, calls: memoryview, is_new: bool = False) -> tuple[int, str]:
        """The handler's outcome for an exit, of a new VM if `is_new`, and what is wrong with one of
        the calls that it made, if anything; `calls` are those of the kernel's half."""
        memory = self._memory
        if self._backing is not memory.private_backing:
            self._look()
        if self._was_failing or memory.is_failing:
            self._order()
        if is_new:
            self._new[0] = 1
        outcome = self._run(self._at)
        count = self._last[_CALLS]
        if not count:
            return outcome, ""
        done = self._last[_DONE]
        if done:
            usual = bytes(calls[: done * wire.CALL.size])
            memory.done_elsewhere(usual, done, self._last[_SUSPECT] != 0, wire.usual_calls)
        if done == count:
            return outcome, ""
        rest = calls[done * wire.CALL.size : count * wire.CALL.size]
        return outcome, wire.replay(memory, rest)

    def _order(self) -> None:
        """Which call fails, if one is ordered to; then Python does them all."""
        self._was_failing = self._memory.is_failing
        failure = self._memory.ordered_failure or (wire.NO_FAILURE, 0)
        self._words.fail_at, self._words.fail_with = failure
        self._words.is_usable = self._has_words and not self._was_failing

    def _look(self) -> None:
        """Where the maps and slots are now: a change of slots makes new ones."""
        memory = self._memory
        self._backing = memory.private_backing
        maps = (
            *(memory.attributes, memory.private_pages, memory.shared_pages, memory.device_map),
            *(memory.private_backing, memory.shared_backing),
        )
        for number, bits in enumerate(maps):
            self._words.maps[number] = bits.buffer_info()[0]
        few = memory.slots[: wire.MAX_SLOTS]
        for number, slot in enumerate(few):
            wire.SLOT.pack_into(self._slots, number * wire.SLOT.size, *wire.slot_words(slot))
        self._words.frames = memory.frames
        self._words.slot = ctypes.addressof(self._slots)
        self._words.slots = len(few)
        self._order()
