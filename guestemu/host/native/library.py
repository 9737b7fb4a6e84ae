# SPDX-License-Identifier: GPL-2.0-or-later
"""A shared object in this process, by ctypes: the fastest way, without a wall between.

A crash of the handler is a crash of guestemu.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Final

from guestemu.abi.errors import PluginError
from guestemu.host.kvm.guest_memory import GuestMemory, Slot
from guestemu.host.kvm.uapi import KVM_EXIT_HYPERCALL
from guestemu.host.native import wire
from guestemu.native import load
from guestemu.native.build import SERVE

_U64: Final = ctypes.c_uint64
_POINTER: Final = ctypes.c_void_p
_ATTRIBUTES: Final = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _U64, _U64, _U64, _U64)
_FALLOCATE: Final = ctypes.CFUNCTYPE(
    ctypes.c_int, _POINTER, ctypes.c_uint32, ctypes.c_int, _U64, _U64
)
_MADVISE: Final = ctypes.CFUNCTYPE(
    ctypes.c_int, _POINTER, ctypes.c_uint32, _U64, _U64, ctypes.c_int
)
_RANGE: Final = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _U64, _U64)
_DEVICE: Final = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _U64, _U64, ctypes.c_int)
_PUT_HYPERCALL: Final = struct.Struct("<2I4Q24x2Q").pack_into
"""Reason, vCPU, number, three arguments of six, `ret`, `flags`."""

_PUT_OTHER: Final = struct.Struct("<2I3Q8x").pack_into
_RET, _ERROR, _DATA = 8, 4, 3
"""Places in the exit, in words of eight bytes."""

_NEEDED: Final = ("abi", "open", "exit", "reset", "close")


class _Layout(ctypes.Structure):
    _fields_ = (
        ("abi", ctypes.c_uint32),
        ("vcpus", ctypes.c_uint32),
        ("slots", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("slot", _POINTER),
    )


class _Kernel(ctypes.Structure):
    _fields_ = (
        ("token", _POINTER),
        ("set_memory_attributes", _ATTRIBUTES),
        ("fallocate", _FALLOCATE),
        ("madvise", _MADVISE),
        ("pre_fault", _RANGE),
        ("map_for_device", _DEVICE),
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
        self._counts_blocks = False
        self.has_map = False
        self.takes_slots = False

    def start(self) -> int:
        """Loads the file and opens a VM; returns the handler's features.

        Raises `PluginError` for a file that cannot be loaded or lacks a function, and where the
        handler does not open.
        """
        path, memory = self._path, self._memory
        serve = load(SERVE, is_global=True)  # has what -fsanitize-coverage calls
        try:
            self._library = ctypes.CDLL(path)
        except OSError as error:
            raise PluginError(f"host {path}: cannot be loaded: {error}") from None
        for name in _NEEDED:
            if not hasattr(self._library, f"guestemu_{name}"):
                raise PluginError(f"host {path}: guestemu_{name}() of guestemu_host.h is missing")
        library = self._library
        if serve is not None:
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
        self._slots, self._layout = self._describe(memory.slots)
        self._plugged: ctypes.Array[ctypes.c_char] | None = None
        self._kernel = _Kernel(
            None,
            _ATTRIBUTES(lambda _t, gpa, size, a, b: memory.set_memory_attributes(gpa, size, a, b)),
            _FALLOCATE(lambda _t, slot, mode, at, size: memory.fallocate(slot, mode, at, size)),
            _MADVISE(lambda _t, slot, at, size, advice: memory.madvise(slot, at, size, advice)),
            _RANGE(lambda _t, gpa, size: memory.pre_fault(gpa, size)),
            _DEVICE(lambda _t, gpa, size, mapped: memory.map_for_device(gpa, size, bool(mapped))),
        )
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
        self._reset: Callable[[int], int] = library.guestemu_reset
        self._exit = _Exit()
        self._exit_at = ctypes.addressof(self._exit)
        self._octets = memoryview(self._exit).cast("B")
        self._words = self._octets.cast("Q")
        self._vm = self._open()
        features: int = library.guestemu_features() if has_features else 0
        is_counting = wire.FEATURE_BLOCKS if self._counts_blocks else 0
        return features & wire.FEATURE_BLOCKS - 1 | is_counting

    def _describe(self, slots: Sequence[Slot]) -> tuple[ctypes.Array[ctypes.c_char], _Layout]:
        """The memory of a layout with `slots`, and the layout."""
        few = slots[: wire.MAX_SLOTS]
        data = ctypes.create_string_buffer(b"".join(map(wire.pack_slot, few)))
        return data, _Layout(wire.ABI, self._vcpus, len(few), 0, ctypes.addressof(data))

    def plug(self) -> int:
        """Tells the handler the slots that the memory has now; 0 or a negative errno."""
        self._plugged, layout = self._describe(self._memory.slots)
        self._plugged_layout = layout  # valid until the VM is closed
        result: int = self._library.guestemu_layout(self._vm, ctypes.addressof(layout))
        return result

    def _open(self) -> int:
        vm: int | None = self._library.guestemu_open(
            ctypes.addressof(self._layout), ctypes.addressof(self._kernel)
        )
        if not vm:
            raise PluginError(f"host {self._path}: guestemu_open() returned NULL")
        return vm

    def reset(self) -> None:
        """A new VM, by the handler's reset or by closing and opening it."""
        if self._plugged is not None or self._reset(self._vm):
            self._library.guestemu_close(self._vm)
            self._plugged = None
            self._vm = self._open()

    def exit(self, reason: int, words: Sequence[int], vcpu: int) -> tuple[int, int, int]:
        """Outcome, answer (`ret` or `error`) and data of an exit; `words` as in `wire`. The data of
        a hypercall are the blocks that ran."""
        octets = self._octets
        if reason == KVM_EXIT_HYPERCALL:
            _PUT_HYPERCALL(octets, 0, reason, vcpu, *words)
            if self._counts_blocks:
                self._blocks.value = 0
            outcome = self._run(self._vm, self._exit_at)
            blocks = self._blocks.value if self._counts_blocks else 0
            return outcome, self._words[_RET], blocks
        _PUT_OTHER(octets, 0, reason, vcpu, *words)
        outcome = self._run(self._vm, self._exit_at)
        return outcome, self._words[_ERROR], self._words[_DATA]

    def read_map(self) -> bytes:
        """The handler's own record, one bit for each frame."""
        at = self._library.guestemu_private(self._vm)
        return ctypes.string_at(at, (self._memory.frames + 7) // 8) if at else b""
