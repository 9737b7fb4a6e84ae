# SPDX-License-Identifier: GPL-2.0-or-later
"""An EFI guest's opt-in to live migration, with the firmware's variable as one likes (A42).

The kernel's own setup_efi_kvm_sev_migration() (arch/x86/kernel/kvm.c) runs. A boot through EFI is
stood in for by three stores: the bits EFI_BOOT and EFI_RUNTIME_SERVICES of `efi.flags`, and
`efi.get_variable`, which points to the kernel's function for it, answered at its entry.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

import msgspec

from guestemu.abi.addresses import Gva
from guestemu.abi.msrs import MSR_KVM_MIGRATION_CONTROL
from guestemu.events.exits import WrmsrExit
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.machine.callbacks import CodeHook
from guestemu.machine.engine import HOOK_CODE, REGISTERS

OPT_IN: Final = "setup_efi_kvm_sev_migration"
GET_VARIABLE: Final = "virt_efi_get_variable"

_EFI_BOOT: Final = 1 << 0
_EFI_RUNTIME_SERVICES: Final = 1 << 3
_ERROR: Final = 1 << 63
_EFI_SUCCESS: Final = 0
_EFI_DEVICE_ERROR: Final = _ERROR | 7
_EFI_NOT_FOUND: Final = _ERROR | 14
_MAX_NAME: Final = 128


class Variable(enum.Enum):
    """What the firmware's SevLiveMigrationEnabled is."""

    ONE = "one"
    ZERO = "zero"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    NO_RUNTIME = "no-runtime"
    """The firmware's runtime services are off (efi=noruntime): nothing can be asked."""


_STATUS: Final = {
    Variable.ONE: _EFI_SUCCESS,
    Variable.ZERO: _EFI_SUCCESS,
    Variable.MISSING: _EFI_NOT_FOUND,
    Variable.UNREADABLE: _EFI_DEVICE_ERROR,
    Variable.NO_RUNTIME: _EFI_DEVICE_ERROR,
}


class OptIn(msgspec.Struct, frozen=True):
    """One run: the variable, the names that the kernel asked for, what it wrote to
    MIGRATION_CONTROL, and what it printed."""

    variable: str
    asked: tuple[str, ...]
    migration_control: tuple[int, ...]
    console: tuple[str, ...]


class _Firmware:
    """Answers GetVariable() at the entry of the kernel's function for it."""

    def __init__(self, guest: LinuxGuest, variable: Variable) -> None:
        self.asked: list[str] = []
        self.is_on = True
        self._variable = variable
        self._vcpu = guest.machine.current
        engine = self._engine = guest.machine.engine
        address = guest.kernel.address(GET_VARIABLE)
        engine.add_hook(HOOK_CODE, CodeHook(self._on_call), begin=address, end=address)
        engine.flush_blocks()

    def _on_call(self, _uc: object, _rip: int, _size: int, _user: object) -> None:
        if not self.is_on:
            return
        engine, vcpu = self._engine, self._vcpu
        name = vcpu.read_memory(Gva(engine.read(REGISTERS["rdi"])), _MAX_NAME) or b""
        self.asked.append(name.decode("utf-16-le", "replace").partition("\0")[0])
        status = _STATUS[self._variable]
        if status == _EFI_SUCCESS:
            value = bytes([self._variable is Variable.ONE])
            vcpu.write_memory(Gva(engine.read(REGISTERS["rcx"])), struct.pack("<Q", len(value)))
            vcpu.write_memory(Gva(engine.read(REGISTERS["r8"])), value)
        stack = engine.read(REGISTERS["rsp"])
        back = vcpu.read_memory(Gva(stack), 8) or b""
        engine.write(REGISTERS["rax"], status)
        engine.write(REGISTERS["rsp"], stack + 8)
        engine.write(REGISTERS["rip"], int.from_bytes(back, "little"))


def efi_opt_in(guest: LinuxGuest, variable: Variable) -> OptIn:
    """Runs the opt-in of a freshly reset guest. Raises `InputError` where the kernel has none."""
    kernel = guest.kernel
    efi = kernel.address("efi")
    kernel.address(OPT_IN)
    recorder = BootRecorder()
    guest.machine.hooks.handler = recorder
    guest.reset()
    flags = Gva(efi + kernel.btf.offset("efi.flags"))
    pointer = Gva(efi + kernel.btf.offset("efi.get_variable"))
    vcpu = guest.machine.current
    bits = _EFI_BOOT | (0 if variable is Variable.NO_RUNTIME else _EFI_RUNTIME_SERVICES)
    vcpu.write_memory(flags, struct.pack("<Q", guest.calls.read_u64(flags) | bits))
    vcpu.write_memory(pointer, struct.pack("<Q", kernel.address(GET_VARIABLE)))
    firmware = _Firmware(guest, variable)
    try:
        guest.call(OPT_IN)
    finally:
        firmware.is_on = False
    return OptIn(
        variable.value,
        tuple(firmware.asked),
        tuple(
            told.args[0]
            for told in recorder.exits
            if isinstance(told, WrmsrExit) and told.nr == MSR_KVM_MIGRATION_CONTROL
        ),
        tuple(guest.calls.lines),
    )
