# SPDX-License-Identifier: GPL-2.0-or-later
"""The mutator of a libFuzzer campaign: mostly libFuzzer's own mutations, some of ours.

libFuzzer's know nothing of ops, but every byte of a record decides something. Of ours, pokes are
one in four. One in sixty-four, or as many as pays (shares.py), is a new program of any length: a
campaign from nothing would else come by programs of several ops one op at a time. One in sixty-four
inserts, deletes, swaps or repeats whole records; as many write an edge into an argument, and one in
256 is a change that knows ops, which two are done in Python. One mutation of a longer program in
eight loses the last op: short ones are fast, and libFuzzer keeps a longer one where it covers more.
About one in sixteen may leave a VMCALL, a new program never: KVM patches that instruction, which
costs many runs.

`native/mutator.c` does the common part of this in machine code. This is the same for other hosts,
and what the machine code is compared with.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

from guestemu.campaign.mutator import Mutator, avoid_vmcall, fresh, poke, reorder, stir
from guestemu.campaign.shares import Shares
from guestemu.program.binary import RECORD_SIZE
from guestemu.program.mutate import crossover_bytes

_STRUCTURE_MASK: Final = 255
_RARE_MASK: Final = 63
_ORDER: Final = 0
_EDGE: Final = 16
_FRESH: Final = 32
_POKE_MASK: Final = 3
_VMCALL_MASK: Final = 0x1E0
_DROP_MASK: Final = 0xE00
_CROSSOVER_MASK: Final = 7
_CROSSOVER_SHIFT: Final = 3
_SHARE_SHIFT: Final = 48

LlvmMutate = Callable[[ctypes.c_void_p, int, int], int]
"""LLVMFuzzerMutate: changes bytes in place, given their size and the room; the new size."""


class MixedMutator:
    """Methods have the signatures of libFuzzer's custom mutator and crossover.

    Inputs have at most `max_size` bytes. libFuzzer's own mutations are ours until `use`.
    """

    def __init__(self, ours: Mutator, max_size: int) -> None:
        self.uncommon = ours.uncommon
        self.shares: Shares | None = None
        """How many inputs are new programs; None for one in sixty-four."""
        self._buffer = bytearray(max_size)
        self._address = ctypes.c_void_p(
            ctypes.addressof((ctypes.c_char * max_size).from_buffer(self._buffer))
        )
        self._llvm: LlvmMutate | None = None

    def use(self, llvm_mutate: LlvmMutate) -> None:
        """Takes LLVMFuzzerMutate."""
        self._llvm = llvm_mutate

    def mutate(self, data: bytes, max_size: int, seed: int) -> bytes:
        """A changed copy of `data`, at most `max_size` bytes."""
        size = len(data)
        if max_size < RECORD_SIZE:
            return b""
        rare = seed & _RARE_MASK
        is_new = size < RECORD_SIZE or rare == _FRESH
        if self.shares is not None:
            is_new = is_new or stir(seed) >> _SHARE_SHIFT < self.shares.fresh_below
            self.shares.note(is_new)
        if is_new:
            changed = fresh(max_size, stir(seed))
            size = len(changed)
        else:
            if rare == _EDGE or not seed & _STRUCTURE_MASK:
                return self.uncommon(data, max_size, seed)
            if rare == _ORDER:
                changed = reorder(data, max_size, stir(seed))
                size = len(changed)
            elif seed & _POKE_MASK and self._llvm is not None and size <= len(self._buffer):
                changed = self._buffer
                changed[:size] = data
                size = self._llvm(self._address, size, min(max_size, len(changed)))
            else:
                changed = poke(data, max_size, stir(seed))
                size = len(changed)
            if size >= 2 * RECORD_SIZE and not seed & _DROP_MASK:
                size -= RECORD_SIZE
        if seed & _VMCALL_MASK:
            avoid_vmcall(changed, size)
        return bytes(changed[:size])

    def cross(self, first: bytes, second: bytes, max_size: int, seed: int) -> bytes:
        """A crossover of whole records, one time in eight; else a mutation of `first`: libFuzzer
        calls this for every second input."""
        if seed & _CROSSOVER_MASK:
            return self.mutate(first[:max_size], max_size, seed >> _CROSSOVER_SHIFT)
        if self.shares is not None:
            self.shares.note(False)
        return crossover_bytes(first, second, max_size, seed)
