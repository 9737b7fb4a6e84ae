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

import enum
from collections.abc import Mapping
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_MASK, U32_MASK, U64_MASK
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.abi.regions import REGIONS, Instruction, Region, RegionSpec
from guestemu.abi.x86 import Mode

MAX_ARGUMENTS: Final = 5

__all__ = [
    "ARGUMENT_MASKS",
    "HOST_SPECS",
    "MAX_ARGUMENTS",
    "MIGRATION_SPECS",
    "NAMES",
    "REGIONS",
    "SPECS",
    "Argument",
    "ArgumentSpec",
    "Instruction",
    "Op",
    "OpKind",
    "OpSpec",
    "Region",
    "RegionSpec",
    "canonical_op",
]


class OpKind(enum.IntEnum):
    """What an op does. The numbers are part of the binary format: append, never renumber."""

    __hash__ = int.__hash__  # enum's own is Python code, ten times as slow

    HYPERCALL = 0
    WRMSR = 1
    RDMSR = 2
    SET_MEMORY_ENCRYPTED = 3
    SET_MEMORY_DECRYPTED = 4
    EARLY_SET_MEMORY_ENCRYPTED = 5
    EARLY_SET_MEMORY_DECRYPTED = 6
    WRITE = 7
    READ = 8
    DMA_ALLOC = 9
    DMA_FREE = 10
    ANSWER = 11
    FAIL_SPLIT = 12
    FAIL_MSR = 13
    CPU_OFFLINE = 14
    INIT_PLATFORM = 15
    UNMAP = 16
    CLEAR_PRESENT = 17
    STOP_CONVERSION = 18
    TOUCH_CBIT = 19
    HOST_GET_BITMAP = 20
    HOST_SET_BITMAP = 21
    HOST_RESET_BITMAP = 22
    HOST_GET_LIST = 23
    HOST_SET_LIST = 24
    HOST_COMMIT_SLOT = 25
    HOST_RESET_VCPU = 26
    HOST_POISON_PAGE = 27
    MIGRATE_START = 28
    HOST_DIRTY_FETCH = 29
    HOST_DIRTY_CLEAR = 30
    HOST_STATUS_COPY = 31
    HOST_SEND = 32
    MIGRATE_STOP = 33


class Argument(enum.Enum):
    """How an argument is written, drawn and mutated."""

    HYPERCALL_NUMBER = "nr"
    ADDRESS = "address"
    COUNT = "pages"
    ATTRIBUTES = "attributes"
    U64 = "u64"
    MSR = "msr"
    MSR_VALUE = "msr value"
    SIZE = "size"
    OFFSET = "offset"
    BYTE = "byte"
    SLOT = "slot"
    FLAG = "flag"
    SMALL = "small count"


ARGUMENT_MASKS: Final[Mapping[Argument, int]] = {
    **dict.fromkeys(Argument, U64_MASK),
    Argument.MSR: U32_MASK,
    Argument.OFFSET: PAGE_MASK,
    Argument.BYTE: 0xFF,
    Argument.SLOT: 0xF,
    Argument.FLAG: 1,
    Argument.SMALL: 0x3FF,
}
"""The bits an argument of each sort may have: no program, in either form, holds a larger value."""


class ArgumentSpec(msgspec.Struct, frozen=True):
    """One argument of a kind: its name in the text form, its sort, its default."""

    name: str
    sort: Argument
    default: int = 0


class OpSpec(msgspec.Struct, frozen=True):
    """One kind of op.

    `name` is its verb in the text form; `has_page` says that it takes a page operand, `has_mode`
    that mode and CPL matter, `is_fault` that it changes how a later op goes instead of acting.
    """

    name: str
    arguments: tuple[ArgumentSpec, ...]
    help: str
    has_page: bool = False
    has_mode: bool = False
    is_fault: bool = False
    boot_only: bool = False


def _a(name: str, sort: Argument, default: int = 0) -> ArgumentSpec:
    return ArgumentSpec(name, sort, default)


_GFN: Final = _a("gfn", Argument.U64)
_PAGES: Final = _a("pages", Argument.COUNT, 1)

HOST_SPECS: Final[Mapping[OpKind, OpSpec]] = {
    OpKind.HOST_GET_BITMAP: OpSpec(
        "host_get_bitmap",
        (_GFN, _PAGES, _a("filler", Argument.BYTE)),
        "user space: KVM_GET_PAGE_ENC_BITMAP of absolute gfns into a buffer of `filler` bytes; "
        "the result is a negative errno or the buffer's first 32 bits",
    ),
    OpKind.HOST_SET_BITMAP: OpSpec(
        "host_set_bitmap",
        (_GFN, _PAGES, _a("bits", Argument.U64), _a("null", Argument.FLAG)),
        "user space: KVM_SET_PAGE_ENC_BITMAP of a buffer that repeats `bits`; null=1: no buffer",
    ),
    OpKind.HOST_RESET_BITMAP: OpSpec(
        "host_reset_bitmap", (), "user space: KVM_PAGE_ENC_BITMAP_RESET"
    ),
    OpKind.HOST_GET_LIST: OpSpec(
        "host_get_list",
        (_a("size", Argument.SIZE, 4096), _GFN, _a("pages", Argument.COUNT)),
        "user space: KVM_GET_SHARED_PAGES_LIST; with pages another vCPU reports them shared while "
        "the ioctl runs; the result is a negative errno or the number of regions",
    ),
    OpKind.HOST_SET_LIST: OpSpec(
        "host_set_list",
        (_GFN, _PAGES, _a("count", Argument.U64, 1), _a("null", Argument.FLAG)),
        "user space: KVM_SET_SHARED_PAGES_LIST of `count` regions of `pages` pages with as many "
        "between them; null=1: no buffer",
    ),
    OpKind.HOST_COMMIT_SLOT: OpSpec(
        "host_commit_slot", (_GFN, _PAGES), "user space: creates a memory slot (hot-plugged memory)"
    ),
    OpKind.HOST_RESET_VCPU: OpSpec("host_reset_vcpu", (), "the host resets a vCPU (INIT)"),
    OpKind.HOST_POISON_PAGE: OpSpec(
        "host_poison_page",
        (_GFN,),
        "the host cannot translate this gfn from now on (a poisoned page)",
        is_fault=True,
    ),
}
"""What the host's user space and hardware do; on a host without the ioctl the result is -ENOTTY."""

