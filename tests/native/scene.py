# SPDX-License-Identifier: GPL-2.0-or-later
"""One finished operation as the native judge and as the checks see it."""

from __future__ import annotations

import ctypes
import random
from types import SimpleNamespace
from typing import Any

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE
from guestemu.abi.regions import Region
from guestemu.campaign.fastpath.records import ExitRecord as NativeExit
from guestemu.campaign.fastpath.records import FastRecord, OpRecord, RegionRecord
from guestemu.checks.base import CONVERSION_KINDS, OpView, Violation
from guestemu.checks.conversion import ConversionCheck, MappingCheck
from guestemu.checks.migration_control import MigrationControlCheck
from guestemu.checks.record import RecordCheck
from guestemu.checks.results import CONTRACT, ResultCheck
from guestemu.events.exits import HypercallExit
from guestemu.guest.base import CallOutcome
from guestemu.program.ops import Op, OpKind
from guestemu.runner.testbed import Testbed

FRAMES = 192
FIRST = {Region.D: 16, Region.L: 64, Region.V: 32}
PAGES = 24
ENCRYPTING = {OpKind.SET_MEMORY_ENCRYPTED, OpKind.EARLY_SET_MEMORY_ENCRYPTED}
U32, U64 = (1 << 32) - 1, (1 << 64) - 1


