# SPDX-License-Identifier: GPL-2.0-or-later
"""Conversions on software-protected VMs, contents included: a matrix of cases, and random programs.

A random program takes a few pages and converts, writes, reads and punches them from both sides. The
pages lie around the edges that count: of slots, of the guest_memfd, of 2 MiB; none of them holds
the guest's own code or tables. Ranges are short, as KVM takes time for every frame of one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from typing import Final, TypeVar

from guestemu.abi.addresses import U64_MASK
from guestemu.conformance.recordings.recording import Answer, Config, Hex, Inputs, StepOp
from guestemu.host.kvm.guest_memory import KVM_MEMORY_ATTRIBUTE_PRIVATE, PUNCH
from guestemu.host.kvm.protected_memory import MEMFD_BYTES, PRIVATE_RAM, SPARE, SPARE_AT
from guestemu.oracle.matrix import LONG, Act, OracleCase, call, config

_T = TypeVar("_T")

_PAGE: Final = 0x1000
_EXITS: Final = 1 << 12
_HIGH: Final = 0x200000
"""Where other slots may lie: behind the first two, up to 4 MiB."""
_PLACES: Final = (
    *(0x40000, 0x41000, 0x7F000, 0x80000, PRIVATE_RAM - 2 * _PAGE, PRIVATE_RAM - _PAGE),
    *(PRIVATE_RAM, PRIVATE_RAM + _PAGE, _HIGH - _PAGE, _HIGH, _HIGH + _PAGE, 0x280000, 0x3FF000),
)
_FAR: Final = (1 << 40, 1 << 60, -_PAGE & U64_MASK, -2 * _PAGE & U64_MASK)
_SIZES: Final = (1, 1, 1, 2, 2, 3, 8, 64)
_ODD: Final = (0, 1, 0x800, 0x1001, U64_MASK)
_OFFSETS: Final = (0, 0, 1, 0x7FF, 0xFFF)
_SLOT_SIZES: Final = (0, _PAGE, 2 * _PAGE, 0x80000, 0x100000, 0x800)
_SLOT_OFFSETS: Final = (
    *(PRIVATE_RAM, PRIVATE_RAM, PRIVATE_RAM + _PAGE, 0x140000, MEMFD_BYTES - _PAGE, 0, 0x80000),
    *(MEMFD_BYTES, 0x800, U64_MASK - 0xFFF),
)
_SLOT_FLAGS: Final = (4, 4, 4, 4, 0, 2, 1, 5, 6, 8)
_PROTECTED: Final = config(exits=_EXITS, features=1 << 16, protected=1)
_NOT_PROTECTED: Final = config(exits=_EXITS, features=1 << 16)
_A: Final = 0x40000
_PLAIN: Final = PRIVATE_RAM + 0x40000
_NOWHERE: Final = 0x300000
_PRIVATE: Final = KVM_MEMORY_ATTRIBUTE_PRIVATE
_BAD_MODES: Final = (0, 1, 1, 2, 3, 4, 0x10, 0x20, 0x13)


class ConversionGenerator:
    """Draws configurations and programs from `seed`."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.kept: list[Act] = []
        """Acts that did something new; some of the acts are one of these."""

    def _pick(self, values: tuple[_T, ...]) -> _T:
        return values[int(self._random.random() * len(values))]

    def config(self) -> Config:
        """A software-protected VM that has hypercall exits."""
        return _PROTECTED

    def vcpus(self) -> int:
        """One."""
        return 1

    def program(self, vcpus: int) -> list[Act]:
        """6 to 14 acts on at most three places."""
        places = tuple(self._pick(_PLACES) for _ in range(1 + int(self._random.random() * 3)))
        return [self._act(places) for _ in range(6 + int(self._random.random() * 9))]

    def _act(self, places: tuple[int, ...]) -> Act:
        share = self._random.random()
        gpa = self._pick(places)
        if share < 0.06 and self.kept:
            return self._random.choice(self.kept)
        if share < 0.24:
            return self._attributes(gpa)
        if share < 0.32:
            return self._call(gpa)
        if share < 0.44:
            return self._fallocate(gpa)
        if share < 0.50:
            return self._slot()
        if share < 0.62:
            return self._host(gpa)
        gpa += self._pick(_OFFSETS)
        if share < 0.82:
            return _act(StepOp.GUEST_READ, 0, gpa)
        return _act(StepOp.GUEST_WRITE, 1 + self._random.getrandbits(7), gpa)

    def _attributes(self, gpa: int) -> Act:
        draw = self._random.random()
        size, kind, flags = self._pick(_SIZES) * _PAGE, self._kind(), 0
        if draw < 0.06:
            gpa = self._pick(_FAR)
        elif draw < 0.10:
            gpa += self._pick(_OFFSETS)
        elif draw < 0.14:
            size = self._pick(_ODD)
        elif draw < 0.18:
            kind = self._pick((1, 2, 4, 9, 16, 1 << 63))
        elif draw < 0.20:
            flags = 1
        return _act(StepOp.SET_ATTRIBUTES, gpa, size, kind, flags)

    def _kind(self) -> int:
        return self._pick((KVM_MEMORY_ATTRIBUTE_PRIVATE, 0))

    def _call(self, gpa: int) -> Act:
        """MAP_GPA_RANGE whose exit is answered by converting, or as user space likes."""
        draw = self._random.random()
        pages = self._pick(_SIZES)
        if draw < 0.05:
            pages = self._pick((1 << 52, 0))
        inputs = Inputs(
            rax=Hex(12),
            rbx=Hex(gpa),
            rcx=Hex(pages),
            rdx=Hex(self._pick((0, 0x10, 0x10, 0x11))),
            answer=Answer.CONVERT if draw < 0.85 else Answer.WRITE_RET,
            ret=Hex(self._pick((0, 1, 22))),
        )
        return Act(op=StepOp.VMMCALL, inputs=inputs, mode=LONG)

    def _fallocate(self, gpa: int) -> Act:
        offset = gpa if gpa < _HIGH else gpa - _HIGH + PRIVATE_RAM
        length, mode = self._pick(_SIZES) * _PAGE, PUNCH
        draw = self._random.random()
        if draw < 0.15:
            mode = self._pick(_BAD_MODES)
        elif draw < 0.22:
            length = self._pick(_ODD)
        elif draw < 0.28:
            offset = self._pick((MEMFD_BYTES - _PAGE, MEMFD_BYTES, 0x1001, 1 << 40))
        return _act(StepOp.FALLOCATE, offset, length, mode)

    def _slot(self) -> Act:
        inputs = Inputs(
            rax=Hex(_HIGH + self._pick((0, 0, _PAGE, 0x80000, 0x100000, 0x800))),
            rbx=Hex(self._pick(_SLOT_SIZES)),
            rcx=Hex(self._pick((2, 2, 3, 3, 4, 0x10002, 32764))),
            rdx=Hex(self._pick(_SLOT_FLAGS)),
            rsi=Hex(self._pick(_SLOT_OFFSETS)),
        )
        return Act(op=StepOp.SET_SLOT, inputs=inputs)

    def _host(self, gpa: int) -> Act:
        place = gpa if gpa < _HIGH else SPARE_AT + (gpa - _HIGH) % SPARE
        place += self._pick(_OFFSETS)
        if self._random.random() < 0.5:
            return _act(StepOp.HOST_READ, place)
        return _act(StepOp.HOST_WRITE, place, 1 + self._random.getrandbits(7))


