# SPDX-License-Identifier: GPL-2.0-or-later
"""The fuzz targets of the zoo: which ops, how many, and which of their arguments make sense.

A target is the same for every bug planted in its part, for the repaired configuration and for every
arm of a comparison. Faults (a refused page-table allocation, a hole, an answer of user space) are
ops like others here. What a limiter takes away is only what a correct guest or host may not be
blamed for: an address inside a page, an alias of a page with a hole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.errno import EAGAIN, EINVAL
from guestemu.abi.errors import InputError
from guestemu.campaign.ranges import limit_ops
from guestemu.campaign.snp_ranges import limit_snp_ops
from guestemu.campaign.td_ranges import limit_td_ops
from guestemu.program.ops import MIRROR_SPECS, REGIONS, Op, OpKind, Region

Limiter = Callable[[tuple[Op, ...]], tuple[Op, ...]]

_GIANT_PAGES: Final = 1 << 20
_SETS: Final = frozenset({OpKind.SET_MEMORY_ENCRYPTED, OpKind.SET_MEMORY_DECRYPTED})
_EARLY: Final = frozenset({OpKind.EARLY_SET_MEMORY_ENCRYPTED, OpKind.EARLY_SET_MEMORY_DECRYPTED})
_ACCESSES: Final = frozenset({OpKind.WRITE, OpKind.READ})


_BY_GFN: Final = frozenset(
    {
        OpKind.HOST_GET_BITMAP,
        OpKind.HOST_SET_BITMAP,
        OpKind.HOST_SET_LIST,
        OpKind.HOST_COMMIT_SLOT,
        OpKind.HOST_POISON_PAGE,
    }
)
_USER_GFNS: Final = 0xFF
_USER_PAGES: Final = 0x3FF
_USER_REGIONS: Final = 0xF


class ZooTarget(msgspec.Struct, frozen=True):
    """A fuzz target: the kinds of its programs' ops, the most ops of a program, what `limit` makes
    of the ops that bytes stand for."""

    name: str
    summary: str
    kinds: frozenset[OpKind]
    max_ops: int
    limit: Limiter


def _as_they_are(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    return ops


def _lawful(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """As `guestemu fuzz conversion` without faults."""
    return limit_ops(ops, lawful=True)


def _moved(op: Op, region: Region, arguments: tuple[int, ...]) -> Op:
    page = op.page if op.page < REGIONS[region].pages else op.page % REGIONS[region].pages
    return msgspec.structs.replace(op, region=region, arguments=arguments, page=page)


def _td_ops(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """As `guestemu fuzz mapgpa` and `hostile-host:tdx`."""
    return limit_td_ops(ops, lawful=True)


def _snp_ops(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """As `guestemu fuzz hostile-host`."""
    return limit_snp_ops(ops, lawful=True)


def _psc_ops(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """User space answers with one of the errors that KVM documents."""
    return tuple(
        msgspec.structs.replace(
            op, arguments=(EAGAIN if op.arguments[0] & 1 else EINVAL, op.arguments[1])
        )
        if op.kind is OpKind.ANSWER
        else op
        for op in ops
    )


def _without_alias(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """Whole pages of the direct map: the kernel updates no alias of an unmapped page."""
    return tuple(
        _moved(op, Region.D, op.arguments) if op.region is Region.V else op
        for op in limit_ops(ops, lawful=True)
    )


def _early_bytes(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """Early conversions of any bytes in a few pages of the direct map."""
    limited = []
    for op in limit_ops(ops, lawful=False):
        region = Region.D if op.region is Region.V else op.region
        arguments = op.arguments
        if op.kind in _EARLY:
            size, offset = arguments
            arguments = (max(size, 1), offset)
        elif op.kind in _SETS:
            arguments = (arguments[0], 0)
        limited.append(_moved(op, region, arguments))
    return tuple(limited)


def _few_pages(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """Conversions of a page, stores to it and evictions of it, all of the same page."""
    limited = []
    for op in limit_ops(ops, lawful=True):
        arguments = op.arguments
        if op.kind is OpKind.EVICT:
            arguments = (1, arguments[1])
        elif op.kind in _SETS:
            arguments = (1, 0)
        elif op.kind is OpKind.WRITE:
            arguments = (arguments[0], 0, PAGE_SIZE)
        op = msgspec.structs.replace(op, region=Region.D, page=0, arguments=arguments)
        limited.append(op)
    return tuple(limited)


def _giant(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """Conversions of region G, up to all of it."""
    limited = []
    for op in ops:
        room = REGIONS[Region.G].pages
        page = op.page & ~0x3FFFF if op.page < room else 0
        pages = min(op.arguments[0] & (_GIANT_PAGES - 1) or 1, room - page)
        pages = pages & ~0x3FFFF or 0x40000
        limited.append(
            msgspec.structs.replace(op, region=Region.G, page=page, arguments=(pages, 0))
        )
    return tuple(limited)


def _one_stop(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """A second stop_conversion waits for ever: only the first is left."""
    seen = False
    kept = []
    for op in ops:
        if op.kind is OpKind.STOP_CONVERSION:
            if seen:
                continue
            seen = True
        kept.append(op)
    return tuple(kept)


def _in_ram(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """Touched entries are 4 KiB ones of the direct map."""
    return tuple(
        _moved(op, Region.D, op.arguments) if op.region is not Region.D else op
        for op in limit_ops(ops, lawful=True)
    )


def _sane_user_space(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """The host's own user space names gfns of a real guest; the guest may say anything."""
    limited = []
    for op in ops:
        if op.kind in _BY_GFN:
            gfn, *rest = op.arguments
            pages = [rest[0] & _USER_PAGES] if rest else []
            op = _moved(op, op.region, (gfn & _USER_GFNS, *pages, *rest[1:]))
        elif op.kind is OpKind.HOST_GET_LIST:
            size, gfn, length = op.arguments
            op = _moved(op, op.region, (size, gfn & _USER_GFNS, length & _USER_PAGES))
        if op.kind is OpKind.HOST_SET_LIST:
            gfn, length, count, null = op.arguments
            op = _moved(op, op.region, (gfn, length or 1, count & _USER_REGIONS, null))
        limited.append(op)
    return tuple(limited)


