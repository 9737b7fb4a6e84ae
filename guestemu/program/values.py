# SPDX-License-Identifier: GPL-2.0-or-later
"""Values worth trying, per sort of argument.

Fuzzing finds the edges of an interface, and random 64-bit numbers are almost never one. The lists
here are the edges that the sources name: the boundary table of KVM's argument tests (K3-e), the
32-bit `npages` overflow of the notifier (A20), the TLB flush ceiling of 33 pages, the leaf sizes,
attribute bits that KVM documents as zero but does not test (K3-d), the numbers of neighbouring
hypercalls and MSRs. The binary codec, the generator and the mutator all draw from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Final, TypeAlias

from guestemu.abi import ghcb, hypercalls, msrs
from guestemu.abi.addresses import (
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    PMD_SIZE,
    PUD_SIZE,
    U32_MASK,
    U64_MASK,
)
from guestemu.program.ops import REGIONS, SPECS, Argument, OpKind, Region

FLUSH_CEILING: Final = 33
"""tlb_single_page_flush_ceiling (arch/x86/mm/tlb.c): more pages than this flush everything."""

_SMALL_NUMBER: Final = 4
"""Numbers below this are tried anyway."""

_PMD_PAGES: Final = PMD_SIZE // PAGE_SIZE
_PUD_PAGES: Final = PUD_SIZE // PAGE_SIZE
_ENCRYPTED: Final = hypercalls.MAP_GPA_RANGE_ENCRYPTED


def _around(*values: int) -> tuple[int, ...]:
    return tuple((v + d) & U64_MASK for v in values for d in (-1, 0, 1))


_ERRORS: Final = tuple(
    -code & U64_MASK
    for code in (
        hypercalls.KVM_EPERM,
        hypercalls.KVM_E2BIG,
        hypercalls.KVM_EFAULT,
        hypercalls.KVM_EINVAL,
        hypercalls.KVM_EOPNOTSUPP,
        hypercalls.KVM_ENOSYS,
    )
)

_PSC_ENTRIES: Final = tuple(
    operation << 52 | is_2m << 56 | done
    for operation in (ghcb.PSC_OP_SHARED, ghcb.PSC_OP_PRIVATE)
    for is_2m in (0, 1)
    for done in (0, 1, _PMD_PAGES - 1, _PMD_PAGES, _PMD_PAGES + 1)
)
"""Either operation and size, with no page, some, all and more than all done."""

BOUNDARIES: Final[Mapping[Argument, tuple[int, ...]]] = {
    Argument.HYPERCALL_NUMBER: (
        hypercalls.KVM_HC_MAP_GPA_RANGE,
        hypercalls.KVM_HC_SCHED_YIELD,
        0,
        hypercalls.KVM_HC_VAPIC_POLL_IRQ,
        hypercalls.KVM_HC_KICK_CPU,
        hypercalls.KVM_HC_CLOCK_PAIRING,
        hypercalls.KVM_HC_SEND_IPI,
        hypercalls.KVM_HC_MAP_GPA_RANGE + 1,
        hypercalls.KVM_ENOSYS,
        U32_MASK,
        (1 << 32) | hypercalls.KVM_HC_MAP_GPA_RANGE,
        (1 << 63) | hypercalls.KVM_HC_MAP_GPA_RANGE,
        U64_MASK,
    ),
    Argument.ADDRESS: (
        0,
        1,
        0x7FF,
        PAGE_SIZE - 1,
        PAGE_SIZE,
        PAGE_SIZE + 1,
        *_around(PMD_SIZE, PUD_SIZE),
        PMD_SIZE - PAGE_SIZE,
        PUD_SIZE - PAGE_SIZE,
        (1 << 32) - PAGE_SIZE,
        1 << 32,
        (1 << 32) | PAGE_SIZE,
        1 << 39,
        1 << 47,
        1 << 51,
        (1 << 52) - PAGE_SIZE,
        1 << 52,
        1 << 63,
        U64_MASK - PAGE_SIZE + 1,
        U64_MASK,
    ),
    Argument.COUNT: (
        0,
        1,
        2,
        FLUSH_CEILING - 1,
        FLUSH_CEILING,
        FLUSH_CEILING + 1,
        *_around(_PMD_PAGES),
        1 << 10,
        *_around(_PUD_PAGES),
        *_around(1 << 19),
        *_around(1 << 20),
        1 << 31,
        U32_MASK,
        1 << 32,
        (1 << 32) | 1,
        *_around(1 << 52),
        1 << 63,
        U64_MASK - 1,
        U64_MASK,
    ),
    Argument.ATTRIBUTES: (
        0,
        _ENCRYPTED,
        hypercalls.MAP_GPA_RANGE_PAGE_SZ_2M,
        hypercalls.MAP_GPA_RANGE_PAGE_SZ_1G,
        _ENCRYPTED | hypercalls.MAP_GPA_RANGE_PAGE_SZ_2M,
        _ENCRYPTED | hypercalls.MAP_GPA_RANGE_PAGE_SZ_1G,
        0x3,
        0xF,
        _ENCRYPTED | 0xF,
        0x20,
        0x30,
        1 << 32,
        1 << 63,
        U64_MASK,
    ),
    Argument.U64: (
        0,
        1,
        0x10,
        0x7FFF_FFFF,
        1 << 31,
        U32_MASK,
        1 << 32,
        1 << 63,
        U64_MASK,
        *_ERRORS,
    ),
    Argument.MSR: (
        msrs.MSR_KVM_MIGRATION_CONTROL,
        msrs.MSR_KVM_MIGRATION_CONTROL - 1,
        msrs.MSR_KVM_MIGRATION_CONTROL + 1,
        msrs.MSR_KVM_CUSTOM_FIRST,
        msrs.MSR_KVM_CUSTOM_LAST,
        msrs.MSR_KVM_CUSTOM_FIRST - 1,
        msrs.MSR_KVM_CUSTOM_LAST + 1,
        msrs.MSR_EFER,
        msrs.MSR_AMD64_SEV_ES_GHCB,
        msrs.MSR_AMD64_SEV,
        0,
        U32_MASK,
    ),
    Argument.MSR_VALUE: (
        msrs.KVM_MIGRATION_READY,
        0,
        2,
        3,
        msrs.EFER_SCE | msrs.EFER_LME | msrs.EFER_LMA | msrs.EFER_NX,
        1 << 31,
        1 << 32,
        (1 << 32) | msrs.KVM_MIGRATION_READY,
        1 << 63,
        U64_MASK,
    ),
    Argument.SIZE: (
        PAGE_SIZE,
        0,
        1,
        8,
        PAGE_SIZE - 1,
        PAGE_SIZE + 1,
        2 * PAGE_SIZE - 1,
        2 * PAGE_SIZE,
        2 * PAGE_SIZE + 1,
        16 * PAGE_SIZE,
        FLUSH_CEILING * PAGE_SIZE,
        (FLUSH_CEILING + 1) * PAGE_SIZE,
        PMD_SIZE - 1,
        PMD_SIZE,
        PMD_SIZE + 1,
    ),
    Argument.OFFSET: (0, 1, 8, 15, 0x7FF, 0x800, PAGE_SIZE - 8, PAGE_SIZE - 1),
    Argument.BYTE: (0, 1, 0x5A, 0x7F, 0x80, 0xFF),
    Argument.SLOT: (0, 1, 2, 3, 15),
    Argument.FLAG: (0, 1),
    Argument.SMALL: (0, 1, 2, 3, 4, 8, 1023),
    Argument.SEV_LENGTH: (
        *(0, 1, 8, 9, 15, 16, 17, 47, 48, 51, 52),
        *_around(PAGE_SIZE),
        *_around(0x4000),
        *_around(0x5000),
        *(1 << 31, U32_MASK - PAGE_SIZE, U32_MASK - 15, U32_MASK),
    ),
    Argument.SEV_OFFSET: (0, 1, 8, 15, 16, 2048, PAGE_SIZE - 16, PAGE_SIZE - 1),
    Argument.SEV_COMMAND: (0, 1, 5, 10, 14, 19, 20, 22, 23, 100, U32_MASK),
    Argument.PSC_ENTRY: (
        *_PSC_ENTRIES,
        *(0, 3 << 52, 1 << 63, U64_MASK),
    ),
    Argument.VECTOR: (29, 0x80, 0x20, 2, 1, 3, 8, 13, 14, 18, 28, 30, 31, 0xFF),
    Argument.EXIT_CODE: (
        *(ghcb.EXIT_PAGE_NOT_VALIDATED, ghcb.EXIT_VMMCALL, ghcb.EXIT_CPUID, ghcb.EXIT_MSR),
        *(0, 0x40, 0x6E, 0x7B, 0x87, 0x400, U32_MASK),
    ),
    Argument.INSTRUCTIONS: (0, 1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 0xFFFF),
}
"""Every edge of each sort, the usual values first."""

_BUFFER: Final = 2032
"""GHCB_SHARED_BUF_SIZE: bytes of a GHCB's shared buffer."""

