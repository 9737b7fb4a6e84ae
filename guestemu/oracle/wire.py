# SPDX-License-Identifier: GPL-2.0-or-later
"""The channel to /init of the machine under test, as `harness/wire.h` lays it out.

All records have a fixed width. The other side may be a kernel that lost its mind: no length and no
index is taken from it, and every value of a reply is a number until `steps` has judged it.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

import msgspec

MAGIC: Final = 0x4C4341524F4D5647
VERSION: Final = 2
SLOTS: Final = 256
CAPACITY: Final = 4096
"""Records in one batch at most."""
CONFIGS_AT: Final = 0x1000
CONFIGS_END: Final = 0x3000
REQUESTS_AT: Final = 0x8000
REPLIES_AT: Final = 0x60000
CHANNEL_BYTES: Final = 0x200000

BOOTING: Final = 0
IDLE: Final = 1
REQUESTED: Final = 2
POWER_OFF: Final = 3

STATE_AT: Final = 12
COUNT_AT: Final = 16
DONE_AT: Final = 20

HEADER: Final = struct.Struct("<Q4IQ4ii8i3I16I96s128s")
CONFIG: Final = struct.Struct("<I4B2I2Q")
REQUEST: Final = struct.Struct("<6BH2I6Q")
REPLY: Final = struct.Struct("<4B3i2Q3q3Q4s6hQ")
EVENT: Final = struct.Struct("<2I8Q2IqQ")
REPLY_BYTES: Final = REPLY.size + 2 * EVENT.size
COVERED: Final = 22
"""Which value of a reply counts the places of the kernel's code that no step before has reached;
0 from a kernel without kcov."""

FRESH: Final = 1
"""Flag of a request: the VM of its slot is made anew first."""
QUICK: Final = 2
"""Flag of a request: a hypercall's exit is completed by KVM_RUN with immediate_exit, which saves an
entry of the guest; the step is done where RIP is behind the instruction then."""


class WireOp(enum.IntEnum):
    """What a request asks for; the names are those of wire.h."""

    VMMCALL = 0
    VMCALL = 1
    RDMSR = 2
    WRMSR = 3
    GET_MSR = 4
    SET_MSR = 5
    RESUME = 6
    READ = 7
    WRITE = 8
    PEEK = 9
    POKE = 10
    ATTRIBUTES = 11
    FALLOCATE = 12
    SLOT = 13
    EXIT_CAP = 14
    MSR_CAP = 15
    QUIRKS_CAP = 16
    ENFORCE = 17
    FILTER = 18
    DROP = 19
    MEMFD = 20


class ConfigFlag(enum.IntFlag):
    """How a VM is set up."""

    EXIT = 1
    EXIT_LATE = 2
    USER_MSR = 4
    QUIRKS = 8
    ENFORCE = 16
    IRQCHIP = 32
    READ_ONLY = 64
    IGNORE_MSRS = 128
    PROTECTED = 256


class End(enum.IntEnum):
    """How a step ended."""

    DONE = 0
    EXCEPTION = 1
    SHUTDOWN = 2
    TIMEOUT = 3
    FAIL_ENTRY = 4
    INTERNAL_ERROR = 5
    OTHER_EXIT = 6
    RUN_ERROR = 7
    SREGS_REFUSED = 8
    IOCTL = 9
    NO_VM = 10
    PAUSED = 11


CONVERT: Final = 7
"""The answer that does KVM_SET_MEMORY_ATTRIBUTES for the range and returns what it returned."""
PAUSE: Final = 8
"""The answer that leaves the vCPU at its exit until `WireOp.RESUME`."""

EVENT_HYPERCALL: Final = 1
EVENT_IMMEDIATE: Final = 2
EVENT_RDMSR: Final = 3
EVENT_WRMSR: Final = 4


class MachineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What /init says about the kernel under test: results of loading modules and of opening
    /dev/kvm (0 or a negative errno; 1: no such module), KVM_CHECK_EXTENSION of some capabilities,
    EAX of CPUID 0x40000001 and the MSRs of KVM that KVM_GET_MSR_INDEX_LIST names."""

    release: str
    build: str
    modules: tuple[int, ...]
    kvm: int
    capabilities: dict[str, int]
    pv_features: int
    address_bits: int
    msrs: tuple[int, ...]

    @property
    def has_protected_vms(self) -> bool:
        """Whether KVM_CREATE_VM takes type 1, KVM_X86_SW_PROTECTED_VM."""
        return bool(max(self.capabilities["VM_TYPES"], 0) & 2)


_CAPABILITIES: Final = (
    *("EXIT_HYPERCALL", "ENFORCE_PV_FEATURE_CPUID", "X86_USER_SPACE_MSR", "X86_MSR_FILTER"),
    *("DISABLE_QUIRKS2", "VM_TYPES", "MEMORY_ATTRIBUTES", "GUEST_MEMFD"),
)


def read_machine(header: bytes) -> MachineFacts | None:
    """The machine that a header describes; None for what /init did not write."""
    values = HEADER.unpack_from(header)
    if values[0] != MAGIC or values[1] != VERSION:
        return None
    count = min(values[21], 16)
    return MachineFacts(
        release=_text(values[38]),
        build=_text(values[39]),
        modules=values[6:10],
        kvm=values[10],
        capabilities=dict(zip(_CAPABILITIES, values[11:19], strict=True)),
        pv_features=values[19],
        address_bits=values[20],
        msrs=values[22 : 22 + count],
    )


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("ascii", "replace")
