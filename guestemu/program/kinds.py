# SPDX-License-Identifier: GPL-2.0-or-later
"""The kinds of ops and the sorts of their arguments: what `ops.SPECS` is written in."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_MASK, U32_MASK, U64_MASK

MAX_KIND: Final = 0xFF
"""The largest number of a kind: a record has one byte for it."""


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
    MIGRATE_HANDLER = 50
    MIRROR_SETUP = 51
    MIRROR_WRITE = 52
    MIRROR_TELL = 53
    MIRROR_POKE = 54
    MIRROR_PLUG = 55
    MIRROR_LOAD = 56
    MIRROR_MIGRATE = 57
    MIRROR_SAVE = 58
    MIRROR_RESTORE = 59
    MIRROR_INJECT = 60
    MIRROR_COMMAND = 61
    MIRROR_CONTEXT = 62
    SEV_IOCTL = 70
    SEV_REGION = 71
    QEMU_STATUS = 72
    QEMU_SYNC = 73
    QEMU_RESIZE = 74
    QEMU_HANDOVER = 75
    QEMU_RESET = 76
    QEMU_SEND = 77
    QEMU_RECORD = 78
    EVICT = 80
    HOST_READ = 81
    HOST_WRITE = 82
    LINK_REPLAY = 83
    LINK_REVERSE = 84
    MAP_GPA = 90
    PAGE_ACCEPT = 91
    PENDING_EVENT = 92
    FAIL_ACCEPT = 93
    PSC = 100
    HYPERVISOR_LIE = 101
    PSC_MIXED = 102
    HYPERVISOR_INJECT = 103
    HYPERVISOR_PAGE = 104
    RMPADJUST = 105
    AP_CREATION = 106
    HYPERVISOR_WAIT = 107
    DMA_ALLOC_PAGES = 110
    DMA_FREE_PAGES = 111
    VM_RESET = 120
    FAIL_CALL = 121
    GUEST_ACCESS = 122
    PIN_PAGE = 123
    UNPLUG_SLOT = 124
    DEVICE_STORE = 130
    DEVICE_REGISTER = 131
    DEVICE_CONFIG = 132
    DEVICE_INTERRUPT = 133
    DEVICE_POKE = 134
    DEVICE_READ = 135
    DEVICE_WRITE = 136
    DEVICE_REBIND = 137
    DEVICE_UNBOUNCED = 138


def new_kind(name: str, number: int) -> OpKind:
    """A member of `OpKind` that another package adds. Raises ValueError where the name or the
    number is taken: numbers are part of the binary format."""
    taken = {int(kind) for kind in OpKind}
    if number in taken or name in OpKind.__members__ or not 0 <= number <= MAX_KIND:
        raise ValueError(f"op {name} = {number}: the name or the number is taken")
    kind = int.__new__(OpKind, number)
    kind._name_, kind._value_ = name, number
    OpKind._member_map_[name] = kind
    OpKind._value2member_map_[number] = kind
    OpKind._member_names_.append(name)
    return kind


class Gives(enum.Enum):
    """What the value of an op's outcome is."""

    NOTHING = "nothing"
    RESULT = "result"
    """A function's or an ioctl's result."""
    RAX = "rax"
    """A hypercall's 64-bit answer, read as a signed number."""
    DATA = "data"
    """What was read, unsigned."""


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
    SEV_COMMAND = "sev command"
    SEV_LENGTH = "sev length"
    SEV_OFFSET = "sev offset"
    PSC_ENTRY = "page-state entry"
    VECTOR = "vector"
    EXIT_CODE = "exit code"
    INSTRUCTIONS = "instructions"


ARGUMENT_MASKS: Final[Mapping[Argument, int]] = {
    **dict.fromkeys(Argument, U64_MASK),
    Argument.MSR: U32_MASK,
    Argument.OFFSET: PAGE_MASK,
    Argument.BYTE: 0xFF,
    Argument.SLOT: 0xF,
    Argument.FLAG: 1,
    Argument.VECTOR: 0xFF,
    Argument.EXIT_CODE: U32_MASK,
    Argument.INSTRUCTIONS: 0xFFFF,
    Argument.SMALL: 0x3FF,
    Argument.SEV_COMMAND: U32_MASK,
    Argument.SEV_LENGTH: U32_MASK,
    Argument.SEV_OFFSET: PAGE_MASK,
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
    that mode and CPL matter, `is_fault` that it changes how a later op goes instead of acting,
    `by_host` that the host carries it out (`Host.operations`), `gives` what its value is.
    """

    name: str
    arguments: tuple[ArgumentSpec, ...]
    help: str
    has_page: bool = False
    has_mode: bool = False
    is_fault: bool = False
    boot_only: bool = False
    gives: Gives = Gives.NOTHING
    by_host: bool = False


def with_results(specs: Mapping[OpKind, OpSpec]) -> Mapping[OpKind, OpSpec]:
    """`specs` of operations whose value is a result."""
    return {kind: msgspec.structs.replace(spec, gives=Gives.RESULT) for kind, spec in specs.items()}


def carried_out_by_the_host(specs: Mapping[OpKind, OpSpec]) -> Mapping[OpKind, OpSpec]:
    """`specs` of operations whose value is a result of the host."""
    return {
        kind: msgspec.structs.replace(spec, by_host=True, gives=Gives.RESULT)
        for kind, spec in specs.items()
    }


def argument(name: str, sort: Argument, default: int = 0) -> ArgumentSpec:
    """Short for `ArgumentSpec`: the tables have a hundred of them."""
    return ArgumentSpec(name, sort, default)