def _act(op: StepOp, rax: int, rbx: int = 0, rcx: int = 0, rdx: int = 0) -> Act:
    words = Inputs(
        rax=Hex(rax & U64_MASK),
        rbx=Hex(rbx & U64_MASK),
        rcx=Hex(rcx & U64_MASK),
        rdx=Hex(rdx & U64_MASK),
    )
    return Act(op=op, inputs=words)


def _attributes(gpa: int, size: int = _PAGE, kind: int = _PRIVATE, flags: int = 0) -> Act:
    return _act(StepOp.SET_ATTRIBUTES, gpa, size, kind, flags)


def _punch(offset: int, length: int = _PAGE, mode: int = PUNCH) -> Act:
    return _act(StepOp.FALLOCATE, offset, length, mode)


def _read(gpa: int) -> Act:
    return _act(StepOp.GUEST_READ, 0, gpa)


def _write(gpa: int, value: int) -> Act:
    return _act(StepOp.GUEST_WRITE, value, gpa)


def _peek(offset: int) -> Act:
    return _act(StepOp.HOST_READ, offset)


def _poke(offset: int, value: int) -> Act:
    return _act(StepOp.HOST_WRITE, offset, value)


def _slot(number: int, gpa: int, size: int, flags: int = 4, offset: int = PRIVATE_RAM) -> Act:
    words = (Hex(word & U64_MASK) for word in (gpa, size, number, flags, offset))
    rax, rbx, rcx, rdx, rsi = words
    return Act(op=StepOp.SET_SLOT, inputs=Inputs(rax=rax, rbx=rbx, rcx=rcx, rdx=rdx, rsi=rsi))


