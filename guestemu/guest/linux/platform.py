# SPDX-License-Identifier: GPL-2.0-or-later
"""The hardware that a kernel meets besides CPU and RAM: CPUID, MSRs, a UART, a clock.

Only what a KVM guest on AMD sees (tdx.py has what differs in a TD); no APIC, no timer interrupt, no
PCI. MTRR and PAT are advertised because without them early_memremap_encrypted_wp() has no
write-protected mapping and the kernel stops at its own BUG (arch/x86/mm/mem_encrypt_amd.c).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from guestemu.abi.addresses import Gpa
from guestemu.abi.cpuid import (
    CPUID_EXTENDED_MAX,
    CPUID_HYPERVISOR,
    CPUID_KVM_FEATURES,
    CPUID_MEMORY_ENCRYPTION,
)
from guestemu.guest.linux.es import attach_sev
from guestemu.guest.linux.tdx import attach_td
from guestemu.machine.callbacks import CodeHook
from guestemu.machine.cpuid import CpuidLeaf
from guestemu.machine.engine import HOOK_CODE, REGISTERS
from guestemu.machine.exits import Trap
from guestemu.machine.machine import Machine

_AMD: Final = (0x68747541, 0x444D4163, 0x69746E65)
_ZEN2: Final = 0x00830F10
_LEAF1_ECX: Final = 1 << 0 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23 | 1 << 30 | 1 << 31
_LEAF1_EDX: Final = 0x0783FBFF & ~(1 << 9 | 1 << 7 | 1 << 14)
_LEAF7_EBX: Final = 1 << 3 | 1 << 8 | 1 << 9
_EXT1_EDX: Final = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29 | 0x0183F1FF & ~(1 << 9)
_NAME: Final = b"AMD EPYC (emulated)".ljust(48, b"\0")

_MTRR_CAP: Final = 0xFE
_MTRR_DEF_TYPE: Final = 0x2FF
_MTRR_FIXED: Final = (0x250, 0x258, 0x259, *range(0x268, 0x270))
_MTRR_VARIABLE: Final = range(0x200, 0x210)
_SYSCFG: Final = 0xC0010010
_WRITE_BACK_ALL: Final = 0x0606060606060606

MSR_KVM_WALL_CLOCK_NEW: Final = 0x4B564D00
MSR_KVM_SYSTEM_TIME_NEW: Final = 0x4B564D01
_PVCLOCK: Final = struct.Struct("<IIQQIbBH")
_TSC_MULTIPLIER: Final = 0x80000000
_TSC_SHIFT: Final = 1

_UART: Final = 0x3F8
_LINE_CONTROL: Final = _UART + 3
_LINE_STATUS: Final = _UART + 5
_DIVISOR_LATCH: Final = 0x80
_TRANSMITTER_EMPTY: Final = 0x60
_TSC_STEP: Final = 1000
_CLOCK_DATA: Final = 0x71


class Console:
    """What the kernel wrote to its first serial port. `on_line` is called with every finished line;
    with `raises_ve` a TD's kernel has to ask for each character (16,000 times in a boot)."""

    def __init__(
        self, on_line: Callable[[str], None] | None = None, raises_ve: bool = False
    ) -> None:
        self.raises_ve = raises_ve
        self._text = bytearray()
        self._line_start = 0
        self._has_divisor = False
        self._on_line = on_line

    @property
    def text(self) -> str:
        """Everything so far."""
        return self._text.decode("utf-8", "replace")

    def resume(self, text: str) -> None:
        """Starts with what was written before a snapshot."""
        self._text = bytearray(text.encode())
        self._line_start = len(self._text)

    def write(self, port: int, value: int) -> None:
        """OUT to the UART."""
        if port == _LINE_CONTROL:
            self._has_divisor = bool(value & _DIVISOR_LATCH)
        elif port == _UART and not self._has_divisor:
            self._text.append(value & 0xFF)
            if value & 0xFF == 10:
                line = self._text[self._line_start : -1].decode("utf-8", "replace")
                self._line_start = len(self._text)
                if self._on_line is not None:
                    self._on_line(line.rstrip("\r"))


