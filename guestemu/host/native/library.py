# SPDX-License-Identifier: GPL-2.0-or-later
"""A shared object in this process, by ctypes: the fastest way, without a wall between.

A crash of the handler is a crash of guestemu.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Final

from guestemu.abi.errors import HostFailedError, MissingError, PluginError
from guestemu.host.kvm.guest_memory import GuestMemory
from guestemu.host.kvm.uapi import KVM_EXIT_HYPERCALL
from guestemu.host.native import wire
from guestemu.host.native.machine_memory import FUNCTIONS, MachineMemory
from guestemu.native import load, why_not
from guestemu.native.build import SERVE

_U64: Final = ctypes.c_uint64
_POINTER: Final = ctypes.c_void_p
_PUT_HYPERCALL: Final = struct.Struct("<2I4Q24x2Q").pack_into
"""Reason, vCPU, number, three arguments of six, `ret`, `flags`."""

_PUT_OTHER: Final = struct.Struct("<2I3Q8x").pack_into
_RET, _ERROR, _DATA = 8, 4, 3
"""Places in the exit, in words of eight bytes."""

_KERNEL_WORDS: Final = 6
_COUNTS: Final = struct.Struct("<4i")

_NEEDED: Final = ("abi", "open", "exit", "reset", "close")


class _Layout(ctypes.Structure):
    _fields_ = (
        ("abi", ctypes.c_uint32),
        ("vcpus", ctypes.c_uint32),
        ("slots", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("slot", _POINTER),
    )


class Half(ctypes.Structure):
    """The kernel's half (`struct half`): slots and layout, `struct guestemu_kernel`, the numbers of
    the calls that were made and that fails with its errno, and the calls."""

    _fields_ = (
        ("slot", ctypes.c_uint8 * (wire.SLOT.size * wire.MAX_SLOTS)),
        ("layout", _Layout),
        ("kernel", _POINTER * _KERNEL_WORDS),
        ("counts", ctypes.c_int32 * 4),
        ("call", ctypes.c_uint8 * (wire.CALL.size * wire.MAX_CALLS)),
    )


class _Exit(ctypes.Structure):
    _fields_ = (("reason", ctypes.c_uint32), ("vcpu", ctypes.c_uint32), ("words", _U64 * 9))


class LoadedHandler:
    """One VM of the shared object at `path`, over `memory`.

    `has_map` and `takes_slots` say which of the header's optional functions it has. `start` comes
    before everything else.
    """

    def __init__(self, path: str, memory: GuestMemory, vcpus: int = 1) -> None:
        self._path = path
        self._vcpus = vcpus
        self._memory = memory
        self._blocks = ctypes.c_uint64()
        self._is_plugged = False
        self._counts_blocks = False
        self.has_map = False
        self.takes_slots = False

    def start(self) -> int:
        """Loads the file and opens a VM; returns the handler's features.

        Raises `PluginError` for a file that cannot be loaded or lacks a function, and where the
        handler does not open, `MissingError` without guestemu's C libraries.
        """
        path = self._path
        serve = load(SERVE, is_global=True)  # has what -fsanitize-coverage calls
        if serve is None:
            raise MissingError(f"host {path}: needs guestemu's C libraries: {why_not()}")
        try:
            self._library = ctypes.CDLL(path)
        except OSError as error:
            raise PluginError(f"host {path}: cannot be loaded: {error}") from None
        for name in _NEEDED:
            if not hasattr(self._library, f"guestemu_{name}"):
                raise PluginError(f"host {path}: guestemu_{name}() of guestemu_host.h is missing")
        library = self._library
        self._blocks = ctypes.c_uint64.in_dll(serve, "guestemu_blocks")
        origin = ctypes.c_uint64.in_dll(serve, "guestemu_origin")
        origin.value = ctypes.cast(library.guestemu_abi, _POINTER).value or 0
        self._blocks.value = 0
        if library.guestemu_abi() != wire.ABI:
            raise PluginError(
                f"host {path}: has ABI {library.guestemu_abi()}, this guestemu has {wire.ABI}"
            )
        self._counts_blocks = bool(self._blocks.value)
        has_features = hasattr(library, "guestemu_features")
        self.has_map = hasattr(library, "guestemu_private")
        self.takes_slots = hasattr(library, "guestemu_layout")
        self._half = Half()
        serve.guestemu_half(ctypes.byref(self._half))
        half = memoryview(self._half).cast("B")
        at = Half.counts.offset
        self._counts = half[at : at + _COUNTS.size]
        self._calls = half[Half.call.offset :]
        self._half.layout.vcpus = self._vcpus
        self._describe()
        library.guestemu_open.restype = _POINTER
        library.guestemu_open.argtypes = (_POINTER, _POINTER)
        library.guestemu_exit.argtypes = (_POINTER, _POINTER)
        library.guestemu_reset.argtypes = (_POINTER,)
        library.guestemu_close.argtypes = (_POINTER,)
        if self.takes_slots:
            library.guestemu_layout.argtypes = (_POINTER, _POINTER)
        if self.has_map:
            library.guestemu_private.restype = _POINTER
            library.guestemu_private.argtypes = (_POINTER,)
        self._run: Callable[[int, int], int] = library.guestemu_exit
        self._exit = _Exit()
        self._octets = memoryview(self._exit).cast("B")
        self._machine = MachineMemory(
            self._memory,
            serve,
            ctypes.addressof(self._half),
            [
                ctypes.cast(getattr(library, f"guestemu_{name}"), _POINTER).value or 0
                for name in FUNCTIONS
            ],
            ctypes.addressof(self._exit),
        )
        self._words = self._octets.cast("Q")
        self._open()
        features: int = library.guestemu_features() if has_features else 0
        is_counting = wire.FEATURE_BLOCKS if self._counts_blocks else 0
        return features & wire.FEATURE_BLOCKS - 1 | is_counting

    def _describe(self) -> None:
        """Puts the slots of the memory where the handler and the kernel's half find them."""
        few = self._memory.slots[: wire.MAX_SLOTS]
        for number, slot in enumerate(few):
            wire.SLOT.pack_into(self._half.slot, number * wire.SLOT.size, *wire.slot_words(slot))
        self._half.layout.slots = len(few)

    def plug(self) -> int:
        """Tells the handler the slots that the memory has now; 0 or a negative errno."""
        self._is_plugged = True
        self._describe()
        failure = self._memory.ordered_failure or (wire.NO_FAILURE, 0)
        self._counts[:] = _COUNTS.pack(0, *failure, 0)
        result: int = self._library.guestemu_layout(
            self._machine.vm, ctypes.addressof(self._half.layout)
        )
        count = _COUNTS.unpack(self._counts)[3]
        wrong = wire.replay(self._memory, self._calls[: count * wire.CALL.size])
        if wrong:
            raise HostFailedError(f"the native handler {wrong}")
        if result:
            self._half.layout.slots -= 1
        return result

    def _open(self) -> None:
        self._machine.vm = self._library.guestemu_open(
            ctypes.addressof(self._half.layout), ctypes.addressof(self._half.kernel)
        )
        self._look()

    def _look(self) -> None:
        if not self._machine.vm:
            raise PluginError(f"host {self._path}: guestemu_open() returned NULL")

    def reset(self) -> None:
        """A new VM, by the handler's reset or by closing and opening it."""
        if self._is_plugged or self._library.guestemu_reset(self._machine.vm):
            self._library.guestemu_close(self._machine.vm)
            self._is_plugged = False
            self._describe()
            self._open()

    def exit(
        self, reason: int, words: Sequence[int], vcpu: int, is_new: bool
    ) -> tuple[int, int, int]:
        """Outcome, answer (`ret` or `error`) and data of an exit; `words` as in `wire`. The data of
        a hypercall are the blocks that ran. `is_new`: the VM is new, as by `reset`."""
        if is_new and (self._is_plugged or self._counts_blocks):
            self.reset()  # its blocks are none of the exit's
            is_new = False
        is_hypercall = reason == KVM_EXIT_HYPERCALL
        (_PUT_HYPERCALL if is_hypercall else _PUT_OTHER)(self._octets, 0, reason, vcpu, *words)
        if self._counts_blocks:
            self._blocks.value = 0
        outcome, wrong = self._machine.run(self._calls, is_new)
        if outcome < 0:
            self._look()
        if wrong:
            raise HostFailedError(f"the native handler {wrong}")
        if is_hypercall:
            blocks = self._blocks.value if self._counts_blocks else 0
            return outcome, self._words[_RET], blocks
        return outcome, self._words[_ERROR], self._words[_DATA]

    def read_map(self) -> bytes:
        """The handler's own record, one bit for each frame."""
        at = self._library.guestemu_private(self._machine.vm)
        return ctypes.string_at(at, (self._memory.frames + 7) // 8) if at else b""
