# SPDX-License-Identifier: GPL-2.0-or-later
"""A program: the whole configuration (header), the ops, and what is expected of a run."""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from guestemu.abi.caches import CacheModel
from guestemu.program.ops import Op

FORMAT_VERSION: Final = 1


class SevKind(enum.Enum):
    """Which memory encryption the guest runs under."""

    SEV = "sev"
    SEV_ES = "es"
    SEV_SNP = "snp"
    TDX = "tdx"


class Header(msgspec.Struct, frozen=True):
    """Everything a `.prog` needs to replay without options.

    `memory` is in MiB; `cbit` is the bit number; `switches` are the names of the host's historic
    defects that are repaired in this run; `budget` bounds each op, in guest basic blocks;
    `coherent` is CPUID 0x8000001F EAX bit 10 (no cache flushes needed at a conversion); `cache`
    says whether there are caches that need them, `seed` decides which lines those evict; `layout`
    says where memory slots lie (layout.py), empty for one over all of RAM. With `beside` the run is
    judged by lock-step alone: these hosts run the same operations, and differences from `host` that
    no known one explains are violations.

    `plugin` is not part of a file: the path of the code that `host` names (FILE.py:CLASS), once the
    user has allowed it (`host.permission`); without it such a host is not loaded.
    """

    guest: str = "snippet:6.1"
    host: str = "map-gpa-range"
    switches: tuple[str, ...] = ()
    sev: SevKind = SevKind.SEV
    cbit: int = 39
    memory: int = 64
    vcpus: int = 1
    seed: int = 0
    budget: int = 1_000_000
    coherent: bool = True
    cache: CacheModel = CacheModel.NONE
    layout: str = ""
    beside: tuple[str, ...] = ()
    plugin: str = ""


class Expectation(msgspec.Struct, frozen=True):
    """One `expect` line: a name of the outcome (`outcome`, `violation`, `hypercalls`, `result`,
    `value`, `exception`, `warning`, `trace_hash`), the op index it is about (None: the whole run)
    and the value."""

    name: str
    value: str
    op: int | None = None


class Program(msgspec.Struct, frozen=True):
    """Header, ops and expectations. Equal programs behave equally: a run has no other input."""

    header: Header = Header()
    ops: tuple[Op, ...] = ()
    expectations: tuple[Expectation, ...] = ()