class Scene:
    """`exits` are (nr, gpa, pages, attributes, ret, cpl, is_64bit); `host`, `tables` and `alias`
    are the maps after the operation, which begin as those before it. `value` is what the operation
    gave back. A host that claims the contract keeps a record, unless `keeps_record` says otherwise.
    """

    def __init__(self, op: Op, value: int = 0) -> None:
        self.op = op
        self.value = value
        self.exits: list[tuple[int, int, int, int, int, int, bool]] = []
        self.host_before = bitarray("10" * (FRAMES // 2), endian="little")
        self.tables_before = self.host_before.copy()
        self.alias = bitarray("10" * (PAGES // 2), endian="little")
        self.host = self.host_before.copy()
        self.tables = self.tables_before.copy()
        self.has_contract = True
        self.keeps_record: bool | None = None
        self.ready_before = self.ready = False
        self.stale_ret = 0
        """What an exit was answered that an operation before has left behind."""

    @property
    def range(self) -> tuple[int, int] | None:
        """What the testbed takes for the range of the operation."""
        guest = SimpleNamespace(gpa=lambda region, page: FIRST[region] + page << PAGE_SHIFT)
        bed = SimpleNamespace(guest=guest)
        place: tuple[int, int] | None = Testbed._range(bed, self.op)
        return place

    @property
    def is_recorded(self) -> bool:
        """Whether the host's record is judged after raw calls."""
        return self.has_contract if self.keeps_record is None else self.keeps_record

    def convert(self, wants_private: bool) -> None:
        """Makes the maps what a right conversion makes of them."""
        first, count = self.range or (0, 0)
        self.host[first : min(first + count, FRAMES)] = wants_private
        self.tables[first : min(first + count, FRAMES)] = wants_private
        if self.op.region is Region.V:
            self.alias[self.op.page : self.op.page + count] = wants_private

    def violations(self) -> list[Violation]:
        """What the checks say, on a host that claims the contract or on one that does not."""
        host = SimpleNamespace(
            contract=CONTRACT if self.has_contract else "",
            contract_state=self.is_recorded,
            migration_ready=self.ready,
            serves_migration_control=True,
            records_conversions=True,
            private_map=lambda: self.host,
            open_frames=(),
            has_failing_kernel=False,
        )
        leaf_map = SimpleNamespace(
            private=self.tables, alias=self.alias, moved=[], became=lambda *_range: False
        )
        range_ = self.range
        view = OpView(
            index=0,
            op=self.op,
            outcome=CallOutcome(self.value, None),
            guest=SimpleNamespace(leaf_map=leaf_map),
            host=host,
            exits=[
                HypercallExit(nr, (*arguments, 0), ret, 0, cpl, is_64bit)
                for nr, *arguments, ret, cpl, is_64bit in self.exits
            ],
            flips=[],
            host_before=self.host_before.copy(),
            private_before=self.tables_before.copy(),
            moved_before=0,
            frames=range_,
            wants_private=self.op.kind in ENCRYPTING,
            region=self.op.region,
            ready_before=self.ready_before,
            injected=(0, 0),
            free_frames=None,
        )
        checks: tuple[Any, ...] = (
            *(MappingCheck(), ConversionCheck(), ResultCheck(), RecordCheck()),
            MigrationControlCheck(),
        )
        return [
            found
            for check in checks
            if check.kinds is None or self.op.kind in check.kinds
            for found in check.after(view)
        ]


class NativeJudge:
    """`fast_judge` and `fast_range` of a library that exports them."""

    def __init__(self, library: ctypes.PyDLL) -> None:
        self._library = library
        self.objected = False
        """Whether the last scene was judged wrong for an answer or the record of raw calls."""
        library.fast_judge.restype = ctypes.c_bool
        library.fast_range.restype = ctypes.c_bool

    def _op(self, scene: Scene) -> OpRecord:
        op = scene.op
        record = OpRecord(int(op.kind), int(op.region), op.page, op.has_page, op.mode, op.cpl)
        for position, argument in enumerate(op.arguments):
            record.arguments[position] = argument & U64
        return record

    def is_right(self, scene: Scene) -> bool:
        """Whether the native judge is content with the scene."""
        record = FastRecord()
        record.host.assign(scene.host)
        record.host_before.assign(scene.host_before)
        record.direct_before.assign(scene.tables_before)
        record.direct.bits.assign(scene.tables)
        record.alias.bits.assign(scene.alias)
        record.alias.pages = PAGES
        record.frames = FRAMES
        for region, first in FIRST.items():
            record.regions[region] = RegionRecord(0, first << PAGE_SHIFT, PAGES)
        record.answers_judged, record.record_judged = scene.has_contract, scene.is_recorded
        record.ready = scene.ready
        record.exit_count = len(scene.exits)
        for number, (nr, gpa, pages, attributes, ret, cpl, is_64bit) in enumerate(scene.exits):
            words = (ctypes.c_uint64 * 4)(gpa, pages, attributes, 0)
            record.exits[number] = NativeExit(nr, words, ret & U64, cpl, is_64bit)
        stale = (ctypes.c_uint64 * 4)(0, FRAMES, 0, 0)  # of an operation before
        record.exits[len(scene.exits)] = NativeExit(12, stale, scene.stale_ret, 0, True)
        op = self._op(scene)
        value = ctypes.c_int64(scene.value)
        before = ctypes.c_uint64(scene.ready_before)
        judge = self._library.fast_judge
        is_right = bool(judge(ctypes.byref(record), ctypes.byref(op), value, before))
        self.objected = bool(record.objected)
        return is_right

    def range(self, scene: Scene) -> tuple[int, int] | None:
        """The frames that the C takes for the range of the operation."""
        record = FastRecord()
        for region, first in FIRST.items():
            record.regions[region] = RegionRecord(0, first << PAGE_SHIFT, PAGES)
        first, count = ctypes.c_uint64(), ctypes.c_uint64()
        op = self._op(scene)
        is_there = self._library.fast_range(
            ctypes.byref(record), ctypes.byref(op), ctypes.byref(first), ctypes.byref(count)
        )
        return (first.value, count.value) if is_there else None


_NUMBERS = (0, 1, 2, 5, 9, 10, 11, 12, 12, 12, 12, 12, 13, 12 | 1 << 32, U64)
_PLACES = (0, 1, 0xFFF, 0x1000, 5 << 12, 100 << 12, (FRAMES - 1) << 12, FRAMES << 12, 1 << 40)
_TOPS = (U64 & ~0xFFF, U32 & ~0xFFF, 1 << 32 | 3 << 12)
_LENGTHS = (0, 1, 1, 2, 7, 9, FRAMES, 1 << 20, (1 << 52) - 1, 1 << 52, U64, 1 << 32, 1 << 32 | 2)
_WORDS = (0, 0x10, 1, 0x11, 0x20, U64)
_VALUES = (0, 0, 0, 1, -1, -5, -12, -16, -22, -38, 2, -2)


def random_exit(rng: random.Random) -> tuple[int, int, int, int, int, int, bool]:
    """An exit at and beside every border of the contract, its answer right more often than not."""
    nr, gpa = rng.choice(_NUMBERS), rng.choice(_PLACES + _TOPS)
    pages, word = rng.choice(_LENGTHS), rng.choice(_WORDS)
    cpl, is_64bit = rng.choice((0, 0, 0, 3)), rng.random() < 0.7
    mask = U64 if is_64bit else U32
    likely = 0
    if cpl:
        likely = -1
    elif nr & mask != 12:
        likely = -1000
    elif (
        gpa & mask & (PAGE_SIZE - 1)
        or not pages & mask
        or (gpa & mask) // PAGE_SIZE + (pages & mask) > U64
    ):
        likely = -22
    ret = likely & mask
    if rng.random() < 0.15:
        ret = rng.choice((0, 1, -1, -22, -1000)) & rng.choice((mask, U64))
    return nr, gpa, pages, word, ret, cpl, is_64bit


def random_scene(rng: random.Random) -> Scene:
    """An operation, most often judged right, often just not."""
    kind = rng.choice((OpKind.HYPERCALL, *sorted(CONVERSION_KINDS)))
    region, page = rng.choice(list(FIRST)), rng.randrange(PAGES)
    if kind is OpKind.HYPERCALL:
        op = Op(kind, (0, 0, 0, 0, 0), region, page)
    elif "early" in kind.name.lower():
        op = Op(kind, (rng.choice((0, 1, 4096, 4097, 9000)), rng.choice((0, 0, 1))), region, page)
    else:
        op = Op(kind, (rng.choice((0, 1, 2, 8, 17, 200, U32)), 0), region, page)
    scene = Scene(op, rng.choice(_VALUES))
    scene.has_contract = rng.random() < 0.8
    scene.exits = [random_exit(rng) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
    if kind in CONVERSION_KINDS:
        scene.convert(kind in ENCRYPTING)
    else:
        for nr, gpa, pages, word, ret, cpl, is_64bit in scene.exits:
            mask = U64 if is_64bit else U32
            first, count = (gpa & mask) >> PAGE_SHIFT, pages & mask
            if nr & mask == 12 and not (cpl or ret) and first + count <= U64:
                first = min(first, FRAMES)
                scene.host[first : min(first + count, FRAMES)] = bool(word & 0x10)
    if rng.random() < 0.3:
        bits = rng.choice((scene.host, scene.tables, scene.alias))
        bits.invert(rng.randrange(len(bits)))
    return scene
