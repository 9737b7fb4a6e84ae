# SPDX-License-Identifier: GPL-2.0-or-later
"""How close an operation came to what the checks look at, as numbers of counters.

A check says yes or no, which does not lead a search towards a defect. These say: this range ended
at a word of a bitmap, at the end of RAM, one page off either; the host heard of fewer pages than
were converted; this value reached so many bits; so much of the budget was used; a TD's page was in
that state when its VMM attacked it. An engine keeps the first program for each, and mutates on from
there.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

from guestemu.abi.addresses import PAGE_SHIFT, U64_MASK
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.abi.msrs import MSR_KVM_MIGRATION_CONTROL
from guestemu.campaign.features import feature
from guestemu.checks.base import OpView
from guestemu.events.base import TABLE_WRITES, Event, kind_of
from guestemu.events.exits import AnsweredExit

_WORD: Final = 63
_NEAR: Final = {0: 1, 1: 2, _WORD: 3}
"""At a border of 64 frames, one behind it, one before it."""

_RANGE, _LENGTH, _NUMBER, _TOLD, _DIFFERENCE = range(5)
_MSR, _WORK, _EMITTED, _OTHER_EXIT, _ATTACKED = range(5, 10)
_FAR: Final = 2


def _of_range(record: AnsweredExit, frames: int) -> int:
    """Where a notified range begins and ends: against words of a bitmap, RAM and 64 bits."""
    first = record.args[0] >> PAGE_SHIFT
    end = first + record.args[1]
    beyond = end - frames
    return feature(
        _RANGE,
        _NEAR.get(first & _WORD, 0),
        _NEAR.get(end & _WORD, 0),
        beyond if -_FAR < beyond < _FAR else -_FAR if beyond < 0 else _FAR,
        end > U64_MASK,
        record.args[0] & 1,
    )


def _of_exit(record: AnsweredExit, frames: int) -> tuple[int, int]:
    if record.is_hypercall:
        if record.nr != KVM_HC_MAP_GPA_RANGE:
            return feature(_NUMBER, record.nr.bit_length()), 0
        return _of_range(record, frames), feature(_LENGTH, record.args[1].bit_length())
    if not (record.is_rdmsr or record.is_wrmsr):
        return feature(_OTHER_EXIT, _of_event(record)), 0
    distance = record.nr - MSR_KVM_MIGRATION_CONTROL
    value = record.args[0] if record.args else 0
    near = distance if -_FAR < distance < _FAR else _FAR
    is_write = record.is_wrmsr
    return feature(_MSR, is_write, near, value.bit_length(), value & 1), 0


def _of_event(event: Event) -> int:
    """Which kind of event, with its truths, words, and numbers by their length."""
    values = (getattr(event, name) for name in event.__struct_fields__ if name not in TABLE_WRITES)
    return feature(crc32(kind_of(event).encode()), *map(_class_of, values))


def _class_of(value: object) -> int:
    if isinstance(value, int):
        return value.bit_length()
    return crc32(str(value).encode())


def _of_conversion(view: OpView, asked: int) -> tuple[int, int]:
    """Pages notified to the host against pages asked for, and the blocks executed."""
    told = sum([record.args[1] for record in view.exits if record.is_hypercall])
    missing = asked - told
    left = view.guest.machine.hooks.watch.left
    used = max(view.guest.budget - left, 0)
    return (
        feature(_TOLD, missing > 0, abs(missing).bit_length(), told == 0),
        feature(_WORK, used.bit_length()),
    )


def near_misses(view: OpView, differs: bool) -> tuple[int, ...]:
    """Features that name what the operation came close to; `differs`: host and page tables do."""
    exits = view.exits
    frames = view.frames
    found: tuple[int, ...] = ()
    if exits:
        total = len(view.host_before)
        found = _of_exit(exits[-1], total)
        if len(exits) > 1:
            found += _of_exit(exits[0], total)
    if frames is not None:
        found += _of_conversion(view, frames[1])
    if differs and not exits:
        count = (view.host.private_map() ^ view.guest.leaf_map.private).count()
        found += (feature(_DIFFERENCE, count.bit_length()),)
    td = view.guest.td
    if td is not None and td.met:
        first, count = frames or (0, 0)
        is_hit = any(first <= gfn < first + count for gfn in td.attacked)
        found += (feature(_ATTACKED, view.op.kind, td.met, is_hit),)
    if view.emitted:
        found += tuple({feature(_EMITTED, _of_event(event)) for _, event in view.emitted})
    return found