class GuestPlatform:
    """Installs itself into a machine. `kvm_features` is EAX of CPUID 0x40000001.

    `sev` is what answers a SEV-ES or SNP guest's VMGEXIT, None for plain SEV; `td` a TD's TDCALL.
    """

    def __init__(self, machine: Machine, console: Console, kvm_features: int) -> None:
        self._machine = machine
        self._leaves = machine.hooks.cpuid
        self._kvm_features = kvm_features
        self.console = console
        self.sev = attach_sev(machine, self.cpuid)
        self.tsc = 0
        hooks = machine.hooks
        hooks.cpuid_function = self.cpuid
        hooks.port_in = self._port_in
        hooks.port_out = self._port_out
        msrs = machine.msrs
        msrs.platform.update(dict.fromkeys(_MTRR_FIXED, _WRITE_BACK_ALL))
        msrs.platform.update(dict.fromkeys(_MTRR_VARIABLE, 0))
        msrs.platform.update({_MTRR_CAP: 0x508, _MTRR_DEF_TYPE: 0xC06, _SYSCFG: 0})
        msrs.platform.update({MSR_KVM_WALL_CLOCK_NEW: 0, MSR_KVM_SYSTEM_TIME_NEW: 0})
        msrs.on_write = self._msr_written
        self.td = attach_td(machine, self.cpuid, kvm_features)
        if self.td is not None and not console.raises_ve:
            self.td.ports_in_place = range(_UART, _UART + 8)

    def cpuid(self, function: int, subfunction: int) -> CpuidLeaf:
        """The leaf that the guest reads; zeros for one that is not modelled."""
        if function == 0:
            return CpuidLeaf(0xD, *_AMD)
        if function == 1:
            return CpuidLeaf(_ZEN2, 0x00010800, _LEAF1_ECX, _LEAF1_EDX)
        if function == 7 and subfunction == 0:
            return CpuidLeaf(0, _LEAF7_EBX, 0, 0)
        if function == CPUID_EXTENDED_MAX:
            return CpuidLeaf(CPUID_MEMORY_ENCRYPTION, *_AMD)
        if function == CPUID_EXTENDED_MAX + 1:
            return CpuidLeaf(_ZEN2, 0, 1, _EXT1_EDX)
        if CPUID_EXTENDED_MAX + 2 <= function <= CPUID_EXTENDED_MAX + 4:
            part = 16 * (function - CPUID_EXTENDED_MAX - 2)
            return CpuidLeaf(*struct.unpack_from("<4I", _NAME, part))
        if function == CPUID_KVM_FEATURES:
            return CpuidLeaf(self._kvm_features, 0, 0, 0)
        if function == CPUID_HYPERVISOR or function in self._leaves:
            return self._leaves[function]
        return CpuidLeaf(0, 0, 0, 0)

    def _msr_written(self, index: int, value: int) -> None:
        """Enabling kvmclock: the host fills its page in shared memory (kvm/x86/msr.rst)."""
        if index == MSR_KVM_SYSTEM_TIME_NEW and value & 1:
            record = _PVCLOCK.pack(2, 0, 0, 0, _TSC_MULTIPLIER, _TSC_SHIFT, 1, 0)
            gpa = Gpa(value & ~1 & ~self._machine.pte_cbit)
            self._machine.ram.write(gpa, record, private=False)

    def _port_in(self, port: int, size: int) -> int:
        if port == _LINE_STATUS:
            return _TRANSMITTER_EMPTY
        if _UART <= port < _UART + 8:
            return 0
        if port == 0x61:
            return 0x20
        if port in {0x40, 0x42}:
            return 0
        if port == _CLOCK_DATA and self.td is not None:
            return 0  # all ones would be an update in progress: 20,000 reads, each a #VE
        return (1 << 8 * size) - 1

    def _port_out(self, port: int, _size: int, value: int) -> None:
        if _UART <= port < _UART + 8:
            self.console.write(port, value)

    def hook_tsc(self, address: int) -> None:
        """Makes RDTSC at `address` deterministic: each one reads 1000 ticks more."""
        engine = self._machine.engine

        def on_rdtsc(_uc: object, rip: int, _size: int, _user: object) -> None:
            self.tsc += _TSC_STEP
            engine.write(REGISTERS["rax"], self.tsc & 0xFFFFFFFF)
            engine.write(REGISTERS["rdx"], self.tsc >> 32)
            engine.write(REGISTERS["rip"], rip + 2)

        engine.add_hook(HOOK_CODE, CodeHook(on_rdtsc), begin=address, end=address)

    def hook_stop(self, address: int) -> None:
        """Ends a run when RIP arrives at `address`, with `Trap`."""
        hooks = self._machine.hooks

        def on_stop(_uc: object, rip: int, _size: int, _user: object) -> None:
            hooks.pending = Trap(rip)
            hooks.engine.stop()

        self._machine.engine.add_hook(HOOK_CODE, CodeHook(on_stop), begin=address, end=address)
