# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be fuzzed, as data: the ops of a target, its default header and its length.

Ops are few and programs short on purpose: a hypercall defect needs one or two ops, and the rate is
what finds its edge. Fault ops (injected answers, failing allocations, holes in the page tables) are
off by default, because what a guest of 5.10 to 6.12 does about them are its known defects (A14,
A19, A26c): with them the default host and guest have findings by design.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.names import nearest
from guestemu.campaign.migration_ops import LAWFUL_ORDER, MAX_OPS, migration_limiter
from guestemu.campaign.ranges import Limit, limit_ops
from guestemu.campaign.snp_ranges import limit_psc_ops, limit_snp_ops
from guestemu.campaign.td_ranges import limit_td_ops
from guestemu.program.device_specs import (
    DEVICE_CHANGE_SPECS,
    DEVICE_FAULT_SPECS,
    DEVICE_USE_SPECS,
)
from guestemu.program.layout import PLUG
from guestemu.program.ops import (
    HOST_SPECS,
    LINK_SPECS,
    MIGRATION_SPECS,
    MIRROR_SPECS,
    QEMU_SPECS,
    SEV_SPECS,
    VMM_SPECS,
    OpKind,
)
from guestemu.program.program import Header, SevKind

LOCKSTEP_HOSTS: Final = ("qemu-v4", "shared-list-v10", "bitmap-v8", "bitmap-v6")
"""What runs beside the default host: one of each generation."""

_LOST_STRICT: Final = "lost_strict"
"""`checks.lost.LOST_STRICT`; a list of targets needs no checks."""

_HOT_PLUG: Final = frozenset({OpKind.HOST_COMMIT_SLOT, OpKind.UNPLUG_SLOT})

_BUDGET: Final = 200_000
"""Basic blocks an op may take: several times what the longest conversion needs."""


class Target(msgspec.Struct, frozen=True):
    """One target.

    `kinds` are the ops of its programs, `fault_kinds` those that `--faults` adds (empty: the target
    has none); `max_ops` bounds a program; `header` is what its programs start from; `limit`
    makes any ops a program of it. `order`: the host steps that its programs are migrations
    by (migration_ops.py). Violations named in `ignored` are no findings.
    """

    name: str
    summary: str
    kinds: frozenset[OpKind]
    max_ops: int
    fault_kinds: frozenset[OpKind] = frozenset()
    limit: Limit | None = None
    order: str = ""
    ignored: frozenset[str] = frozenset()
    header: Header = Header(budget=_BUDGET)

    def kinds_with(self, faults: bool, layout: str = "") -> frozenset[OpKind]:
        """The ops of a campaign on a VM with this layout of memory slots; hot-plug beside raw
        hypercalls only. Raises `InputError` for faults where there are none."""
        if faults and not self.fault_kinds:
            raise InputError(f"--faults: target {self.name} has no fault ops; leave it out")
        kinds = self.kinds | self.fault_kinds if faults else self.kinds
        is_raw = OpKind.HYPERCALL in kinds and self.limit is None
        return kinds | _HOT_PLUG if is_raw and f"{PLUG}@" in layout else kinds


