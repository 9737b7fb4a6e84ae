# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM that lies to its TD at MapGPA: with the status in R10, with the next GPA in R11 (T17, T18).

A TD is right if its caller reads an error or if it goes on with pages that the Secure EPT gives it;
what the VMM says of the others costs it those pages, and no secret: shared pages hold none, and a
private one that was not converted is still accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from guestemu.abi import tdx
from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.tdx import MapGpaAnswer
from guestemu.machine.exits import RunFailed
from guestemu.machine.view_bit import ViewBit

Answer = MapGpaAnswer | RunFailed
Honest = Callable[[int, int], Answer]
"""(gpa, size): converts that range as KVM does."""

_GARBAGE: Final = 2


class MapGpaLie(msgspec.Struct, frozen=True):
    """One lie; `text` says what it is. `answer` gets GPA, size, the shared bit, and what honest KVM
    would do."""

    name: str
    text: str
    answer: Callable[[int, int, ViewBit, Honest], Answer]


def _undone(_gpa: int, _size: int, _bit: ViewBit, _honest: Honest) -> Answer:
    return MapGpaAnswer(tdx.VMCALL_SUCCESS)


def _half(gpa: int, size: int, _bit: ViewBit, honest: Honest) -> Answer:
    return honest(gpa, max(size // 2 & ~(PAGE_SIZE - 1), PAGE_SIZE))


def _refused(gpa: int, size: int, _bit: ViewBit, honest: Honest) -> Answer:
    honest(gpa, size)
    return MapGpaAnswer(tdx.VMCALL_INVALID_OPERAND, gpa)


def _status(_gpa: int, _size: int, _bit: ViewBit, _honest: Honest) -> Answer:
    return MapGpaAnswer(_GARBAGE)


def _stall(gpa: int, _size: int, _bit: ViewBit, _honest: Honest) -> Answer:
    return MapGpaAnswer(tdx.VMCALL_RETRY, gpa)


def _end(gpa: int, size: int, _bit: ViewBit, honest: Honest) -> Answer:
    honest(gpa, size)
    return MapGpaAnswer(tdx.VMCALL_RETRY, gpa + size)


def _before(gpa: int, _size: int, _bit: ViewBit, _honest: Honest) -> Answer:
    return MapGpaAnswer(tdx.VMCALL_RETRY, gpa - PAGE_SIZE)


def _other_view(gpa: int, _size: int, bit: ViewBit, _honest: Honest) -> Answer:
    return MapGpaAnswer(tdx.VMCALL_RETRY, gpa ^ bit.mask)


def _unaligned(gpa: int, size: int, _bit: ViewBit, honest: Honest) -> Answer:
    if gpa & (PAGE_SIZE - 1):
        return honest(gpa, size)
    return MapGpaAnswer(tdx.VMCALL_RETRY, gpa + 1)


def _skip(gpa: int, size: int, _bit: ViewBit, honest: Honest) -> Answer:
    if size <= PAGE_SIZE:
        return honest(gpa, size)
    honest(gpa, PAGE_SIZE)
    return MapGpaAnswer(tdx.VMCALL_RETRY, gpa + size - PAGE_SIZE)


_ALL: Final = (
    MapGpaLie("mapgpa-undone", "success, nothing converted", _undone),
    MapGpaLie("mapgpa-half", "success, the first half converted", _half),
    MapGpaLie("mapgpa-refused", "converted, and the status says invalid operand", _refused),
    MapGpaLie("mapgpa-status", "a status that does not exist", _status),
    MapGpaLie("mapgpa-stall", "retry at the start, for ever", _stall),
    MapGpaLie("mapgpa-end", "converted; retry at the end of the range", _end),
    MapGpaLie("mapgpa-before", "retry before the start", _before),
    MapGpaLie("mapgpa-other-view", "retry with the shared bit inverted", _other_view),
    MapGpaLie("mapgpa-unaligned", "retry at the start and a byte", _unaligned),
    MapGpaLie("mapgpa-skip", "the first page converted; retry at the last one", _skip),
)

MAP_GPA_LIES: Final[Mapping[str, MapGpaLie]] = {lie.name: lie for lie in _ALL}
"""Every lie by its name."""
