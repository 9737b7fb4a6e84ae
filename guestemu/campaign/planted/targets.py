# SPDX-License-Identifier: GPL-2.0-or-later
"""The fuzz targets of the zoo: which ops, how many, and which of their arguments make sense.

A target is the same for every bug planted in its part, for the repaired configuration and for every
arm of a comparison. Faults (a refused page-table allocation, a hole, an answer of user space) are
ops like others here. What a limiter takes away is only what a correct guest or host may not be
blamed for: an address inside a page, an alias of a page with a hole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.errno import EAGAIN, EINVAL
from guestemu.abi.errors import InputError
from guestemu.campaign.ranges import limit_ops
from guestemu.campaign.snp_ranges import limit_psc_ops, limit_snp_ops
from guestemu.campaign.targets import Target
from guestemu.campaign.td_ranges import limit_td_ops
from guestemu.program.ops import MIRROR_SPECS, REGIONS, Op, OpKind, Region

_GIANT_PAGES: Final = 1 << 20
_SETS: Final = frozenset({OpKind.SET_MEMORY_ENCRYPTED, OpKind.SET_MEMORY_DECRYPTED})
_EARLY: Final = frozenset({OpKind.EARLY_SET_MEMORY_ENCRYPTED, OpKind.EARLY_SET_MEMORY_DECRYPTED})
_ACCESSES: Final = frozenset({OpKind.WRITE, OpKind.READ})
_ACTS: Final = frozenset(
    {
        OpKind.HYPERVISOR_LIE,
        OpKind.HYPERVISOR_INJECT,
        OpKind.HYPERVISOR_PAGE,
        OpKind.HYPERVISOR_WAIT,
    }
)


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


def _moved(op: Op, region: Region, arguments: tuple[int, ...]) -> Op:
    page = op.page if op.page < REGIONS[region].pages else op.page % REGIONS[region].pages
    return msgspec.structs.replace(op, region=region, arguments=arguments, page=page)


def _psc_ops(ops: tuple[Op, ...], lawful: bool) -> tuple[Op, ...]:
    """User space answers with one of the errors that KVM documents."""
    return tuple(
        msgspec.structs.replace(
            op, arguments=(EAGAIN if op.arguments[0] & 1 else EINVAL, op.arguments[1])
        )
        if op.kind is OpKind.ANSWER
        else op
        for op in limit_psc_ops(ops, lawful)
    )


def _without_alias(ops: tuple[Op, ...], lawful: bool) -> tuple[Op, ...]:
    """Whole pages of the direct map: the kernel updates no alias of an unmapped page."""
    return tuple(
        _moved(op, Region.D, op.arguments) if op.region is Region.V else op
        for op in limit_ops(ops, lawful)
    )


def _early_bytes(ops: tuple[Op, ...], _lawful: bool) -> tuple[Op, ...]:
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


def _few_pages(ops: tuple[Op, ...], lawful: bool) -> tuple[Op, ...]:
    """Conversions of a page, stores to it and evictions of it, all of the same page."""
    limited = []
    for op in limit_ops(ops, lawful):
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


def _giant(ops: tuple[Op, ...], _lawful: bool) -> tuple[Op, ...]:
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


def _one_stop(ops: tuple[Op, ...], _lawful: bool) -> tuple[Op, ...]:
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


def _in_ram(ops: tuple[Op, ...], lawful: bool) -> tuple[Op, ...]:
    """Touched entries are 4 KiB ones of the direct map."""
    return tuple(
        _moved(op, Region.D, op.arguments) if op.region is not Region.D else op
        for op in limit_ops(ops, lawful)
    )


def _sane_user_space(ops: tuple[Op, ...], _lawful: bool) -> tuple[Op, ...]:
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
    Target(
        name="hypercall",
        summary="raw VMMCALL and VMCALL with any registers, mode and CPL; ordered answers of user "
        "space",
        kinds=frozenset({OpKind.HYPERCALL, OpKind.ANSWER}),
        max_ops=4,
    ),
    Target(
        name="kernel-calls",
        summary="hypercalls and accesses of pages, while calls of the VMM into its kernel fail",
        kinds=frozenset({OpKind.HYPERCALL, OpKind.FAIL_CALL, OpKind.GUEST_ACCESS}),
        max_ops=4,
    ),
    Target(
        name="in-place",
        summary="hypercalls, while pages of a guest_memfd that converts in place are in use",
        kinds=frozenset({OpKind.HYPERCALL, OpKind.PIN_PAGE}),
        max_ops=4,
    ),
    Target(
        name="host-2019",
        summary="hypercalls and the ioctls of the bitmap generations of 2019",
        kinds=frozenset(
            {
                OpKind.HYPERCALL,
                OpKind.HOST_GET_BITMAP,
                OpKind.HOST_SET_BITMAP,
                OpKind.HOST_RESET_VCPU,
            }
        ),
        max_ops=4,
        limit=_sane_user_space,
    ),
    Target(
        name="host-2020",
        summary="hypercalls, the opt-in MSR and the ioctls of the bitmap generations of 2020",
        kinds=_HOST_COMMON
        | {
            OpKind.HOST_GET_BITMAP,
            OpKind.HOST_SET_BITMAP,
            OpKind.HOST_RESET_BITMAP,
            OpKind.HOST_COMMIT_SLOT,
            OpKind.HOST_POISON_PAGE,
        },
        max_ops=4,
        limit=_sane_user_space,
    ),
    Target(
        name="host-list",
        summary="hypercalls, the opt-in MSR and the ioctls of the shared-list generation",
        kinds=_HOST_COMMON | {OpKind.HOST_GET_LIST, OpKind.HOST_SET_LIST},
        max_ops=5,
        limit=_sane_user_space,
    ),
    Target(
        name="msr",
        summary="RDMSR and WRMSR, the platform set-up and CPU off-lining",
        kinds=frozenset({OpKind.WRMSR, OpKind.RDMSR, OpKind.INIT_PLATFORM, OpKind.CPU_OFFLINE}),
        max_ops=3,
    ),
    Target(
        name="boot",
        summary="what a former kernel left shared, then the platform set-up of the next one",
        kinds=frozenset({OpKind.HYPERCALL, OpKind.INIT_PLATFORM, OpKind.CPU_OFFLINE}),
        max_ops=4,
    ),
    Target(
        name="conversion",
        summary="set_memory_encrypted and _decrypted with stores and loads between",
        kinds=_SETS | _ACCESSES,
        max_ops=4,
        limit=limit_ops,
    ),
    Target(
        name="cache",
        summary="set_memory_encrypted and _decrypted with stores, loads and evictions of cache "
        "lines",
        kinds=_SETS | _ACCESSES | {OpKind.EVICT},
        max_ops=6,
        limit=_few_pages,
    ),
    Target(
        name="mapgpa",
        summary="a TD's conversions under retries, pending events and refusals",
        kinds=_SETS | {OpKind.PENDING_EVENT, OpKind.ANSWER},
        max_ops=4,
        limit=limit_td_ops,
    ),
    Target(
        name="psc",
        summary="page-state requests of a hostile SNP guest, and user space's answers",
        kinds=frozenset(
            {
                OpKind.PSC,
                OpKind.PSC_MIXED,
                OpKind.RMPADJUST,
                OpKind.AP_CREATION,
                OpKind.ANSWER,
            }
        ),
        max_ops=3,
        limit=_psc_ops,
    ),
    Target(
        name="hostile-host",
        summary="an SNP guest's conversions, stores and loads under a hypervisor that lies and "
        "attacks",
        kinds=_SETS | _ACCESSES | _ACTS | {OpKind.RMPADJUST, OpKind.AP_CREATION},
        max_ops=6,
        limit=limit_snp_ops,
    ),
    Target(
        name="hostile-td",
        summary="a TD's conversions, stores and loads under a VMM that lies at MapGPA, attacks "
        "pages and injects events",
        kinds=_SETS | _ACCESSES | _ACTS | {OpKind.ANSWER, OpKind.PENDING_EVENT},
        max_ops=6,
        limit=limit_td_ops,
    ),
    Target(
        name="early",
        summary="early_set_memory_encrypted and _decrypted of any bytes",
        kinds=_SETS | _EARLY | _ACCESSES,
        max_ops=4,
        limit=_early_bytes,
    ),
    Target(
        name="faults",
        summary="set_memory_encrypted and _decrypted under failing allocations and holes",
        kinds=_SETS | {OpKind.WRITE, OpKind.FAIL_SPLIT, OpKind.UNMAP},
        max_ops=4,
        limit=_without_alias,
    ),
    Target(
        name="giant",
        summary="set_memory_encrypted and _decrypted of gigabytes",
        kinds=_SETS,
        max_ops=2,
        limit=_giant,
    ),
    Target(
        name="dma",
        summary="coherent allocations and frees under failing conversions",
        kinds=frozenset(
            {OpKind.DMA_ALLOC, OpKind.DMA_FREE, OpKind.FAIL_SPLIT, OpKind.STOP_CONVERSION}
        ),
        max_ops=6,
        limit=_one_stop,
    ),
    Target(
        name="firmware",
        summary="KVM's SEV ioctls on a running VM, an empty one and a mirror",
        kinds=frozenset({OpKind.SEV_IOCTL, OpKind.SEV_REGION}),
        max_ops=6,
    ),
    Target(
        name="sync",
        summary="QEMU's status sync and list, handovers, resizes, resets",
        kinds=frozenset(
            {
                OpKind.QEMU_STATUS,
                OpKind.QEMU_SYNC,
                OpKind.QEMU_RESIZE,
                OpKind.QEMU_HANDOVER,
                OpKind.QEMU_RESET,
            }
        ),
        max_ops=6,
    ),
    Target(
        name="outgoing",
        summary="pages through the firmware, and migrations that end",
        kinds=frozenset({OpKind.QEMU_SEND}),
        max_ops=6,
    ),
    Target(
        name="stream",
        summary="records of the migration stream with any numbers",
        kinds=frozenset({OpKind.QEMU_RECORD}),
        max_ops=4,
    ),
    Target(
        name="mirror",
        summary="migration through handlers in mirror VMs, contexts that are copied and moved",
        kinds=frozenset(MIRROR_SPECS) | {OpKind.SEV_IOCTL},
        max_ops=6,
    ),
    Target(
        name="device",
        summary="pages that the guest maps with C = 0 for a device",
        kinds=_SETS | {OpKind.TOUCH_CBIT},
        max_ops=3,
        limit=_in_ram,
    ),
)

TARGETS: Final[Mapping[str, Target]] = {target.name: target for target in _TARGETS}
"""Every target by name."""


def find_target(name: str) -> Target:
    """The target called `name`. Raises `InputError`."""
    target = TARGETS.get(name)
    if target is None:
        raise InputError(f"zoo target {name!r}: no such target; use one of {', '.join(TARGETS)}")
    return target