def _tests_of_attributes() -> Iterator[tuple[Act, ...]]:
    for gpa, size in (
        *((_A, 0), (_A + 1, _PAGE), (_A, _PAGE + 1), (-_PAGE, 2 * _PAGE), (-_PAGE, _PAGE)),
        *((_NOWHERE, _PAGE), (1 << 60, _PAGE), (_PLAIN, _PAGE), (PRIVATE_RAM - _PAGE, 2 * _PAGE)),
    ):
        yield (_attributes(gpa, size), _attributes(gpa, size, 0))
    for kind, flags in ((1, 0), (2, 0), (4, 0), (9, 0), (1 << 63, 0), (_PRIVATE, 1), (1, 1)):
        yield (_attributes(_A, _PAGE, kind, flags),)


def _copies() -> Iterator[tuple[Act, ...]]:
    """The two pages of a frame, and what a hole does (GM3)."""
    yield (
        *(_write(_A, 0x11), _peek(_A), _attributes(_A), _read(_A), _write(_A, 0x22), _peek(_A)),
        *(_attributes(_A, kind=0), _read(_A), _attributes(_A), _read(_A), _punch(_A), _read(_A)),
        *(_poke(_A, 0x33), _read(_A), _attributes(_A, kind=0), _read(_A)),
    )
    yield (_attributes(_A), _write(_A, 0x44), _punch(_A), _read(_A), _write(_A, 0x55), _read(_A))


def _conversions() -> Iterator[tuple[Act, ...]]:
    """Ranges to private and back, with neighbours and with odd pages, each with and without holes
    (GM11)."""
    ranges = ((0, 1), (0, 32), (1, 1), (1, 32), (32, 1))
    for (first, pages), is_punched in product(ranges, (False, True)):
        start, size = _A + first * _PAGE, pages * _PAGE
        last = start + size - _PAGE
        seen = tuple(dict.fromkeys((start, last)))
        around = (start - _PAGE, start + size)
        acts = [_poke(gpa, 0x77) for gpa in (*seen, *around)]
        acts += [_attributes(start, size), *(_read(gpa) for gpa in (*seen, *around))]
        acts += [_write(gpa, 0x99) for gpa in seen] + [_peek(gpa) for gpa in seen]
        if is_punched:
            acts.append(_punch(start, size))
        acts += [_read(gpa) for gpa in seen]
        odd = range(start, start + size, 2 * _PAGE)
        acts += [_attributes(gpa, kind=0) for gpa in odd] + [_read(gpa) for gpa in seen]
        acts += [_attributes(start, size, 0), *(_read(gpa) for gpa in (*seen, *around))]
        yield tuple(acts)


def _holes() -> Iterator[tuple[Act, ...]]:
    """What fallocate() takes (GM4)."""
    for offset, length, mode in (
        *((_A + 1, _PAGE, PUNCH), (_A, 0, PUNCH), (_A, _PAGE + 1, PUNCH), (_A, _PAGE, 2)),
        *((MEMFD_BYTES, _PAGE, PUNCH), (MEMFD_BYTES - _PAGE, 0x100000, PUNCH), (_A, _PAGE, 0)),
        *((MEMFD_BYTES - _PAGE, 2 * _PAGE, 1), (_A, _PAGE, 1), (_A, _PAGE, 0x10), (_A, 1, 0)),
        *((_A, 1, 1), (MEMFD_BYTES, _PAGE, 1), (-_PAGE, _PAGE, PUNCH), (_A, 1 << 63, PUNCH)),
    ):
        yield (_punch(offset, length, mode),)


