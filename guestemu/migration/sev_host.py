# SPDX-License-Identifier: GPL-2.0-or-later
"""One host with SEV: its firmware, KVM's SEV ioctls, and a guest's RAM in its memory.

The user space here is what a VMM does: it keeps its structures and blobs at fixed addresses and
calls KVM_MEMORY_ENCRYPT_OP. Everything is in software, with certificates of the model's own roots.
"""

from __future__ import annotations

import functools
import hashlib
import random
from typing import Final, TypeVar

from guestemu.abi.addresses import PAGE_SIZE, Gfn, gpa_of
from guestemu.abi.sev_firmware import KvmSevCommand
from guestemu.host.firmware.identity import (
    Authority,
    Identity,
    Owner,
    Random,
    generate_authority,
    generate_identity,
    generate_owner,
)
from guestemu.host.firmware.kvm import memory_encrypt_op
from guestemu.host.firmware.kvm_memory import FrameAllocator, KernelHeap, UserMemory
from guestemu.host.firmware.kvm_params import KvmStruct, SevCmd
from guestemu.host.firmware.kvm_vm import KvmConfig, KvmSevHost, KvmSevVm
from guestemu.host.firmware.memory import HostMemory
from guestemu.host.firmware.platform import API_VERSION, Platform
from guestemu.machine.memory import GuestRam
from guestemu.migration.links import LinkRefusal

COMMAND: Final = 0x10000
PARAMETERS: Final = 0x11000
PDH: Final = 0x20000
CHAIN: Final = 0x22000
AMD_CHAIN: Final = 0x26000
SESSION: Final = 0x2A000
HEADER: Final = 0x30000
TRANSPORT: Final = 0x31000
GUEST: Final = 0x7F00_0000_0000
"""Host virtual addresses of a VMM's buffers and of the guest's first byte."""

_BUFFERS: Final = COMMAND
_BUFFERS_END: Final = TRANSPORT + PAGE_SIZE
_OWN_MEMORY: Final = 0x8_0000_0000
"""System-physical addresses from here on are the host's own: buffers, then kernel memory."""

_OWN_SIZE: Final = 0x100_0000
_SEV_FD: Final = 3

_Struct = TypeVar("_Struct", bound=KvmStruct)


class SevIoctlError(LinkRefusal):
    """A migration cannot go on: the ioctl that failed, its errno and the firmware's status."""


@functools.cache
def _authority() -> Authority:
    return generate_authority()


@functools.cache
def _owner() -> Owner:
    return generate_owner(seeded("owner"), API_VERSION)


@functools.cache
def identity(name: str) -> Identity:
    """Keys and certificates of the platform `name`. All platforms of a process have one vendor and
    one owner."""
    return generate_identity(_authority(), _owner(), seeded(name), API_VERSION)


def seeded(name: str) -> Random:
    """Random bytes that `name` alone decides: a run can be repeated."""
    digest = hashlib.sha256(name.encode()).digest()
    return random.Random(digest).randbytes


class SevHost:
    """A host called `name` that has `ram` at the system-physical address `base`.

    `vm` is the SEV VM; the guest's page at GPA x is at the host virtual address GUEST + x.
    """

    def __init__(self, name: str, ram: GuestRam, base: int) -> None:
        self.memory = HostMemory(_OWN_MEMORY + _OWN_SIZE)
        self.platform = Platform(self.memory, identity(name), seeded(f"{name} keys"))
        self._ram = ram
        self._base = base
        pages = (_BUFFERS_END - _BUFFERS) // PAGE_SIZE
        first = _OWN_MEMORY // PAGE_SIZE
        frames = FrameAllocator(first + pages, first + _OWN_SIZE // PAGE_SIZE)
        self.user = UserMemory(self.memory, frames)
        self.user.map(_BUFFERS, _OWN_MEMORY, pages)
        heap = KernelHeap(self.memory, frames)
        self.vm = KvmSevVm(KvmSevHost(self.platform, self.user, heap, KvmConfig(sev_fd=_SEV_FD)))

    def ioctl(self, command: KvmSevCommand, params: _Struct | None = None) -> _Struct | None:
        """KVM_MEMORY_ENCRYPT_OP; `params` as KVM left them. Raises `SevIoctlError`."""
        if params is not None:
            self.user.write(PARAMETERS, params.pack())
        self.user.write(COMMAND, SevCmd(command, 0, PARAMETERS, 0, _SEV_FD).pack())
        result = memory_encrypt_op(self.vm, COMMAND)
        if result:
            error = SevCmd.unpack(self.user.read(COMMAND, SevCmd.layout.size)).error
            raise SevIoctlError(
                f"SEV migration: {command.name} gave {result}, firmware status {error:#x}"
            )
        if params is None:
            return None
        return type(params).unpack(self.user.read(PARAMETERS, params.layout.size))

    def attach(self) -> bytes:
        """Puts the guest's RAM into the host's memory under the firmware's key for the VM, which is
        returned."""
        key = self.platform.memory_key(self.vm.handle)
        self.memory.attach(self._base, self._ram, key)
        return key

    def page(self, gfn: Gfn) -> int:
        """The host virtual address of frame `gfn`, mapped."""
        gpa = gpa_of(gfn)
        self.user.map(GUEST + gpa, self._base + gpa, 1)
        return GUEST + gpa
