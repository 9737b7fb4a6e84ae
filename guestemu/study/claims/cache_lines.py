# SPDX-License-Identifier: GPL-2.0-or-later
"""Caches that tag lines with the C-bit, as evidence for C8 and C30 (fact E32).

`flush_stops` puts the flush of a conversion at three places, or leaves it out, and migrates between
any two steps. `look_at_lines` and `copy_page` are what a host finds, and what the firmware's COPY
does, while the page has lines in a cache.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, Gfn, Gpa
from guestemu.abi.caches import CacheModel
from guestemu.abi.hypercalls import (
    KVM_HC_MAP_GPA_RANGE,
    MAP_GPA_RANGE_DECRYPTED,
    MAP_GPA_RANGE_ENCRYPTED,
)
from guestemu.abi.sev_firmware import Command, Status
from guestemu.host.firmware.buffers import CopyBuffer
from guestemu.host.firmware.dispatch import execute
from guestemu.machine.cache import CachedRam
from guestemu.machine.cipher import PageCipher
from guestemu.machine.engine import Engine
from guestemu.machine.view_bit import sev_bit
from guestemu.program.ops import Op, OpKind, canonical_op
from guestemu.program.program import Header
from guestemu.runner.testbed import Testbed, build_testbed
from guestemu.study.claims.platforms import GUEST_BASE, Transfer
from guestemu.study.claims.result import Evidence

CACHED: Final = Header(coherent=False, cache=CacheModel.INCOHERENT)
"""A guest of our own code on a CPU that needs flushes, and has caches that need them."""

_OLD, _NEW = 0x11, 0x22
_FRAMES: Final = 16
_MIGRATION: Final = (
    Op(OpKind.MIGRATE_START, (1, 1)),
    Op(OpKind.HOST_DIRTY_FETCH, (1,)),
    Op(OpKind.HOST_STATUS_COPY),
    Op(OpKind.HOST_SEND, (0,)),
    Op(OpKind.MIGRATE_STOP),
)


def _flip(private: bool) -> Op:
    return Op(OpKind.TOUCH_CBIT, (int(private),))


def _tell(private: bool) -> Op:
    status = MAP_GPA_RANGE_ENCRYPTED if private else MAP_GPA_RANGE_DECRYPTED
    return Op(OpKind.HYPERCALL, (KVM_HC_MAP_GPA_RANGE, 0, 1, status, 0), has_page=True)


def _fill(value: int) -> Op:
    return Op(OpKind.WRITE, (value, 0, PAGE_SIZE))


def _evict(private: bool) -> Op:
    return Op(OpKind.EVICT, (1, int(private)), has_page=True)


def _ends(private: bool) -> tuple[Op, ...]:
    """The new alias's lines leave the cache, then the old one's: a line that should have been
    flushed goes over what was written since. Then the guest reads."""
    return _evict(private), _evict(not private), Op(OpKind.READ, (0,))


def _steps(private: bool) -> dict[str, tuple[Op, ...]]:
    """A conversion to `private`, with the flush at different places."""
    flip, tell, fill, flush = _flip(private), _tell(private), _fill(_NEW), _evict(not private)
    return {
        "before the change": (flush, flip, tell, fill),
        "between change and hypercall": (flip, flush, tell, fill),
        "after the hypercall": (flip, tell, flush, fill),
        "left out": (flip, tell, fill),
    }


class FlushStops(msgspec.Struct, frozen=True):
    """Conversions of one page, to shared and to private, whose flush is at one `place`.

    `stayed` of 2 lose the page without a migration. With one, `to_shared` and `to_private` lose it,
    each of `migrations`, which stop between two of the steps or at an end; `flushed` of all those
    where the destination's host flushes its own lines of the page before the guest goes on.
    """

    place: str
    stayed: int
    to_shared: int
    to_private: int
    flushed: int
    migrations: int


def flush_stops(header: Header = CACHED) -> tuple[FlushStops, ...]:
    """Runs all of them; private pages go through the SEV firmware, shared ones are stored by the
    destination's VMM. The guest's read at the end tells what is lost."""
    bed = build_testbed(header)
    try:
        return tuple(_one_place(bed, place) for place in _steps(True))
    finally:
        bed.close()


def _one_place(bed: Testbed, place: str) -> FlushStops:
    stayed = 0
    moved, flushed = [0, 0], 0
    for private in (False, True):
        steps = _steps(private)[place]
        before = (_flip(False), _tell(False), _fill(_OLD)) if private else (_fill(_OLD),)
        stayed += _is_lost(bed, (*before, *steps, *_ends(private)))
        for stop in range(len(steps) + 1):
            for arrival in ((), (_evict(False),)):
                stopped = (*before, *steps[:stop], *_MIGRATION, *arrival)
                lost = _is_lost(bed, (*stopped, *steps[stop:], *_ends(private)))
                moved[private] += lost and not arrival
                flushed += lost and bool(arrival)
    return FlushStops(place, stayed, moved[0], moved[1], flushed, len(_steps(True)[place]) + 1)


def _is_lost(bed: Testbed, ops: tuple[Op, ...]) -> bool:
    outcome = bed.run(tuple(map(canonical_op, ops)))
    return outcome.results[-1].outcome.value != int.from_bytes(bytes([_NEW]) * 8, "little")


def migrated_after_flush() -> tuple[Op, ...]:
    """The program of a loss: a page becomes private, the guest has flushed and changed the entry;
    the destination's VMM stores it as the shared page that it still is to the host."""
    before = (_flip(False), _tell(False), _fill(_OLD))
    flush, *rest = _steps(True)["before the change"]
    ops = (*before, flush, rest[0], *_MIGRATION, *rest[1:], *_ends(True))
    return tuple(map(canonical_op, ops))