_TARGETS: Final = (
    Target(
        name="hypercall",
        summary="raw VMMCALL and VMCALL with any registers, mode and CPL",
        kinds=frozenset({OpKind.HYPERCALL}),
        fault_kinds=frozenset({OpKind.ANSWER, *VMM_SPECS}) - {OpKind.UNPLUG_SLOT},
        max_ops=2,
    ),
    Target(
        name="msr",
        summary="RDMSR and WRMSR, the platform set-up and CPU off-lining that write MSRs",
        kinds=frozenset(
            {OpKind.WRMSR, OpKind.RDMSR, OpKind.INIT_PLATFORM, OpKind.CPU_OFFLINE},
        ),
        fault_kinds=frozenset({OpKind.FAIL_MSR}),
        max_ops=3,
    ),
    Target(
        name="conversion",
        summary="the kernel's set_memory_encrypted/decrypted family with stores and loads between",
        kinds=frozenset(
            {
                OpKind.SET_MEMORY_ENCRYPTED,
                OpKind.SET_MEMORY_DECRYPTED,
                OpKind.EARLY_SET_MEMORY_ENCRYPTED,
                OpKind.EARLY_SET_MEMORY_DECRYPTED,
                OpKind.WRITE,
                OpKind.READ,
                OpKind.STOP_CONVERSION,
            }
        ),
        fault_kinds=frozenset(
            {
                OpKind.ANSWER,
                OpKind.FAIL_SPLIT,
                OpKind.UNMAP,
                OpKind.CLEAR_PRESENT,
                OpKind.TOUCH_CBIT,
            }
        ),
        max_ops=6,
        limit=limit_ops,
    ),
    Target(
        name="mapgpa",
        summary="a TD's conversions, and the calls of a hostile one: MapGPA, ACCEPT, between KVM's "
        "chunks and retries",
        kinds=frozenset(
            {
                OpKind.SET_MEMORY_ENCRYPTED,
                OpKind.SET_MEMORY_DECRYPTED,
                OpKind.MAP_GPA,
                OpKind.PAGE_ACCEPT,
                OpKind.PENDING_EVENT,
            }
        ),
        fault_kinds=frozenset({OpKind.ANSWER, OpKind.FAIL_ACCEPT}),
        max_ops=6,
        limit=limit_td_ops,
        header=Header(guest="snippet:6.12", sev=SevKind.TDX, budget=_BUDGET),
    ),
    Target(
        name="firmware",
        summary="KVM's SEV ioctls over the firmware, on a running VM, an empty one and a mirror",
        kinds=frozenset(SEV_SPECS),
        max_ops=8,
        header=Header(host="sev-firmware", budget=_BUDGET),
    ),
    Target(
        name="sync",
        summary="QEMU's page-status sync, list, handover, resize, reset and failing migrations",
        kinds=frozenset(QEMU_SPECS) - {OpKind.QEMU_RECORD},
        max_ops=6,
        header=Header(host="qemu-migration", budget=_BUDGET),
    ),
    Target(
        name="stream",
        summary="records of QEMU's migration stream with any numbers",
        kinds=frozenset({OpKind.QEMU_RECORD}),
        max_ops=4,
        header=Header(host="qemu-migration", budget=_BUDGET),
    ),
    Target(
        name="mirror",
        summary="migration handlers in mirror VMs, the guest and VMMs around them, contexts; "
        "mirror:ORDER, such as mirror:DES: the target migration through handlers",
        kinds=frozenset(MIRROR_SPECS) | {OpKind.SEV_IOCTL},
        max_ops=8,
        header=Header(host="mirror", budget=_BUDGET),
    ),
    Target(
        name="psc",
        summary="page-state requests of a hostile SNP guest: headers, entries, scratch, lengths; "
        "its VMSA pages and AP creation",
        kinds=frozenset({OpKind.PSC, OpKind.PSC_MIXED, OpKind.RMPADJUST, OpKind.AP_CREATION}),
        fault_kinds=frozenset({OpKind.ANSWER}),
        max_ops=3,
        limit=limit_psc_ops,
        header=Header(
            guest="snippet:6.12",
            sev=SevKind.SEV_SNP,
            host="snp-kvm",
            switches=("half-done-batch", "eagain-is-fatal"),
            budget=_BUDGET,
        ),
    ),
    Target(
        name="hostile-host",
        summary="an SNP guest's conversions, stores and loads under a hypervisor that lies, "
        "injects events and attacks pages at any instruction; hostile-host:tdx: a TD's",
        kinds=frozenset(
            {
                OpKind.HYPERVISOR_LIE,
                OpKind.HYPERVISOR_INJECT,
                OpKind.HYPERVISOR_PAGE,
                OpKind.HYPERVISOR_WAIT,
                OpKind.RMPADJUST,
                OpKind.AP_CREATION,
                OpKind.SET_MEMORY_ENCRYPTED,
                OpKind.SET_MEMORY_DECRYPTED,
                OpKind.WRITE,
                OpKind.READ,
            }
        ),
        max_ops=6,
        limit=limit_snp_ops,
        header=Header(
            guest="snippet:6.12",
            sev=SevKind.SEV_SNP,
            host="hostile-hypervisor:far",
            budget=6_000,
        ),
    ),
    Target(
        name="device",
        summary="a real kernel's driver beside a hostile device: stores, registers, configuration, "
        "interrupts; --guest userland:DEVICE@IMAGE",
        kinds=frozenset(DEVICE_CHANGE_SPECS) | frozenset(DEVICE_USE_SPECS),
        fault_kinds=frozenset(DEVICE_FAULT_SPECS),
        max_ops=4,
        header=Header(guest="userland:virtio-blk@6.12", memory=128, budget=_BUDGET),
    ),
    Target(
        name="lockstep",
        summary="hosts of every generation in lock-step: differences that no known one explains",
        kinds=frozenset(
            {
                OpKind.HYPERCALL,
                OpKind.WRMSR,
                OpKind.RDMSR,
                OpKind.SET_MEMORY_ENCRYPTED,
                OpKind.SET_MEMORY_DECRYPTED,
                OpKind.EARLY_SET_MEMORY_ENCRYPTED,
                OpKind.EARLY_SET_MEMORY_DECRYPTED,
                *HOST_SPECS,
            }
        ),
        fault_kinds=frozenset({OpKind.FAIL_SPLIT, OpKind.UNMAP, OpKind.CLEAR_PRESENT}),
        max_ops=6,
        limit=limit_ops,
        header=Header(budget=_BUDGET, beside=LOCKSTEP_HOSTS),
    ),
    Target(
        name="migration",
        summary="live migrations by a host that keeps to an order of steps; migration:ORDER, such "
        "as migration:EDS, takes another order than DES",
        kinds=frozenset(
            {
                OpKind.SET_MEMORY_ENCRYPTED,
                OpKind.SET_MEMORY_DECRYPTED,
                OpKind.WRITE,
                OpKind.READ,
                *MIGRATION_SPECS,
            }
        )
        - {OpKind.MIGRATE_HANDLER},
        fault_kinds=frozenset(LINK_SPECS),
        max_ops=MAX_OPS,
        limit=migration_limiter(LAWFUL_ORDER),
        order=LAWFUL_ORDER,
        ignored=frozenset({_LOST_STRICT}),
    ),
)