_COPIED: Final = 16 * PAGE_SIZE
"""GHCB_SCRATCH_AREA_LIMIT of KVM: the most that is copied from a buffer outside of the GHCB."""

LATER_EDGES: Final[Mapping[tuple[OpKind, int], tuple[int, ...]]] = {
    (OpKind.PSC, 2): (
        *_around(1 << 16),
        *_around(ghcb.PSC_MAX_COUNT << 16),
        *_around(ghcb.PSC_MAX_COUNT),
    ),
    (OpKind.PSC, 3): (
        *_around(_BUFFER),
        *_around(ghcb.GHCB_SHARED_BUFFER),
        *_around(-ghcb.GHCB_SHARED_BUFFER),
        PAGE_SIZE,
    ),
    (OpKind.PSC, 4): (*_around(8), *_around(_BUFFER), PAGE_SIZE, *_around(_COPIED)),
}
"""Further edges by kind and position, of what came after the palettes, whose bytes have their
meaning for good: an SNP guest's header counts 253 entries, its buffer has 2032 bytes."""

USUAL: Final[Mapping[Argument, tuple[int, ...]]] = {
    Argument.HYPERCALL_NUMBER: (hypercalls.KVM_HC_MAP_GPA_RANGE,),
    Argument.ADDRESS: (0, *(page * PAGE_SIZE for page in range(24))),
    Argument.COUNT: tuple(range(1, 25)),
    Argument.ATTRIBUTES: (_ENCRYPTED, hypercalls.MAP_GPA_RANGE_DECRYPTED),
    Argument.U64: (0, *range(16)),
    Argument.MSR: (msrs.MSR_KVM_MIGRATION_CONTROL,),
    Argument.MSR_VALUE: (0, msrs.KVM_MIGRATION_READY),
    Argument.SIZE: tuple(pages * PAGE_SIZE for pages in range(1, 25)),
    Argument.OFFSET: (0,),
    Argument.BYTE: tuple(range(256)),
    Argument.SLOT: tuple(range(8)),
    Argument.FLAG: (0, 1),
    Argument.SMALL: tuple(range(8)),
    Argument.SEV_LENGTH: (PAGE_SIZE, PAGE_SIZE, PAGE_SIZE, 16, 32, 2048, 9, 0x5000, U32_MASK),
    Argument.SEV_OFFSET: (0, 0, 0, 16, 8, 2048),
    Argument.SEV_COMMAND: (2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 18, 21),
    Argument.PSC_ENTRY: (ghcb.PSC_OP_SHARED << 52, ghcb.PSC_OP_PRIVATE << 52),
    Argument.VECTOR: (29, 0x20, 0x80, 0xEC),
    Argument.EXIT_CODE: (ghcb.EXIT_PAGE_NOT_VALIDATED,),
    Argument.INSTRUCTIONS: tuple(3 * step * step // 2 for step in range(32)),
}
"""What a well-behaved guest passes: the bulk of random programs, between the edges."""

CALL_COUNTS: Final = (
    *(0, 1, 2, 3, FLUSH_CEILING - 1, FLUSH_CEILING, FLUSH_CEILING + 1),
    *(*_around(_PMD_PAGES), 2 * _PMD_PAGES),
)
"""Page counts for the kernel's own functions, without the ones that take a guest milliseconds."""

HOT_PAGES: Final[Mapping[Region, tuple[int, ...]]] = {
    region: tuple(
        page
        for page in (
            *range(8),
            *(_PMD_PAGES + delta for delta in (-2, -1, 0, 1)),
            *(_PUD_PAGES + delta for delta in (-1, 0)),
            *(spec.pages + delta for delta in (-2, -1)),
        )
        if page < spec.pages
    )
    for region, spec in REGIONS.items()
}
"""Pages where conversions meet each other and the leaf and region edges; ops that never touch the
same page cannot disturb each other."""


def boundaries_of(kind: OpKind, position: int) -> tuple[int, ...]:
    """The edges of argument `position` of `kind`, the cheap ones only where a call would loop."""
    sort = SPECS[kind].arguments[position].sort
    if sort is Argument.COUNT and not SPECS[kind].has_mode:
        return CALL_COUNTS
    return BOUNDARIES[sort]


@cache
def palette_of(kind: OpKind, position: int) -> tuple[int, ...]:
    """The 256 values that one byte chooses for argument `position` of `kind`.

    Index 0 is the default, then every edge once, then the usual values over and over, so that a
    random byte mostly means what a real guest does and sometimes an edge.
    """
    argument = SPECS[kind].arguments[position]
    head = (argument.default, *boundaries_of(kind, position))
    usual = USUAL[argument.sort]
    return (head + usual * 256)[:256]


Extra: TypeAlias = Mapping[Argument, tuple[int, ...]]
"""Further values by sort: what the code of a user's host compares with, where its slots end."""

_MOST_EXTRA: Final = 64
"""Bytes of a palette that choose from further values. Every usual value has one below them."""


def with_extra(palette: tuple[int, ...], extra: tuple[int, ...]) -> tuple[int, ...]:
    """`palette` whose last places hold the values of `extra` that it lacks."""
    missing = [value for value in extra if value not in palette][:_MOST_EXTRA]
    return (*palette[: len(palette) - len(missing)], *missing)


def extra_values(numbers: Iterable[int], frames: Iterable[int] = ()) -> Extra:
    """Arguments by sort that meet comparisons with `numbers`, and ranges around `frames`, gfns at
    which slots begin or end. The first numbers come first."""
    counts: list[int] = []
    addresses: list[int] = []
    plain: list[int] = []
    near: list[int] = []
    places = tuple(frames)
    for gfn in places:
        addresses += [place << PAGE_SHIFT for place in (gfn, gfn - 1, gfn - 2) if place >= 0]
    for number in numbers:
        value = number & U64_MASK
        if value < _SMALL_NUMBER:
            continue
        plain.append(value)
        around = _around(value)
        near += around
        counts += around
        if not value & PAGE_MASK:
            counts += _around(value >> PAGE_SHIFT)
            addresses += [value, value - PAGE_SIZE & U64_MASK]
        if not value & value + 1:  # a mask: the first bit that it leaves out
            addresses.append(value + 1 & U64_MASK)
        if value <= U64_MASK >> PAGE_SHIFT:
            addresses += [place << PAGE_SHIFT & U64_MASK for place in around]
    return {
        Argument.HYPERCALL_NUMBER: tuple(dict.fromkeys(plain)),
        Argument.ADDRESS: tuple(dict.fromkeys(addresses)),
        Argument.COUNT: tuple(dict.fromkeys(counts)),
        Argument.ATTRIBUTES: tuple(dict.fromkeys(plain)),
        Argument.MSR_VALUE: tuple(dict.fromkeys(near)),
        Argument.U64: places,
    }


@cache
def page_palette(region: Region) -> tuple[int, ...]:
    """The 256 page indices of `region` that one byte chooses: `HOT_PAGES` over and over."""
    return (HOT_PAGES[region] * 256)[:256]
