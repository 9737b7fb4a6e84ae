# SPDX-License-Identifier: GPL-2.0-or-later
"""The operations a program is made of.

An op is one fixed-width record: a kind, where the vCPU stands (vCPU, mode, CPL), one page operand
(region, page index) and up to five 64-bit arguments. What each argument of a kind means, how the
text form names it and which values are worth trying is in `SPECS`; every codec, generator and
mutator reads that table and none has a list of kinds of its own.

Page operands are symbolic: a region names its size, alignment and initial leaf size, and the guest
places it. Two guests' logs therefore compare after renaming addresses to (region, page).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.abi.regions import REGIONS, Instruction, Region, RegionSpec
from guestemu.abi.x86 import Mode
from guestemu.program.device_specs import DEVICE_SPECS
from guestemu.program.host_specs import (
    HOST_SPECS,
    LINK_SPECS,
    MEMORY_SPECS,
    MIGRATION_SPECS,
    QEMU_SPECS,
    SEV_SPECS,
    VMM_SPECS,
)
from guestemu.program.kinds import (
    ARGUMENT_MASKS,
    Argument,
    ArgumentSpec,
    Gives,
    OpKind,
    OpSpec,
    carried_out_by_the_host,
    new_kind,
    with_results,
)
from guestemu.program.kinds import argument as _a
from guestemu.program.mirror_specs import MIRROR_SPECS
from guestemu.program.snp_specs import SNP_SPECS
from guestemu.program.td_specs import TD_SPECS

MAX_ARGUMENTS: Final = 5

__all__ = [
    "ARGUMENT_MASKS",
    "DEVICE_SPECS",
    "HOST_SPECS",
    "LINK_SPECS",
    "MAX_ARGUMENTS",
    "MEMORY_SPECS",
    "MIGRATION_SPECS",
    "MIRROR_SPECS",
    "NAMES",
    "QEMU_SPECS",
    "REGIONS",
    "SEV_SPECS",
    "SNP_SPECS",
    "SPECS",
    "TD_SPECS",
    "VMM_SPECS",
    "Argument",
    "ArgumentSpec",
    "Gives",
    "Instruction",
    "Op",
    "OpKind",
    "OpSpec",
    "Region",
    "RegionSpec",
    "canonical_op",
    "define_op",
]


_SPECS: Final[dict[OpKind, OpSpec]] = {
    OpKind.HYPERCALL: OpSpec(
        "hypercall",
        (
            _a("nr", Argument.HYPERCALL_NUMBER, KVM_HC_MAP_GPA_RANGE),
            _a("a0", Argument.ADDRESS),
            _a("a1", Argument.COUNT),
            _a("a2", Argument.ATTRIBUTES),
            _a("a3", Argument.U64),
        ),
        "VMMCALL or VMCALL with RAX=nr RBX=a0 RCX=a1 RDX=a2 RSI=a3; with a page operand a0 is an "
        "offset in bytes from that page's GPA",
        has_page=True,
        gives=Gives.RAX,
        has_mode=True,
    ),
    OpKind.WRMSR: OpSpec(
        "wrmsr",
        (_a("msr", Argument.MSR), _a("value", Argument.MSR_VALUE)),
        "WRMSR",
        has_mode=True,
    ),
    OpKind.RDMSR: OpSpec(
        "rdmsr", (_a("msr", Argument.MSR),), "RDMSR", has_mode=True, gives=Gives.DATA
    ),
    OpKind.SET_MEMORY_ENCRYPTED: OpSpec(
        "set_memory_encrypted",
        (_a("pages", Argument.COUNT, 1), _a("offset", Argument.OFFSET)),
        "the kernel's set_memory_encrypted(address of the page + offset, pages)",
        has_page=True,
        gives=Gives.RESULT,
    ),
    OpKind.SET_MEMORY_DECRYPTED: OpSpec(
        "set_memory_decrypted",
        (_a("pages", Argument.COUNT, 1), _a("offset", Argument.OFFSET)),
        "the kernel's set_memory_decrypted(address of the page + offset, pages)",
        has_page=True,
        gives=Gives.RESULT,
    ),
    OpKind.EARLY_SET_MEMORY_ENCRYPTED: OpSpec(
        "early_set_memory_encrypted",
        (_a("size", Argument.SIZE, 4096), _a("offset", Argument.OFFSET)),
        "the kernel's early_set_memory_encrypted(address + offset, size in bytes)",
        has_page=True,
        gives=Gives.RESULT,
    ),
    OpKind.EARLY_SET_MEMORY_DECRYPTED: OpSpec(
        "early_set_memory_decrypted",
        (_a("size", Argument.SIZE, 4096), _a("offset", Argument.OFFSET)),
        "the kernel's early_set_memory_decrypted(address + offset, size in bytes)",
        has_page=True,
        gives=Gives.RESULT,
    ),
    OpKind.WRITE: OpSpec(
        "write",
        (
            _a("value", Argument.BYTE, 0x5A),
            _a("offset", Argument.OFFSET),
            _a("size", Argument.SIZE, 4096),
        ),
        "memset through the page's current mapping",
        has_page=True,
    ),
    OpKind.READ: OpSpec(
        "read",
        (_a("offset", Argument.OFFSET),),
        "load 8 bytes through the page's current mapping",
        has_page=True,
        gives=Gives.DATA,
    ),
    OpKind.DMA_ALLOC: OpSpec(
        "dma_alloc",
        (
            _a("slot", Argument.SLOT),
            _a("size", Argument.SIZE, 4096),
            _a("atomic", Argument.FLAG),
        ),
        "dma_alloc_coherent(size) into a slot; atomic=1 takes it from the atomic pool",
        gives=Gives.RESULT,
    ),
    OpKind.DMA_FREE: OpSpec(
        "dma_free",
        (_a("slot", Argument.SLOT),),
        "dma_free_coherent of what the slot holds",
        gives=Gives.RESULT,
    ),
    OpKind.DMA_ALLOC_PAGES: OpSpec(
        "dma_alloc_pages",
        (
            _a("slot", Argument.SLOT),
            _a("size", Argument.SIZE, 4096),
            _a("atomic", Argument.FLAG),
        ),
        "dma_alloc_pages(size) into a slot of its own; atomic=1 may not sleep, so the atomic pool "
        "serves it. A real kernel's: -ENOSYS on a snippet",
        gives=Gives.RESULT,
    ),
    OpKind.DMA_FREE_PAGES: OpSpec(
        "dma_free_pages",
        (_a("slot", Argument.SLOT),),
        "dma_free_pages of what dma_alloc_pages returned for the slot",
        gives=Gives.RESULT,
    ),
    OpKind.ANSWER: OpSpec(
        "answer",
        (_a("value", Argument.U64), _a("count", Argument.SMALL, 1)),
        "the host's user space answers the next `count` hypercall exits with this value "
        "and does not record them",
        is_fault=True,
    ),
    OpKind.FAIL_SPLIT: OpSpec(
        "fail_split",
        (_a("after", Argument.SMALL),),
        "page-table allocations fail from the one after the next `after` on, "
        "until the next op ends",
        is_fault=True,
    ),
    OpKind.FAIL_MSR: OpSpec(
        "fail_msr",
        (_a("count", Argument.SMALL, 1),),
        "user space answers the next `count` MSR exits with an error: the guest gets #GP",
        is_fault=True,
    ),
    OpKind.CPU_OFFLINE: OpSpec("cpu_offline", (), "the kernel's kvm_guest_cpu_offline()"),
    OpKind.INIT_PLATFORM: OpSpec(
        "init_platform", (_a("efi", Argument.FLAG),), "the kernel's kvm_init_platform()"
    ),
    OpKind.UNMAP: OpSpec(
        "unmap", (), "zero the page's 4 KiB entry (a hole)", has_page=True, is_fault=True
    ),
    OpKind.CLEAR_PRESENT: OpSpec(
        "clear_present",
        (),
        "clear PRESENT in the page's 4 KiB entry, keep the frame",
        has_page=True,
        is_fault=True,
    ),
    OpKind.STOP_CONVERSION: OpSpec(
        "stop_conversion",
        (),
        "set_memory_enc_stop_conversion(): take mem_enc_lock for good",
        gives=Gives.RESULT,
    ),
    OpKind.TOUCH_CBIT: OpSpec(
        "touch_cbit",
        (_a("private", Argument.FLAG),),
        "flip the C-bit of the page's 4 KiB entry with INVLPG, without a hypercall",
        has_page=True,
    ),
    OpKind.VM_RESET: OpSpec(
        "vm_reset",
        (),
        "the VM is reset: guest and host start again, all frames private, READY clear",
    ),
    **carried_out_by_the_host(HOST_SPECS),
    **carried_out_by_the_host(VMM_SPECS),
    **with_results(MIGRATION_SPECS),
    **carried_out_by_the_host(MIRROR_SPECS),
    **carried_out_by_the_host(SEV_SPECS),
    **carried_out_by_the_host(QEMU_SPECS),
    **MEMORY_SPECS,
    **LINK_SPECS,
    **SNP_SPECS,
    **TD_SPECS,
    **DEVICE_SPECS,
}

SPECS: Final[Mapping[OpKind, OpSpec]] = _SPECS

_NAMES: Final = {spec.name: kind for kind, spec in SPECS.items()}
NAMES: Final[Mapping[str, OpKind]] = _NAMES


def define_op(number: int, spec: OpSpec) -> OpKind:
    """Adds an op to the table; `operations.operation` or a host's `operations` says what it does.

    `number` is its byte in the binary format, for good. Raises ValueError where name or number are
    taken.
    """
    kind = new_kind(spec.name.upper(), number)
    _SPECS[kind] = spec
    _NAMES[spec.name] = kind
    return kind


class Op(msgspec.Struct, frozen=True, gc=False):
    """One operation.

    `page` is the page index inside `region`; `has_page` tells whether a HYPERCALL op is relative to
    it (other kinds follow their `OpSpec`). `arguments` are in the order of the kind's spec, each an
    unsigned 64-bit value.
    """

    kind: OpKind
    arguments: tuple[int, ...] = ()
    region: Region = Region.D
    page: int = 0
    has_page: bool = False
    vcpu: int = 0
    mode: Mode = Mode.LONG64
    cpl: int = 0
    instruction: Instruction = Instruction.VMMCALL


def canonical_op(op: Op) -> Op:
    """`op` with every field its kind does not use at its default and every argument present.

    Both codecs give out canonical ops only. `has_page` stays only on a HYPERCALL (the other kinds
    follow their spec); arguments left out get their defaults, extra ones are dropped.
    """
    spec = SPECS[op.kind]
    given = op.arguments[: len(spec.arguments)]
    missing = tuple(argument.default for argument in spec.arguments[len(given) :])
    is_call = op.kind is OpKind.HYPERCALL
    has_page = op.has_page if is_call else spec.has_page
    return Op(
        kind=op.kind,
        arguments=given + missing,
        region=op.region if has_page else Region.D,
        page=op.page if has_page else 0,
        has_page=op.has_page and is_call,
        vcpu=op.vcpu,
        mode=op.mode if spec.has_mode else Mode.LONG64,
        cpl=op.cpl if spec.has_mode else 0,
        instruction=op.instruction if is_call else Instruction.VMMCALL,
    )