_BY_NAME: Final = {target.name: target for target in _TARGETS}
TARGETS: Final[Mapping[str, Target]] = _BY_NAME
"""Every target by name, in the order of `guestemu targets`."""


def register_target(target: Target) -> None:
    """Adds a target of another package. Raises `InputError` for a name that is taken."""
    if target.name in _BY_NAME:
        raise InputError(f"target {target.name!r}: the name is taken; choose another")
    _BY_NAME[target.name] = target


_THROUGH_HANDLERS: Final = msgspec.structs.replace(
    TARGETS["migration"],
    kinds=TARGETS["migration"].kinds - {OpKind.MIGRATE_START} | {OpKind.MIGRATE_HANDLER},
)


_OF_A_TD: Final = msgspec.structs.replace(
    TARGETS["hostile-host"],
    kinds=TARGETS["hostile-host"].kinds - {OpKind.RMPADJUST, OpKind.AP_CREATION}
    | {OpKind.ANSWER, OpKind.PENDING_EVENT},
    limit=TARGETS["mapgpa"].limit,
    header=msgspec.structs.replace(
        TARGETS["mapgpa"].header, host=TARGETS["hostile-host"].header.host
    ),
)


def find_target(name: str) -> Target:
    """The target called `name`. Raises `InputError`."""
    base, _, order = name.partition(":")
    target = TARGETS.get(base)
    if name == "hostile-host:tdx":
        return msgspec.structs.replace(_OF_A_TD, name=name)
    if target is not None and order:
        if base == "mirror":
            target = _THROUGH_HANDLERS
        if not target.order:
            raise InputError(
                f"target {name!r}: only migration and mirror take an order; use {base}"
            )
        limit = migration_limiter(order, OpKind.MIGRATE_HANDLER in target.kinds)
        return msgspec.structs.replace(target, name=name, order=order, limit=limit)
    if target is None:
        raise InputError(f"target {name!r}: no such target; {nearest(base, TARGETS)}")
    return target
