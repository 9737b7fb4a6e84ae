# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of real conversion programs: those that a campaign's mutator makes, several ops each.

The same calls from C on the same libunicorn have a host that is a bitmap, and neither decoding nor
checks nor states of the model. Pages are put back by a list that is known beforehand, or, with
guestemu's hooks of memory and blocks, by what those wrote down.
"""

from __future__ import annotations

import ctypes
import random
from itertools import accumulate
from typing import Final

import msgspec

from guestemu.bench.figure import Pair, Work
from guestemu.bench.floor import Floor, FloorCall, FloorLibrary, FloorProgram
from guestemu.bench.scene import BenchScene
from guestemu.campaign.fastpath.fastpath import FastPath, open_fast_path, why_not
from guestemu.campaign.fastpath.records import OpRecord
from guestemu.campaign.mutator import Mutator
from guestemu.campaign.session import Plan, Session
from guestemu.campaign.targets import find_target
from guestemu.guest.snippet.guest import SnippetGuest
from guestemu.program.ops import OpKind

_TARGET: Final = "conversion"
_INPUTS: Final = 400
_SEED: Final = 11
_SEED_BITS: Final = 32
_MEBIBYTES: Final = 256
_LARGE: Final = 8192
_REGISTERS: Final = ("rdi", "rsi", "rdx", "rcx", "rsp")
_PLAIN: Final = "the same calls in C, no hook of memory"
_HOOKED: Final = "the same calls in C with guestemu's hooks"


def _fail(error: BaseException) -> None:
    raise error


class _Program(msgspec.Struct, frozen=True):
    """One input that is common, the calls it makes, and the pages they write."""

    data: bytes
    calls: list[FloorCall]
    pages: list[int]


class Programs:
    """The first inputs of a campaign in a guest of `memory` MiB that machine code runs."""

    def __init__(self, memory: int = _MEBIBYTES) -> None:
        target = find_target(_TARGET)
        header = msgspec.structs.replace(target.header, memory=memory)
        session = Session(Plan(target, header))
        self.note = why_not(session.executor)
        guest = session.executor.testbed.guest
        fast = open_fast_path(session, _fail)
        self.programs: list[_Program] = []
        if fast is None or not isinstance(guest, SnippetGuest):
            return
        self._fast: FastPath = fast
        self.guest = guest
        rng = random.Random(_SEED)
        mutate = Mutator(header, session.kinds).mutate
        pool = [b""]
        for _ in range(_INPUTS):
            bits = rng.getrandbits(_SEED_BITS)
            data = mutate(rng.choice(pool), session.executor.max_size, bits)
            pool.append(data)
            if fast.library.run(data):
                self.programs.append(_Program(data, self._calls(), self._pages()))
        fast.library.run(b"")  # the pages of the last one go back

    def run(self, count: int) -> None:
        """All of them, `count` times."""
        self._fast.library.use(self._fast.record)
        run = self._fast.library.run
        inputs = [program.data for program in self.programs]
        for _ in range(count):
            for data in inputs:
                run(data)

    def make_floor(self, library: FloorLibrary, hooks: bool) -> Floor:
        """A CPU for `in_c`."""
        dirty = sorted({page for program in self.programs for page in program.pages})
        registers = dict.fromkeys(_REGISTERS, 0)
        return Floor(library, self.guest.machine, 0, registers, dirty, hooks)

    def in_c(self, floor: Floor) -> Work:
        """The same as `run` from C."""
        is_table = self.guest.machine.ram.is_table
        calls = [call for program in self.programs for call in program.calls]
        pages = [page for program in self.programs for page in program.pages]
        listed = (FloorProgram * len(self.programs))()
        first_calls = accumulate((len(one.calls) for one in self.programs), initial=0)
        first_pages = accumulate((len(one.pages) for one in self.programs), initial=0)
        starts = zip(first_calls, first_pages, strict=True)
        for number, (program, (call, page)) in enumerate(zip(self.programs, starts, strict=False)):
            flush = any(map(is_table, program.pages))
            counts = len(program.calls), len(program.pages)
            listed[number] = FloorProgram(call, counts[0], page, counts[1], flush)
        called = (FloorCall * len(calls))(*calls)
        written = (ctypes.c_uint32 * len(pages))(*pages)

        def work(count: int) -> None:
            for _ in range(count):
                floor.run_programs(called, listed, written)

        return work

    def _calls(self) -> list[FloorCall]:
        record = self._fast.record
        missing = record.no_such_function
        ops = record.ops[: record.ops_count]
        return [self._call(op) for op in ops if record.functions[op.kind] != missing]

    def _call(self, op: OpRecord) -> FloorCall:
        record = self._fast.record
        gva = record.regions[op.region].gva + (op.page << 12)
        first, second, third = op.arguments[:3]
        if op.kind == OpKind.WRITE:
            values = (gva + second, first, third)
        elif op.kind == OpKind.READ:
            values = (gva + first, 0, 0)
        else:
            values = (gva + second, first, 0)
        inputs = (ctypes.c_uint64 * 8)(*values, 0, record.kernel_stack)
        return FloorCall(record.functions[op.kind], inputs)

    def _pages(self) -> list[int]:
        ram = self.guest.machine.ram
        return ram.dirty_list[: ram.watch.dirty_count].tolist()


def _pair(scene: BenchScene, hooks: bool) -> Pair:
    against = _HOOKED if hooks else _PLAIN
    programs = Programs()
    if programs.note:
        return Pair(None, None, against, note=programs.note)
    count = len(programs.programs)
    library = scene.library
    floor = None if library is None else programs.in_c(programs.make_floor(library, hooks))
    note = scene.floor_note
    return Pair(programs.run, floor, against, items=count, floor_items=count, note=note)


def unhooked(scene: BenchScene) -> Pair:
    """A mixed conversion program of a campaign, checks and states included, beside C without a
    memory hook."""
    return _pair(scene, hooks=False)


def hooked(scene: BenchScene) -> Pair:
    """The same program beside C with guestemu's hooks."""
    return _pair(scene, hooks=True)


def large(scene: BenchScene) -> Pair:
    """The same program in a guest of 8 GiB, beside one of 256 MiB."""
    against = f"a guest of {_MEBIBYTES} MiB"
    big, small = Programs(_LARGE), Programs()
    if big.note:
        return Pair(None, None, against, note=big.note)
    counts = len(big.programs), len(small.programs)
    return Pair(big.run, small.run, against, items=counts[0], floor_items=counts[1])
