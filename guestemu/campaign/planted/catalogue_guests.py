# SPDX-License-Identifier: GPL-2.0-or-later
"""Bugs of guests: what kernels did or do wrong, planted in code that is clean otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from guestemu.abi.caches import CacheModel
from guestemu.campaign.planted.bug import Configuration, ZooBug, with_header
from guestemu.campaign.planted.checks import (
    agreement_only,
    with_agreement,
    with_cache,
    with_other_cpus,
)
from guestemu.campaign.planted.early_store import early_store_checks, watch_early_stores
from guestemu.campaign.planted.guests import GuestFactory, mapped_guest, policy_guest, variant_guest
from guestemu.checks import standard_checks
from guestemu.guest.dma.policy import AllocatorRules, OnFailure
from guestemu.guest.snippet.info import E820_RAM
from guestemu.program.program import Header

_CLEAN: Final = Configuration(
    "clean 6.12 code", with_header(), guest=variant_guest("clean"), checks=with_agreement
)
_CACHED_HEADER: Final = msgspec.structs.replace(
    with_header(), coherent=False, cache=CacheModel.EVICTING
)
_GIANT_HEADER: Final = with_header(memory=4096)
_LOW_END: Final = 0x9FC00
"""Where PC firmware ends the first RAM entry: not a page boundary."""

_MEMSET_BUDGET: Final = 2_000_000
"""A memset counts as a block for every 8 bytes."""


def _variant(
    bug_id: str,
    title: str,
    facts: str,
    where: str,
    target: str,
    check: str,
    repaired: Configuration = _CLEAN,
) -> ZooBug:
    """A bug in the code of a variant called like the bug."""
    planted = Configuration(
        f"{repaired.name} with {bug_id}",
        repaired.header,
        guest=variant_guest(bug_id.lower()),
        checks=repaired.checks,
        prepare=repaired.prepare,
    )
    return ZooBug(bug_id, title, facts, where, target, check, planted, repaired)


def _clean(name: str, variant: str, header: Header) -> Configuration:
    return Configuration(name, header, guest=variant_guest(variant), checks=with_agreement)


def _dma(bug_id: str, title: str, facts: str, where: str, policy: AllocatorRules) -> ZooBug:
    """A bug in what the coherent allocator does with a failed conversion."""
    header = with_header(budget=_MEMSET_BUDGET)
    repaired = Configuration("coherent allocator that leaks", header, guest=policy_guest(_LEAKS))
    planted = Configuration(f"coherent allocator with {bug_id}", header, guest=policy_guest(policy))
    return ZooBug(bug_id, title, facts, where, "dma", "free-pages", planted, repaired)


_LEAKS: Final = AllocatorRules("leaks", False, OnFailure.LEAK, OnFailure.LEAK, True)


def _whole(size: int) -> Sequence[tuple[int, int, int]]:
    return ((0, size, E820_RAM),)


def _unaligned(size: int) -> Sequence[tuple[int, int, int]]:
    return ((0, _LOW_END, E820_RAM), (_LOW_END, size - _LOW_END, E820_RAM))


def _boot(name: str, guest: GuestFactory) -> Configuration:
    return Configuration(name, with_header(), guest=guest, checks=standard_checks)


GUEST_BUGS: Final = (
    _variant(
        "M1",
        "the size is rounded up from an unaligned start: one page too many is reported",
        "A9, CVE-2023-53996",
        "Linux 5.16 to 6.5",
        "early",
        "agreement",
        _clean("clean code that reports what was asked for", "status-as-asked", with_header()),
    ),
    _dma(
        "M2",
        "pages are freed although decrypting failed half-way",
        "A.9, CVE-2024-35939",
        "Linux 5.8 to 6.8",
        AllocatorRules("m2", False, OnFailure.FREE, OnFailure.LEAK, True),
    ),
    _dma(
        "M3",
        "the result of set_memory_encrypted is ignored, pages are freed shared",
        "A.9",
        "Linux before 5.15",
        AllocatorRules("m3", True, OnFailure.LEAK, OnFailure.FREE, False),
    ),
    _dma(
        "M4",
        "a failed re-encryption is logged and the ring buffer is freed all the same",
        "A.9, CVE-2024-36909 and its family",
        "Hyper-V drivers before 2024",
        AllocatorRules("m4", False, OnFailure.LEAK, OnFailure.FREE, True),
    ),
    _variant(
        "M5",
        "the host is told what was asked for although the change failed half-way",
        "A3, A12",
        "Linux 5.16 to 5.18",
        "faults",
        "agreement",
    ),
    _variant(
        "M6",
        "a change that failed half-way is not reported at all",
        "A19",
        "Linux 5.19 on",
        "faults",
        "agreement",
    ),
    _variant(
        "M7",
        "a failed lookup ends the walk: the rest of the range is not reported",
        "A6, A13",
        "Linux 5.16 on, and the patch sets",
        "faults",
        "agreement",
        Configuration(
            "clean code that skips holes",
            with_header(),
            guest=variant_guest("holes-skipped"),
            checks=agreement_only,
        ),
    ),
    _variant(
        "M8",
        "a leaf of frame 0 is passed without moving on: an endless loop",
        "A14",
        "Linux 5.16 on",
        "faults",
        "progress",
    ),
    _variant(
        "M9",
        "npages << 12 is made in 32 bits: 2 GiB and more are not reported",
        "A20",
        "Linux 5.16 on",
        "giant",
        "agreement",
        _clean("clean 6.12 code, 4 GiB", "clean", _GIANT_HEADER),
    ),
    ZooBug(
        "M11",
        "off-lining a processor withdraws the consent to be migrated for good",
        "A43, A44",
        "Linux 5.16 on",
        "boot",
        "other-cpu",
        Configuration(
            "clean code, two processors, with M11",
            with_header(vcpus=2),
            guest=variant_guest("clean"),
            checks=with_other_cpus,
        ),
        Configuration(
            "clean code, two processors",
            with_header(vcpus=2),
            guest=variant_guest("boot-cpu-decides"),
            checks=with_other_cpus,
        ),
    ),
    ZooBug(
        "M12",
        "RAM entries that do not begin on a page are refused and so not reset after kexec",
        "A46",
        "Linux 5.16 on",
        "boot",
        "ready",
        _boot("clean code, unaligned memory map", mapped_guest(_unaligned)),
        _boot("clean code, one RAM entry", mapped_guest(_whole)),
    ),
    _variant(
        "M61",
        "the hypercall has number 11, which is SCHED_YIELD",
        "A49",
        "OVMF sev-migration-v1",
        "conversion",
        "status",
    ),
    _variant(
        "M62",
        "C-bit 47 is hard-coded on a machine that has another",
        "F11",
        "the migration handler's prototype",
        "conversion",
        "status",
    ),
    _variant(
        "M65",
        "the page is written before the host is told about the flip",
        "S1c",
        "mutation of Linux 6.12",
        "conversion",
        "early-store",
        Configuration(
            "clean 6.12 code, stores watched",
            with_header(),
            guest=variant_guest("clean"),
            checks=early_store_checks,
            prepare=watch_early_stores,
        ),
    ),
    _variant(
        "M66",
        "no TLB flush after the change: a stale entry takes later stores",
        "A2 step 7",
        "mutation of Linux 6.12",
        "conversion",
        "store-view",
        _clean("clean 6.12 code with speculation", "speculative", with_header()),
    ),
    _variant(
        "M67",
        "no cache flush before the change: a dirty private line is written over the shared data",
        "A26, E32",
        "mutation of Linux 6.12",
        "cache",
        "cache_loss",
        Configuration(
            "clean 6.12 code behind incoherent caches",
            _CACHED_HEADER,
            guest=variant_guest("clean"),
            checks=with_cache,
        ),
    ),
    _variant(
        "M68",
        "the direct-map alias of a vmalloc page is not converted",
        "A25",
        "mutation of Linux 6.12",
        "conversion",
        "status",
    ),
    _variant(
        "M71",
        "a hole in the range is filled from frame 0 or the frame before",
        "A26c",
        "Linux, all versions read",
        "faults",
        "frames",
    ),
    ZooBug(
        "M76a",
        "device memory is mapped with C = 0 and the host is not told",
        "D8c",
        "Linux ioremap",
        "device",
        "agreement",
        _CLEAN,
        _clean("clean code that reports devices", "notified-device", with_header()),
    ),
)
"""In the order of the fact sheet."""
