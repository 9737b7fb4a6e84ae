# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls of a native handler that machine code does are done as `GuestMemory` does them."""

from __future__ import annotations

import ctypes
import random
from types import SimpleNamespace

import pytest

from guestemu.abi.errno import EINVAL, ENOMEM
from guestemu.checks.guest_memory import GuestMemoryCheck
from guestemu.events.exits import HypercallExit
from guestemu.host.kvm.guest_memory import GuestMemory, Slot
from guestemu.host.native import wire
from guestemu.host.native.library import Half
from guestemu.host.native.machine_memory import MachineMemory
from guestemu.native import load
from guestemu.native.build import SERVE
from guestemu.program.ops import Op, OpKind

PAGE = 0x1000
U64 = (1 << 64) - 1
FRAMES = 256
SLOTS = (
    Slot(0, 100 * PAGE),
    Slot(100 * PAGE, 60 * PAGE, 100 * PAGE),
    Slot(170 * PAGE, 50 * PAGE, has_guest_memfd=False),
    Slot(220 * PAGE, 36 * PAGE, is_read_only=True),
)
ROUNDS = 400
PUNCH, DONTNEED, PRIVATE = 3, 4, 8
Call = tuple[int, int, int, int, int]


class Machine:
    """A memory whose calls are made by a handler that makes those it is given."""

    def __init__(self, frames: int = FRAMES, slots: tuple[Slot, ...] = SLOTS) -> None:
        serve = load(SERVE)
        if serve is None:
            pytest.skip("no machine code here")
        self.memory = GuestMemory(frames, slots)
        self._half = Half()
        serve.guestemu_half(ctypes.byref(self._half))
        self._calls = memoryview(self._half).cast("B")[Half.call.offset :]
        self._next: list[tuple[Call, int]] = []
        self._handler = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(self._exit)
        at = ctypes.cast(self._handler, ctypes.c_void_p).value or 0
        self._machine = MachineMemory(
            self.memory, serve, ctypes.addressof(self._half), [at, 0, 0, 0], 0
        )

    def _exit(self, vm: int | None, told: int | None) -> int:
        for number, (call, result) in enumerate(self._next):
            kind, *arguments = call
            wire.CALL.pack_into(self._calls, number * wire.CALL.size, kind, result, *arguments)
        self._half.counts[3] = len(self._next)
        return 7

    def do(self, calls: list[tuple[Call, int]]) -> str:
        self._next = calls
        outcome, wrong = self._machine.run(self._calls)
        assert outcome == 7
        return wrong

    @property
    def left_to_python(self) -> int:
        """How many of the calls machine code did not do."""
        return len(self._next) - self._machine._last[1]


def in_python(memory: GuestMemory, call: Call) -> int:
    kind, a, b, c, d = call
    if kind == wire.CALL_ATTRIBUTES:
        return memory.set_memory_attributes(a, b, c, d)
    if kind == wire.CALL_FALLOCATE:
        return memory.fallocate(a, b, c, d)
    if kind == wire.CALL_MADVISE:
        return memory.madvise(a, b, c, d)
    return memory.map_for_device(a, b, bool(c))


def drawn(rng: random.Random) -> Call:
    """A call; one of eight has a value that is refused, or leads out of RAM or of a slot."""
    first, pages = rng.randrange(FRAMES), rng.choice((1, 1, 2, 8, 63, 64, 65, 130))
    slot = rng.randrange(3)
    odd = rng.choice((1, 0x800, 1 << 40, (1 << 64) - PAGE)) if not rng.randrange(8) else 0
    kind = rng.choice((1, 1, 1, 2, 2, 3, 3, 5))
    if kind == wire.CALL_ATTRIBUTES:
        pages = pages if odd else min(pages, FRAMES - first)
        return kind, (first * PAGE + odd) & U64, pages * PAGE, rng.choice((0, PRIVATE)), 0
    if kind == wire.CALL_DEVICE:
        return kind, first * PAGE, pages * PAGE, rng.randrange(2), 0
    room = SLOTS[slot].size // PAGE
    first %= room
    size = pages * PAGE if odd else min(pages, room - first) * PAGE
    if kind == wire.CALL_FALLOCATE:
        mode = rng.choice((PUNCH, PUNCH, PUNCH, 1))
        return kind, slot, mode, (SLOTS[slot].memfd_offset + first * PAGE + odd) & U64, size
    return kind, slot, (first * PAGE + odd) & U64, size - rng.choice((0, 0, 1)), DONTNEED