def _slots() -> Iterator[tuple[Act, ...]]:
    """Slots that come and go, and their bindings (GM5)."""
    half = 0x80000
    yield (
        *(_slot(2, _HIGH, half), _attributes(_HIGH), _write(_HIGH, 0x66), _slot(2, 0, 0)),
        *(_read(_HIGH), _slot(3, _HIGH + _PAGE, half), _attributes(_HIGH + _PAGE)),
        *(_read(_HIGH + _PAGE), _punch(PRIVATE_RAM), _read(_HIGH + _PAGE)),
    )
    for gpa, size, flags, offset in (
        *((_HIGH, half, 4, 0), (_HIGH, half, 4, PRIVATE_RAM + _PAGE), (_HIGH, half, 4, 0x800)),
        *((_HIGH, half, 5, PRIVATE_RAM), (_HIGH, half, 6, PRIVATE_RAM), (_HIGH, half, 8, 0)),
        *((_HIGH, half, 4, -_PAGE), (_HIGH - _PAGE, half, 4, PRIVATE_RAM), (_HIGH, 0, 4, 0)),
        *((_HIGH + 1, half, 4, PRIVATE_RAM), (_HIGH, half, 2, 0), (_HIGH, half, 1, 0)),
    ):
        yield (
            *(_slot(2, gpa, size, flags, offset), _read(_HIGH), _write(_HIGH, 1)),
            *(_slot(2, gpa, size, flags, offset), _slot(2, 0, 0), _slot(2, 0, 0)),
        )
    yield (_slot(2, _HIGH, half), _slot(3, _HIGH + half, half), _slot(2, _HIGH + _PAGE, half))
    yield (_slot(2, _HIGH, half, 0), _slot(2, _HIGH, half), _slot(2, _HIGH + half, half, 0))
    yield (_slot(0x10002, _HIGH, half, 0), _slot(32764, _HIGH, half, 0))


def _exits() -> Iterator[tuple[Act, ...]]:
    """KVM_EXIT_MEMORY_FAULT and MMIO (GM6)."""
    for gpa in (_PLAIN, _NOWHERE):
        yield (_attributes(gpa), _read(gpa), _write(gpa, 1), _attributes(gpa, kind=0), _read(gpa))
        yield (_read(gpa), _attributes(gpa), _read(gpa))
    stale = (_read(_HIGH), _attributes(_HIGH), _slot(2, _HIGH, _PAGE), _read(_HIGH), _read(_HIGH))
    yield (*stale, _attributes(_HIGH, kind=0), _read(_HIGH), _attributes(_HIGH), _read(_HIGH))


def _calls() -> Iterator[tuple[Act, ...]]:
    """MAP_GPA_RANGE that user space carries out."""
    for gpa, pages, attributes in (
        *((_A, 1, 0x10), (_A, 4, 0x11), (_PLAIN, 1, 0x10), (_A, 1 << 52, 0x10), (_NOWHERE, 1, 0)),
        (PRIVATE_RAM - _PAGE, 2, 0x10),
    ):
        there = call(12, gpa, pages, attributes, answer=Answer.CONVERT)
        back = call(12, gpa, pages, attributes ^ 0x10, answer=Answer.CONVERT)
        yield (_write(gpa, 0x12), there, _read(gpa), _write(gpa, 0x34), back, _read(gpa), there)
    refused = call(12, _A, 1, 0x10, ret=22)
    yield (_write(_A, 0x12), refused, _read(_A), _peek(_A))


def _files() -> Iterator[tuple[Act, ...]]:
    """What KVM_CREATE_GUEST_MEMFD takes, and what user space meets in such a file (GM5, GM7)."""
    for size in (_PAGE, 2 * _PAGE, 0, 1, _PAGE + 1, 1 << 62, 1 << 63, -_PAGE):
        yield tuple(_act(StepOp.CREATE_MEMFD, size, flags) for flags in (0, 1, 2, 3, 4, 1 << 63))


def memory_matrix() -> Iterator[OracleCase]:
    """Every case on software-protected VMs, and files of plain ones; their numbers in a recording
    start with 1."""
    for group, cases in (
        *(("P1_attributes", _tests_of_attributes()), ("P2_copies", _copies())),
        *(("P3_conversions", _conversions()), ("P4_holes", _holes()), ("P5_slots", _slots())),
        *(("P6_exits", _exits()), ("P7_map_gpa_range", _calls()), ("P8_files", _files())),
    ):
        for acts in cases:
            yield OracleCase(group, _PROTECTED, acts)
    for acts in _files():
        yield OracleCase("P9_plain_files", _NOT_PROTECTED, acts)
