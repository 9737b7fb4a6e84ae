# SPDX-License-Identifier: GPL-2.0-or-later
"""The custom mutator of libFuzzer in the host's own machine code (mutator.S).

The library is built by `make snippets` and committed, so nobody needs a compiler. libFuzzer finds
its functions by name if it is loaded before libFuzzer is.
"""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from typing import Final

from guestemu.campaign.mixed_mutator import MixedMutator

_LIBRARY: Final = Path(__file__).with_name("mutator.elf")

_Mutate = ctypes.CFUNCTYPE(
    ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint
)
_Cross = ctypes.CFUNCTYPE(
    ctypes.c_size_t,
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t),
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint),
)
_Calls = ctypes.c_uint64 * 3


class NativeMutator:
    """The loaded library. `connect` before its functions are called."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._keep: tuple[object, ...] = ()
        self._calls = _Calls.in_dll(library, "mutator_calls")
        self.mutate = _Mutate(("LLVMFuzzerCustomMutator", library))
        self.cross = _Cross(("LLVMFuzzerCustomCrossOver", library))

    def connect(self, llvm_mutate: int, python: MixedMutator) -> None:
        """What machine code does not do: libFuzzer's own mutations are at host address
        `llvm_mutate`, uncommon ones and crossovers come from `python`."""
        at = ctypes.string_at

        def uncommon(data: int, size: int, max_size: int, seed: int) -> int:
            return _store(data, python.uncommon(at(data, size), max_size, seed))

        def cross(*arguments: int) -> int:
            first, size, second, other, out, max_size, seed = arguments
            found = python.cross(at(first, size), at(second, other), max_size, seed)
            return _store(out, found)

        hooks = (_Mutate(uncommon), _Cross(cross))
        self._keep = hooks
        self._calls[0] = llvm_mutate
        for place, hook in enumerate(hooks, 1):
            self._calls[place] = ctypes.cast(hook, ctypes.c_void_p).value or 0


def _store(address: int, data: bytes) -> int:
    ctypes.memmove(address, data, len(data))
    return len(data)


def load_mutator() -> NativeMutator | None:
    """Loads the library where libFuzzer will find it; None on a host that cannot.

    Must come before libFuzzer is loaded.
    """
    if platform.machine() not in {"x86_64", "AMD64"}:
        return None
    try:
        return NativeMutator(ctypes.CDLL(str(_LIBRARY), mode=ctypes.RTLD_GLOBAL))
    except OSError:
        return None
