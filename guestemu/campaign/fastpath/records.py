# SPDX-License-Identifier: GPL-2.0-or-later
"""The records that Python and the fast path share; layout as in fast.h.

Every member has eight bytes: a number, or a host address. The code that stores an address
keeps what it points to alive.
"""

from __future__ import annotations

import ctypes
from typing import Final

from bitarray import bitarray

from guestemu.abi.errors import EngineError

ARGUMENTS: Final = 5
MAX_OPS: Final = 16
MAX_EXITS: Final = 1100
MAX_LINKS: Final = 64
MAX_KNOWN: Final = 32
STATES: Final = 16
KINDS: Final = 64
RUNS: Final = 1024
RECENT: Final = 4
MAX_REQUESTS: Final = 4096
MAX_PROGRAMS: Final = 512
REGIONS: Final = 4
BYTE_VALUES: Final = 256

_Word = ctypes.c_uint64
_ONE: Final = bitarray("1")


def _words(*names: str) -> tuple[tuple[str, type[ctypes.c_uint64]], ...]:
    return tuple((name, _Word) for names_ in names for name in names_.split())


class PlanRecord(ctypes.Structure):
    """`struct plan`: how to read the records of one kind of op."""

    _fields_ = (
        *_words("kind has_page is_call argument_count"),
        ("palettes", _Word * ARGUMENTS),
        ("masks", _Word * ARGUMENTS),
        ("postures", _Word),
    )


class PlaceRecord(ctypes.Structure):
    """`struct place`: what the region byte of a record says."""

    _fields_ = _words("region pages palette flag")


class RegionRecord(ctypes.Structure):
    """`struct region`: where the guest placed a region."""

    _fields_ = _words("gva gpa pages")


class StubRecord(ctypes.Structure):
    """`struct stub`: a way to start the CPU, and where it ends."""

    _fields_ = _words("launch words registers start end is_trap")


class RunsRecord(ctypes.Structure):
    """`struct runs`: a bit for each frame, as the places where the bits change."""

    _fields_ = (("count", _Word), ("at", _Word * RUNS))

    def assign(self, bits: bitarray) -> None:
        """Takes the map `bits`. Raises `EngineError` for one that changes oftener than a record
        holds."""
        places = [*(bits ^ bits >> 1).search(_ONE), *([len(bits)] if bits and bits[-1] else ())]
        if len(places) > RUNS:
            raise EngineError(f"a map with {len(places)} changes; the fast path holds {RUNS}")
        self.count = len(places)
        self.at[: len(places)] = places

    def bits(self, length: int) -> bitarray:
        """The map of `length` bits."""
        found = bitarray(length, endian="little")
        found.setall(False)
        places = [*self.at[: self.count], length]
        for start, end in zip(places[::2], places[1::2], strict=False):
            found[start:end] = True
        return found


class WindowRecord(ctypes.Structure):
    """`struct window`: a range of virtual pages with one bit each."""

    _fields_ = (*_words("start gfn pages"), ("bits", RunsRecord), ("base", RunsRecord))


class InputRecord(ctypes.Structure):
    """`struct input`: bytes of an input."""

    _fields_ = _words("data size")


class OpRecord(ctypes.Structure):
    """`struct op`."""

    _fields_ = (
        *_words("kind region page has_page mode cpl vcpu"),
        ("arguments", _Word * ARGUMENTS),
    )


class ExitRecord(ctypes.Structure):
    """`struct exit`."""

    _fields_ = (
        ("nr", _Word),
        ("args", _Word * 4),
        *_words("ret cpl is_64bit"),
    )


class KnownRecord(ctypes.Structure):
    """`struct known`: where VMMCALL was met, with which code selector."""

    _fields_ = _words("rip selector cpl is_64bit")


class SlotRecord(ctypes.Structure):
    """`struct shadow_slot`."""

    _fields_ = _words("gpa size memfd_offset flags")


class ShadowProgramRecord(ctypes.Structure):
    """`struct shadow_program`."""

    _fields_ = _words("first count input input_size verdict")


class ShadowRecord(ctypes.Structure):
    """`struct shadow`."""

    _fields_ = (
        *_words("requests inputs ask count begin input_size program_count slot_count slots"),
        *((name, RunsRecord) for name in ("all", "private_backing", "open")),
        *((name, RunsRecord) for name in ("attributes", "told", "private_pages", "shared_pages")),
        ("converted", RunsRecord),
        ("programs", ShadowProgramRecord * MAX_PROGRAMS),
    )


class FastRecord(ctypes.Structure):
    """`struct fast`."""

    _fields_ = (
        *_words("data size"),
        *_words("call release clear_error truth execute tick news reset answer look"),
        *_words("attention executions distinct skipped programs programs_mask"),
        *_words("lengths current deadly deadly_count"),
        *_words("area unseen area_words model_offset model_mask near_offset near_mask"),
        *_words("max_size vcpus limits is_lawful plans places"),
        ("regions", RegionRecord * REGIONS),
        *_words("launch rollback flush uc flush_command memory dirty_count log_count log"),
        *_words("slow_access blocks_left budget unsynced sync_switch in_values out_values"),
        *_words("decide original_decide ended"),
        ("stubs", StubRecord * STATES),
        ("kernel", StubRecord),
        ("functions", _Word * KINDS),
        *_words("user_stack kernel_stack no_such_function tables flags private_view cbit frames"),
        ("direct", WindowRecord),
        ("alias", WindowRecord),
        *((name, RunsRecord) for name in ("host", "host_base", "host_before", "direct_before")),
        *_words("host_map host_seen host_words is_host_lost"),
        *_words("base_state base_ready answers_judged record_judged"),
        *_words("has_host compares_untruncated user_state known_count"),
        ("known", KnownRecord * MAX_KNOWN),
        *_words("shadow"),
        *_words("state ready cpl is_64bit vcpu"),
        *_words("is_stale is_foreign cpu_state is_odd is_trapped trap exit_count ops_count"),
        *_words("previous objected recent recent_count"),
        ("recent_sizes", _Word * RECENT),
        *_words("link_count"),
        ("links", _Word * MAX_LINKS),
        ("exits", ExitRecord * MAX_EXITS),
        ("ops", OpRecord * MAX_OPS),
    )
