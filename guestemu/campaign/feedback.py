# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run covered, as 8-bit counters that all engines read.

The first part counts the guest's basic blocks; the native block hook writes it. The second flags
states of the model: which op ended how, by which path of the host (of its error paths each is one),
with page tables and host record equal or not, migration allowed or not, and which such step
followed which (by the low 32 bits of a host's state: those above are of one op). The third flags
near misses of the checks (near_misses.py), the last blocks of a user's host (host/block_cover.py).
The stores for the others are stores placed by hand, because byte-code
instrumentation of the model costs five times the speed and finds less.

libFuzzer gets the memory as if a compiler had made it (`register`). The random engine takes a
program into its corpus when a bit of a counter is set that never was: about one step for each power
of two of executions of a block.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

from bitarray import bitarray
from bitarray.util import any_and

from guestemu.abi.addresses import U32_MASK
from guestemu.campaign.features import feature
from guestemu.campaign.near_misses import near_misses
from guestemu.checks.base import OpView
from guestemu.machine.exits import (
    BudgetExhausted,
    ExceptionExit,
    Halt,
    Shutdown,
    Trap,
    Unbacked,
)
from guestemu.runner.testbed import Testbed

GUEST_COUNTERS: Final = 1 << 12
MODEL_COUNTERS: Final = 1 << 12
NEAR_COUNTERS: Final = 1 << 10
HOST_COUNTERS: Final = 1 << 10
SIZE: Final = GUEST_COUNTERS + MODEL_COUNTERS + NEAR_COUNTERS + HOST_COUNTERS

_NEAR: Final = GUEST_COUNTERS + MODEL_COUNTERS
_HOST: Final = _NEAR + NEAR_COUNTERS
_MODEL_MASK: Final = MODEL_COUNTERS - 1
_NEAR_MASK: Final = NEAR_COUNTERS - 1
_ZEROES: Final = bytes(SIZE)
_END_CLASSES: Final = {
    Halt: 1,
    Trap: 2,
    ExceptionExit: 3,
    Shutdown: 4,
    BudgetExhausted: 5,
    Unbacked: 6,
}
_OTHER_END: Final = 7
_MANY_EXITS: Final = 4
_ERRNO_TOP: Final = (1 << 64) - 4096


def value_class(value: int | None) -> int:
    """A result reduced to what distinguishes paths: none, 0, 1, an error by number, or just
    large."""
    if value is None:
        return 0
    if 0 <= value <= 1:
        return 1 + value
    if value < 0:
        return 4 - value & 0xFF
    if value >= _ERRNO_TOP:
        return 4 + (1 << 64) - value & 0xFF
    if 0xFFFF_F000 <= value <= 0xFFFF_FFFF:
        return 0x100 | (1 << 32) - value & 0xFF
    return 3


class Feedback:
    """The counters of one process and what they have shown so far. One per process and testbed.

    `keep` is for memory that the reader of the counters refers to.
    """

    def __init__(self) -> None:
        self.area = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof((ctypes.c_char * SIZE).from_buffer(self.area))
        self._bits = bitarray(buffer=self.area, endian="little")
        self._unseen = bitarray(SIZE * 8, endian="little")
        self._unseen.setall(True)
        self._previous = 0
        self.keep: list[object] = []

    def attach(self, testbed: Testbed) -> None:
        """Makes `testbed` count here. After `Testbed.reset` a run counts on; `clear` is yours."""
        testbed.guest.machine.hooks.point_counters(self.address, GUEST_COUNTERS - 1, self.area)
        testbed.observe = self._observe

    def clear(self) -> None:
        """All counters to 0, before a run (libFuzzer does it itself)."""
        self.area[:] = _ZEROES

    def save(self) -> bytes:
        """The counters as they are, for `load` after runs that must not count."""
        return self.area[:]

    def load(self, counters: bytes) -> None:
        """See `save`."""
        self.area[:] = counters

    @property
    def host_blocks(self) -> memoryview:
        """The counters of a user's host, for its code to set."""
        return memoryview(self.area)[_HOST:SIZE]

    def take(self) -> bool:
        """Adds the last run to what was seen; whether it brought anything new."""
        if not any_and(self._bits, self._unseen):
            return False
        self._unseen &= ~self._bits
        return True

    @property
    def unseen_address(self) -> int:
        """Host address of the bits that no run has set yet, laid out as the counters are."""
        return int(self._unseen.buffer_info()[0])

    @property
    def guest_blocks(self) -> int:
        """Guest basic blocks seen so far (blocks that share a counter count once)."""
        return self._count(0, GUEST_COUNTERS)

    @property
    def model_states(self) -> int:
        """Model states seen so far (states that share a counter count once)."""
        return self._count(GUEST_COUNTERS, _NEAR)

    @property
    def near_misses(self) -> int:
        """Near misses seen so far (those that share a counter count once)."""
        return self._count(_NEAR, _HOST)

    def _count(self, start: int, end: int) -> int:
        unseen = self._unseen.tobytes()[start:end]
        return len(unseen) - unseen.count(0xFF)

    def _observe(self, view: OpView) -> None:
        """The stores for one op (`Testbed.observe`)."""
        host = view.host
        outcome = view.outcome
        exits = view.exits
        op = view.op
        kind = op.kind
        state = host.state
        differs = host.private_map() != view.guest.leaf_map.private
        value = outcome.value
        answer = exits[-1].ret if exits else None
        end = outcome.end
        area = self.area
        step = feature(
            kind,
            value_class(value) if value else value == 0,
            value_class(answer) if answer else answer == 0,
            0 if end is None else _END_CLASSES.get(type(end), _OTHER_END),
            state,
            min(len(exits), _MANY_EXITS),
            differs,
            op.mode << 2 | op.cpl,
            len(outcome.warnings),
        )
        area[GUEST_COUNTERS + (step & _MODEL_MASK)] = 1
        previous = self._previous if view.index else 0  # libFuzzer does not say where a run begins
        lasting = state & U32_MASK
        pair = feature(previous, kind, lasting, differs, host.migration_ready)
        area[GUEST_COUNTERS + (pair & _MODEL_MASK)] = 1
        for near in near_misses(view, differs):
            area[_NEAR + (near & _NEAR_MASK)] = 1
        self._previous = kind << 8 | lasting