# The host's views -----------------------------------------------------------------------------


class LineViews(msgspec.Struct, frozen=True):
    """Of a page that the guest just wrote, its lines dirty: bytes (of 4096) that are as written.

    `shared_alias` and `shared_past`: a shared page, loaded with C=0 and taken from DRAM past those
    lines. `firmware`: a private page, as the firmware's access with C=1 finds it. `mapping` and
    `mapping_flushed`: ciphertext in the VMM's own mapping (C=0), which it had read before; the
    guest's lines have reached DRAM, and the VMM's are still there, or were flushed by CLFLUSH.
    """

    shared_alias: int
    shared_past: int
    firmware: int
    mapping: int
    mapping_flushed: int


def cached_ram() -> CachedRam:
    """RAM of a few frames behind a cache that holds nothing yet."""
    ram = CachedRam(Engine(), _FRAMES, sev_bit(39), PageCipher(bytes(range(16))))
    ram.checkpoint()
    return ram


def look_at_lines(ram: CachedRam | None = None) -> LineViews:
    """A shared page and a private one, written and looked at by the host."""
    ram = ram or cached_ram()
    new = bytes([_NEW]) * PAGE_SIZE
    shared, private = Gpa(0), Gpa(PAGE_SIZE)
    ram.write(shared, new, private=False)
    past = ram.read_dram(shared, PAGE_SIZE)
    ram.read(private, PAGE_SIZE, private=False)
    ram.write(private, new)
    plain = ram.cipher.decrypt(Gfn(1), ram.read_dram(private, PAGE_SIZE))
    cipher_text = ram.cipher.encrypt(Gfn(1), new)
    ram.flush_lines(private, PAGE_SIZE, private=True)
    stale = ram.read(private, PAGE_SIZE, private=False)
    ram.flush_lines(private, PAGE_SIZE, private=False)
    return LineViews(
        _equal(ram.read(shared, PAGE_SIZE, private=False), new),
        _equal(past, new),
        _equal(plain, new),
        _equal(stale, cipher_text),
        _equal(ram.read(private, PAGE_SIZE, private=False), cipher_text),
    )


def _equal(one: bytes, other: bytes) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))


class Copied(msgspec.Struct, frozen=True):
    """COPY of a page whose lines are dirty, to a frame that the host cleared just before; then the
    host's lines of that frame leave the cache. `kept` bytes (of 4096) are what the guest wrote."""

    status: Status
    kept: int


def copy_page(flushes: bool) -> Copied:
    """COPY (E12) with the guest's RAM behind a cache; `flushes`: CLFLUSH of the cleared frame."""
    transfer = Transfer()
    platform, handle = transfer.source, transfer.source_handle
    ram = cached_ram()
    transfer.source_memory.attach(GUEST_BASE, ram, platform.memory_key(handle))
    content = bytes(range(256)) * (PAGE_SIZE // 256)
    first, second = Gpa(0), Gpa(PAGE_SIZE)
    ram.write(first, content)
    ram.write(second, bytes(PAGE_SIZE), private=False)
    if flushes:
        ram.flush_lines(second, PAGE_SIZE, private=False)
    buffer = CopyBuffer(handle, PAGE_SIZE, GUEST_BASE + first, GUEST_BASE + second)
    status = execute(platform, Command.COPY, buffer)
    ram.flush_lines(second, PAGE_SIZE, private=False)
    return Copied(status, _equal(ram.read(second, PAGE_SIZE), content))


def flush_evidence(found: FlushStops) -> tuple[Evidence, ...]:
    """What C8 shows of one place of the flush."""
    name = f"caches, flush {found.place}"
    how = f"of {found.migrations}, stopped between two steps or at an end"
    both = 2 * found.migrations
    return (
        Evidence(f"{name}: no migration", found.stayed, "conversions that lose", "of 2"),
        Evidence(f"{name}: made shared", found.to_shared, "migrations that lose", how),
        Evidence(f"{name}: made private", found.to_private, "migrations that lose", how),
        Evidence(
            f"{name}: the destination flushes what its VMM stored",
            found.flushed,
            "migrations that lose",
            f"of {both}, both directions",
        ),
    )