MIGRATION_SPECS: Final[Mapping[OpKind, OpSpec]] = {
    OpKind.MIGRATE_START: OpSpec(
        "migrate_start",
        (_PAGES, _a("firmware", Argument.FLAG)),
        "the host starts a live migration whose steps are about these pages (pages=0: all that the "
        "guest uses), all dirty; firmware=1: private pages go through the SEV firmware",
        has_page=True,
    ),
    OpKind.HOST_DIRTY_FETCH: OpSpec(
        "host_dirty_fetch",
        (_a("clear", Argument.FLAG, 1),),
        "the dirty log into the snapshot, and with clear=1 out of the log; the result is the "
        "number of pages in the snapshot",
    ),
    OpKind.HOST_DIRTY_CLEAR: OpSpec(
        "host_dirty_clear", (), "the log of the pages in the snapshot is cleared; their number"
    ),
    OpKind.HOST_STATUS_COPY: OpSpec(
        "host_status_copy", (), "the host's record is copied; the number of shared frames in it"
    ),
    OpKind.HOST_SEND: OpSpec(
        "host_send",
        (_a("live", Argument.FLAG),),
        "the pages of the snapshot are sent and leave it, by the copied record or (live=1) by the "
        "record as it is now; their number",
    ),
    OpKind.MIGRATE_STOP: OpSpec(
        "migrate_stop",
        (),
        "the guest stops, all other pages, CPUs and host record follow, and it goes on at the "
        "destination",
    ),
}
"""A live migration, step by step; without one, or on a guest that has no second machine, the result
is -EINVAL or -ENOTTY."""

SPECS: Final[Mapping[OpKind, OpSpec]] = {
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
        has_mode=True,
    ),
    OpKind.WRMSR: OpSpec(
        "wrmsr",
        (_a("msr", Argument.MSR), _a("value", Argument.MSR_VALUE)),
        "WRMSR",
        has_mode=True,
    ),
    OpKind.RDMSR: OpSpec("rdmsr", (_a("msr", Argument.MSR),), "RDMSR", has_mode=True),
    OpKind.SET_MEMORY_ENCRYPTED: OpSpec(
        "set_memory_encrypted",
        (_a("pages", Argument.COUNT, 1), _a("offset", Argument.OFFSET)),
        "the kernel's set_memory_encrypted(address of the page + offset, pages)",
        has_page=True,
    ),
    OpKind.SET_MEMORY_DECRYPTED: OpSpec(
        "set_memory_decrypted",
        (_a("pages", Argument.COUNT, 1), _a("offset", Argument.OFFSET)),
        "the kernel's set_memory_decrypted(address of the page + offset, pages)",
        has_page=True,
    ),
    OpKind.EARLY_SET_MEMORY_ENCRYPTED: OpSpec(
        "early_set_memory_encrypted",
        (_a("size", Argument.SIZE, 4096), _a("offset", Argument.OFFSET)),
        "the kernel's early_set_memory_encrypted(address + offset, size in bytes)",
        has_page=True,
    ),
    OpKind.EARLY_SET_MEMORY_DECRYPTED: OpSpec(
        "early_set_memory_decrypted",
        (_a("size", Argument.SIZE, 4096), _a("offset", Argument.OFFSET)),
        "the kernel's early_set_memory_decrypted(address + offset, size in bytes)",
        has_page=True,
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
    ),
    OpKind.DMA_ALLOC: OpSpec(
        "dma_alloc",
        (
            _a("slot", Argument.SLOT),
            _a("size", Argument.SIZE, 4096),
            _a("atomic", Argument.FLAG),
        ),
        "dma_alloc_coherent(size) into a slot; atomic=1 takes it from the atomic pool",
    ),
    OpKind.DMA_FREE: OpSpec(
        "dma_free", (_a("slot", Argument.SLOT),), "dma_free_coherent of what the slot holds"
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
        "stop_conversion", (), "set_memory_enc_stop_conversion(): take mem_enc_lock for good"
    ),
    OpKind.TOUCH_CBIT: OpSpec(
        "touch_cbit",
        (_a("private", Argument.FLAG),),
        "flip the C-bit of the page's 4 KiB entry with INVLPG and tell nobody",
        has_page=True,
    ),
    **HOST_SPECS,
    **MIGRATION_SPECS,
}

NAMES: Final[Mapping[str, OpKind]] = {spec.name: kind for kind, spec in SPECS.items()}


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