_HOST_COMMON: Final = frozenset({OpKind.HYPERCALL, OpKind.WRMSR, OpKind.RDMSR})

_TARGETS: Final = (
    ZooTarget(
        "hypercall",
        "raw VMMCALL and VMCALL with any registers, mode and CPL; ordered answers of user space",
        frozenset({OpKind.HYPERCALL, OpKind.ANSWER}),
        4,
        _as_they_are,
    ),
    ZooTarget(
        "kernel-calls",
        "hypercalls and accesses of pages, while calls of the VMM into its kernel fail",
        frozenset({OpKind.HYPERCALL, OpKind.FAIL_CALL, OpKind.GUEST_ACCESS}),
        4,
        _as_they_are,
    ),
    ZooTarget(
        "host-2019",
        "hypercalls and the ioctls of the bitmap generations of 2019",
        frozenset(
            {
                OpKind.HYPERCALL,
                OpKind.HOST_GET_BITMAP,
                OpKind.HOST_SET_BITMAP,
                OpKind.HOST_RESET_VCPU,
            }
        ),
        4,
        _sane_user_space,
    ),
    ZooTarget(
        "host-2020",
        "hypercalls, the opt-in MSR and the ioctls of the bitmap generations of 2020",
        _HOST_COMMON
        | {
            OpKind.HOST_GET_BITMAP,
            OpKind.HOST_SET_BITMAP,
            OpKind.HOST_RESET_BITMAP,
            OpKind.HOST_COMMIT_SLOT,
            OpKind.HOST_POISON_PAGE,
        },
        4,
        _sane_user_space,
    ),
    ZooTarget(
        "host-list",
        "hypercalls, the opt-in MSR and the ioctls of the shared-list generation",
        _HOST_COMMON | {OpKind.HOST_GET_LIST, OpKind.HOST_SET_LIST},
        5,
        _sane_user_space,
    ),
    ZooTarget(
        "msr",
        "RDMSR and WRMSR, the platform set-up and CPU off-lining",
        frozenset({OpKind.WRMSR, OpKind.RDMSR, OpKind.INIT_PLATFORM, OpKind.CPU_OFFLINE}),
        3,
        _as_they_are,
    ),
    ZooTarget(
        "boot",
        "what a former kernel left shared, then the platform set-up of the next one",
        frozenset({OpKind.HYPERCALL, OpKind.INIT_PLATFORM, OpKind.CPU_OFFLINE}),
        4,
        _as_they_are,
    ),
    ZooTarget(
        "conversion",
        "set_memory_encrypted and _decrypted with stores and loads between",
        _SETS | _ACCESSES,
        4,
        _lawful,
    ),
    ZooTarget(
        "cache",
        "set_memory_encrypted and _decrypted with stores, loads and evictions of cache lines",
        _SETS | _ACCESSES | {OpKind.EVICT},
        6,
        _few_pages,
    ),
    ZooTarget(
        "mapgpa",
        "a TD's conversions under retries, pending events and refusals",
        _SETS | {OpKind.PENDING_EVENT, OpKind.ANSWER},
        4,
        _td_ops,
    ),
    ZooTarget(
        "psc",
        "page-state requests of a hostile SNP guest, and user space's answers",
        frozenset({OpKind.PSC, OpKind.PSC_MIXED, OpKind.ANSWER}),
        3,
        _psc_ops,
    ),
    ZooTarget(
        "hostile-host",
        "an SNP guest's conversions, stores and loads under a hypervisor that lies and attacks",
        _SETS
        | _ACCESSES
        | {OpKind.HYPERVISOR_LIE, OpKind.HYPERVISOR_INJECT, OpKind.HYPERVISOR_PAGE},
        6,
        _snp_ops,
    ),
    ZooTarget(
        "hostile-td",
        "a TD's conversions, stores and loads under a VMM that attacks pages and injects events",
        _SETS
        | _ACCESSES
        | {
            OpKind.HYPERVISOR_INJECT,
            OpKind.HYPERVISOR_PAGE,
            OpKind.ANSWER,
            OpKind.PENDING_EVENT,
        },
        6,
        _td_ops,
    ),
    ZooTarget(
        "early",
        "early_set_memory_encrypted and _decrypted of any bytes",
        _SETS | _EARLY | _ACCESSES,
        4,
        _early_bytes,
    ),
    ZooTarget(
        "faults",
        "set_memory_encrypted and _decrypted under failing allocations and holes",
        _SETS | {OpKind.WRITE, OpKind.FAIL_SPLIT, OpKind.UNMAP},
        4,
        _without_alias,
    ),
    ZooTarget(
        "giant",
        "set_memory_encrypted and _decrypted of gigabytes",
        _SETS,
        2,
        _giant,
    ),
    ZooTarget(
        "dma",
        "coherent allocations and frees under failing conversions",
        frozenset({OpKind.DMA_ALLOC, OpKind.DMA_FREE, OpKind.FAIL_SPLIT, OpKind.STOP_CONVERSION}),
        6,
        _one_stop,
    ),
    ZooTarget(
        "firmware",
        "KVM's SEV ioctls on a running VM, an empty one and a mirror",
        frozenset({OpKind.SEV_IOCTL, OpKind.SEV_REGION}),
        6,
        _as_they_are,
    ),
    ZooTarget(
        "sync",
        "QEMU's status sync and list, handovers, resizes, resets",
        frozenset(
            {
                OpKind.QEMU_STATUS,
                OpKind.QEMU_SYNC,
                OpKind.QEMU_RESIZE,
                OpKind.QEMU_HANDOVER,
                OpKind.QEMU_RESET,
            }
        ),
        6,
        _as_they_are,
    ),
    ZooTarget(
        "outgoing",
        "pages through the firmware, and migrations that end",
        frozenset({OpKind.QEMU_SEND}),
        6,
        _as_they_are,
    ),
    ZooTarget(
        "stream",
        "records of the migration stream with any numbers",
        frozenset({OpKind.QEMU_RECORD}),
        4,
        _as_they_are,
    ),
    ZooTarget(
        "mirror",
        "migration through handlers in mirror VMs, contexts that are copied and moved",
        frozenset(MIRROR_SPECS) | {OpKind.SEV_IOCTL},
        6,
        _as_they_are,
    ),
    ZooTarget(
        "device",
        "pages that the guest maps with C = 0 for a device",
        _SETS | {OpKind.TOUCH_CBIT},
        3,
        _in_ram,
    ),
)

TARGETS: Final[Mapping[str, ZooTarget]] = {target.name: target for target in _TARGETS}
"""Every target by name."""


def find_target(name: str) -> ZooTarget:
    """The target called `name`. Raises `InputError`."""
    target = TARGETS.get(name)
    if target is None:
        raise InputError(f"zoo target {name!r}: no such target; use one of {', '.join(TARGETS)}")
    return target
