# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts' sides of one operation, written by hand."""

from __future__ import annotations

from collections.abc import Iterable

from bitarray import bitarray

from guestemu.events.exits import AnsweredExit, HypercallExit, RdmsrExit, WrmsrExit
from guestemu.guest.base import CallOutcome
from guestemu.host.registry import load_host
from guestemu.program.ops import Op, OpKind
from guestemu.replay.lockstep.side import Side, traits_of

FRAMES = 256
CPL0 = 0
NOTIFY = Op(OpKind.HYPERCALL, (12, 0, 1, 0, 0))


def call(
    nr: int = 12,
    gpa: int = 0x5000,
    pages: int = 1,
    status: int = 0,
    ret: int | None = 0,
    is_64bit: bool = True,
    cpl: int = CPL0,
) -> HypercallExit:
    """A hypercall that was answered `ret` (a negative one as RAX has it)."""
    answer = None if ret is None else ret & (1 << 64) - 1
    return HypercallExit(nr, (gpa, pages, status, 0), answer, 0, cpl, is_64bit)


def wrmsr(index: int, value: int = 1) -> WrmsrExit:
    return WrmsrExit(index, (value,), value, 0)


def rdmsr(index: int) -> RdmsrExit:
    return RdmsrExit(index, (), 0, 0)


def side(
    host: str,
    *exits: AnsweredExit,
    repaired: tuple[str, ...] = (),
    shared: Iterable[int] = (),
    poisoned: Iterable[int] = (),
    ready_before: bool = False,
    value: int | None = 0,
    stopped: bool = False,
    op: Op = NOTIFY,
) -> Side:
    """What `host` did; `shared` are the frames that were shared before the operation."""
    before = bitarray("1", endian="little") * FRAMES
    for frame in shared:
        before[frame] = 0
    return Side(
        traits=traits_of(host, load_host(host, repaired)),
        op=op,
        exits=exits,
        outcome=CallOutcome(value, None),
        before=before,
        after=before.copy(),
        ready_before=ready_before,
        ready=ready_before,
        is_stopped=stopped,
        poisoned=frozenset(poisoned),
    )
