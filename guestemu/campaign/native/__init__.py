# SPDX-License-Identifier: GPL-2.0-or-later
"""The custom mutator of libFuzzer in the host's own machine code (mutator.c).

libFuzzer finds its functions by name if the library is loaded before libFuzzer is.
"""

from __future__ import annotations

import ctypes

from guestemu.campaign.mixed_mutator import MixedMutator
from guestemu.campaign.shares import WORDS, Shares
from guestemu.native import load
from guestemu.native.build import MUTATOR

_Mutate = ctypes.CFUNCTYPE(
    ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint
)
_Cross = ctypes.CFUNCTYPE(
    ctypes.c_size_t,
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t),
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint),
)
_Calls = ctypes.c_uint64 * 2
_Share = ctypes.c_uint64 * WORDS


class NativeMutator:
    """The loaded library. `connect` before its functions are called."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._keep: object = None
        self._calls = _Calls.in_dll(library, "mutator_calls")
        self._share = _Share.in_dll(library, "mutator_share")
        self.mutate = _Mutate(("LLVMFuzzerCustomMutator", library))
        self.cross = _Cross(("LLVMFuzzerCustomCrossOver", library))

    def share(self) -> Shares:
        """From now on as many inputs are new programs as pays."""
        return Shares(memoryview(self._share).cast("B").cast("Q"))

    def connect(self, llvm_mutate: int, python: MixedMutator) -> None:
        """What machine code does not do: libFuzzer's own mutations are at host address
        `llvm_mutate`, uncommon ones come from `python`."""

        def uncommon(data: int, size: int, max_size: int, seed: int) -> int:
            changed = python.uncommon(ctypes.string_at(data, size), max_size, seed)
            ctypes.memmove(data, changed, len(changed))
            return len(changed)

        hook = _Mutate(uncommon)
        self._keep = hook
        self._calls[:] = [llvm_mutate, ctypes.cast(hook, ctypes.c_void_p).value or 0]


def load_mutator() -> NativeMutator | None:
    """Loads the library where libFuzzer will find it; None where there is none.

    Must come before libFuzzer is loaded.
    """
    library = load(MUTATOR, is_global=True)
    return None if library is None else NativeMutator(library)