def state(memory: GuestMemory) -> list[object]:
    maps = (memory.attributes, memory.private_pages, memory.shared_pages, memory.device_map)
    return [*(bits.to01() for bits in maps), memory.lost.to01(), memory.calls, memory.call_count]


def judged(memory: GuestMemory, check: GuestMemoryCheck, index: int) -> list[str]:
    view = SimpleNamespace(
        host=SimpleNamespace(guest_memory=memory),
        index=index,
        exits=[HypercallExit(12, (0, 1, 0, 0), 0, 0)],
        op=Op(OpKind.HYPERCALL),
    )
    return [found.message for found in check.after(view)]


def test_machine_code_and_python_do_the_same_calls_and_are_judged_alike() -> None:
    rng = random.Random(5)
    machine, plain = Machine(), GuestMemory(FRAMES, SLOTS)
    wrong = left = made = 0
    for _ in range(ROUNDS):
        checks = GuestMemoryCheck(), GuestMemoryCheck()
        for index in range(rng.randrange(1, 5)):
            calls = [drawn(rng) for _ in range(rng.randrange(4))]
            told = [(call, in_python(plain, call)) for call in calls]
            assert machine.do(told) == ""
            left += machine.left_to_python
            made += len(calls)
            found = [
                judged(memory, check, index)
                for memory, check in zip((machine.memory, plain), checks, strict=True)
            ]
            assert found[0] == found[1]
            wrong += len(found[0])
            assert state(machine.memory) == state(plain)
        machine.memory.restore()
        plain.restore()
    assert wrong > ROUNDS / 4
    assert made / 4 < left < made * 3 / 4


def test_an_ordered_failure_is_pythons() -> None:
    machine = Machine()
    share: Call = (wire.CALL_ATTRIBUTES, 0, PAGE, 0, 0)
    machine.memory.order_failure(1, ENOMEM)
    assert machine.do([(share, 0), (share, -ENOMEM)]) == ""
    assert machine.memory.has_failed
    assert machine.left_to_python == 2
    machine.memory.restore()
    assert machine.do([(share, 0)]) == ""
    assert machine.left_to_python == 0


def test_offsets_are_those_of_the_file() -> None:
    machine = Machine()
    share: Call = (wire.CALL_ATTRIBUTES, 100 * PAGE, 2 * PAGE, 0, 0)
    punch: Call = (wire.CALL_FALLOCATE, 1, PUNCH, 101 * PAGE, PAGE)
    assert machine.do([(share, 0), (punch, 0)]) == ""
    assert machine.left_to_python == 0
    assert machine.memory.private_pages[99:103].to01() == "1101"


def test_a_change_of_slots_is_seen() -> None:
    machine = Machine()
    punch: Call = (wire.CALL_FALLOCATE, 4, PUNCH, 0, PAGE)
    assert machine.do([(punch, -EINVAL)]) == ""
    machine.memory.plug(Slot(160 * PAGE, 10 * PAGE))
    share: Call = (wire.CALL_ATTRIBUTES, 160 * PAGE, PAGE, 0, 0)
    assert machine.do([(share, 0), (punch, 0)]) == ""
    assert machine.left_to_python == 0
    assert machine.memory.private_pages[160:162].to01() == "01"
    machine.memory.restore()
    assert machine.do([(punch, -EINVAL)]) == ""


def test_a_result_that_the_handler_was_not_told_is_noticed() -> None:
    machine = Machine()
    share: Call = (wire.CALL_ATTRIBUTES, 0, PAGE, 0, 0)
    assert machine.do([(share, -EINVAL)]) == "was told -22 by a call that returns 0"


def test_maps_that_end_within_a_word_are_pythons() -> None:
    machine = Machine(100, (Slot(0, 100 * PAGE),))
    share: Call = (wire.CALL_ATTRIBUTES, 0, 100 * PAGE, 0, 0)
    assert machine.do([(share, 0)]) == ""
    assert machine.left_to_python == 1
    assert machine.memory.attributes.count() == 0
