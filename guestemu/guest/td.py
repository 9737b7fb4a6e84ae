# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD around one machine: TDCALL, the Secure EPT, #VE.

The TDX module's side follows facts T4 to T8 and T14; sub-functions of TDG.VP.VMCALL go to the
hypervisor, MapGPA to the `ExitHandler` (KVM's own part is host/kvm/tdx_map_gpa.py, K4-b).

CPUID, I/O ports and MSRs are answered in place unless their kind is in `reflected`: the guest needs
no #VE to boot (T8). A reflected instruction raises #VE where the guest's own handler is installed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol, runtime_checkable

from guestemu.abi import tdx
from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, U32_MASK, U64_MASK, Gpa
from guestemu.abi.hypercalls import MAP_GPA_RANGE_DECRYPTED, MAP_GPA_RANGE_ENCRYPTED
from guestemu.abi.tdx import Leaf, MapGpaAnswer, Vmcall
from guestemu.abi.x86 import VECTOR_DF
from guestemu.guest.td_events import Accept, MapGpaCall, TdEvents, new_td_events
from guestemu.machine.cpuid import CpuidLeaf
from guestemu.machine.exits import (
    GuestFault,
    Halt,
    Hypercall,
    MapGpaRange,
    RunFailed,
    Shutdown,
    VcpuAccess,
)
from guestemu.machine.machine import Machine
from guestemu.machine.sept import SecureEpt
from guestemu.machine.vcpu import Vcpu
from guestemu.machine.view_bit import ViewBit

_EXPOSABLE: Final = (
    "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()  # by encoding
)
_FATAL_TEXT: Final = ("r14", "r15", "rbx", "rdi", "rsi", "r8", "r9", "rdx")
_TDCALL_LENGTH: Final = 4
_VMCALL_LENGTH: Final = 3


class VirtualException(NamedTuple):
    """What TDG.VP.VEINFO.GET returns: exit reason, qualification, addresses, instruction."""

    reason: int
    qualification: int = 0
    gla: int = 0
    gpa: int = 0
    length: int = 0
    information: int = 0


class TdVcpu:
    """What the hypervisor can reach of a TD's vCPU (a `VcpuAccess`): the registers that RCX of
    TDG.VP.VMCALL exposes. Others read 0 and swallow writes."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        mask = vcpu.read_register("rcx")
        self._exposed = {name for bit, name in enumerate(_EXPOSABLE) if mask >> bit & 1}

    def read_register(self, name: str) -> int:
        """An exposed register."""
        return self._vcpu.read_register(name) if name in self._exposed else 0

    def write_register(self, name: str, value: int) -> None:
        """Sets an exposed register."""
        if name in self._exposed:
            self._vcpu.write_register(name, value)

    @property
    def cpl(self) -> int:
        """0: the module refuses TDCALL elsewhere."""
        return 0

    @property
    def is_64bit(self) -> bool:
        """True: KVM takes a guest with protected state for a 64-bit one."""
        return True

    def read_code(self, size: int) -> bytes:
        """Nothing: the code is private memory."""
        return b""

    def patch_code(self, code: bytes) -> None:
        """Nothing: the code is private memory."""


@runtime_checkable
class MapGpaHandler(Protocol):
    """An `ExitHandler` that is a whole hypervisor: it answers MapGPA with KVM's own part."""

    def tdx_map_gpa(
        self, gpa: int, size: int, bit: ViewBit, vcpu: VcpuAccess, sept: SecureEpt
    ) -> MapGpaAnswer | RunFailed:
        """MapGPA of `size` bytes at `gpa`, which has the shared `bit` for a range to be shared;
        what user space converted shows in `sept` afterwards."""


class Td:
    """TDX for one machine with a shared bit; installs TDCALL. `sept` are the page states, `events`
    the log, `cpuid` answers TDG.VP.VMCALL<CPUID>.

    `attributes` are the TD's (VP.INFO). `accept_error` may order a completion code for an ACCEPT by
    GPA and level (None: what the state says). `converts`: user space converts a page on
    KVM_EXIT_MEMORY_FAULT, as QEMU does; otherwise the run ends there.
    """

    def __init__(
        self,
        machine: Machine,
        cpuid: Callable[[int, int], CpuidLeaf],
        attributes: int = tdx.ATTR_SEPT_VE_DISABLE,
    ) -> None:
        self.sept = SecureEpt(
            machine.config.frames, has_ve=not attributes & tdx.ATTR_SEPT_VE_DISABLE
        )
        self.events: TdEvents = new_td_events()
        self.attributes = attributes
        self.accept_error: Callable[[int, int], int | None] | None = None
        self.converts = True
        self.leaves: dict[int, int] = {}
        self.fields: dict[tuple[Leaf, int], int] = {}
        self._machine = machine
        self._cpuid = cpuid
        self._ve: VirtualException | None = None
        machine.devices.append(self.sept)
        machine.devices.append(self)
        machine.hooks.vmcall_fault = self._vmcall
        machine.hooks.instructions[tdx.TDCALL] = self._tdcall
        self._module: dict[int, Callable[[Vcpu], int]] = {
            Leaf.VP_INFO: self._vp_info,
            Leaf.VP_VEINFO_GET: self._veinfo_get,
            Leaf.MEM_PAGE_ACCEPT: self._page_accept,
            Leaf.VM_RD: self._vm_field,
            Leaf.VM_WR: self._vm_field,
        }
        self._vmcalls: dict[int, Callable[[Vcpu], Shutdown | Halt | None]] = {
            Vmcall.MAP_GPA: self._map_gpa,
            Vmcall.REPORT_FATAL_ERROR: self._fatal_error,
            Vmcall.HLT: self._hlt,
            Vmcall.CPUID: self._cpuid_exit,
            Vmcall.RDMSR: self._rdmsr,
            Vmcall.WRMSR: self._wrmsr,
            Vmcall.IO: self._io,
            Vmcall.MMIO: self._mmio,
            Vmcall.GET_TD_VMCALL_INFO: self._vmcall_info,
        }

    # State ------------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """See `Device`."""

    def rollback(self) -> None:
        """See `Device`; the log of events starts anew, and nothing is ordered."""
        self.events.clear()
        self._ve = None

    # TDCALL -----------------------------------------------------------------------------------

    def _tdcall(self, vcpu: Vcpu) -> Shutdown | Halt | None:
        leaf = vcpu.read_register("rax") & 0xFFFF
        self.leaves[leaf] = self.leaves.get(leaf, 0) + 1
        if leaf == Leaf.VP_VMCALL:
            vcpu.write_register("rax", tdx.SUCCESS)
            if vcpu.read_register("r10"):
                self._hypercall(vcpu)
                return None
            call = self._vmcalls.get(vcpu.read_register("r11"))
            if call is not None:
                return call(vcpu)
            vcpu.write_register("r10", tdx.VMCALL_SUBFUNC_UNSUPPORTED)
            return None
        function = self._module.get(leaf)
        try:
            status = tdx.OPERAND_INVALID if function is None else function(vcpu)
        except _Stopped as stopped:
            return stopped.end
        vcpu.write_register("rax", status)
        return None

    def _vp_info(self, vcpu: Vcpu) -> int:
        width = self._machine.bit.mask.bit_length()
        values = (width, self.attributes, 1 | self._machine.config.vcpus << 32, 0, 0, 0)
        for name, value in zip(("rcx", "rdx", "r8", "r9", "r10", "r11"), values, strict=True):
            vcpu.write_register(name, value)
        return tdx.SUCCESS

    def _vm_field(self, vcpu: Vcpu) -> int:
        leaf = Leaf(vcpu.read_register("rax") & 0xFFFF)
        key = (leaf, vcpu.read_register("rdx"))
        self.fields[key] = self.fields.get(key, 0) + 1
        vcpu.write_register("r8", 0)
        return tdx.SUCCESS

    def _page_accept(self, vcpu: Vcpu) -> int:
        rcx = vcpu.read_register("rcx")
        gpa, level = rcx & ~PAGE_MASK, rcx & 7
        writes = self._machine.ram.table_write_count
        ordered = self.accept_error(gpa, level) if self.accept_error is not None else None
        if ordered:
            result, exits = ordered, 0
        elif gpa & PAGE_SIZE * (1 << 9 * level) - 1 or gpa >> PAGE_SHIFT >= self.sept.frames:
            result, exits = tdx.OPERAND_INVALID | 1, 0
        else:
            result, exits = self._accept(vcpu, gpa, level, writes)
        vcpu.write_register("rcx", 0)
        vcpu.write_register("rdx", 0)
        self.events.append(Accept(gpa, level, result, exits, writes))
        return result

    def _accept(self, vcpu: Vcpu, gpa: int, level: int, writes: int) -> tuple[int, int]:
        """The completion code, and the EPT violations to the host before it."""
        sept = self.sept
        gfn = gpa >> PAGE_SHIFT
        result = sept.accept(gfn, level)
        if result is None:
            if not self.converts:
                self.events.append(Accept(gpa, level, tdx.OPERAND_BUSY, 1, writes))
                state = sept.describe(gfn)
                reason = f"KVM_EXIT_MEMORY_FAULT: ACCEPT of a {state} page at {gpa:#x}"
                raise _Stopped(Shutdown(reason, vcpu.read_register("rip")))
            sept.block(gfn, is_blocked=False)
            sept.make_private(gfn, 1)
            return self._accept(vcpu, gpa, level, writes)[0], 1
        if result == tdx.SUCCESS:
            self._machine.ram.write(Gpa(gpa), bytes(PAGE_SIZE))
        return result, 0

    # #VE --------------------------------------------------------------------------------------

    def raise_ve(self, information: VirtualException) -> GuestFault:
        """#VE for the guest, or #DF where it has not read the information of the last one."""
        if self._ve is not None:
            return GuestFault(VECTOR_DF, 0)
        self._ve = information
        return GuestFault(tdx.VECTOR_VE, None)

    def _vmcall(self) -> GuestFault:
        return self.raise_ve(VirtualException(tdx.EXIT_REASON_VMCALL, length=_VMCALL_LENGTH))

    def _veinfo_get(self, vcpu: Vcpu) -> int:
        found, self._ve = self._ve, None
        if found is None:
            return tdx.NO_VE_INFO
        for name, value in (
            ("rcx", found.reason),
            ("rdx", found.qualification),
            ("r8", found.gla),
            ("r9", found.gpa),
            ("r10", found.length | found.information << 32),
        ):
            vcpu.write_register(name, value)
        return tdx.SUCCESS

    # TDG.VP.VMCALL ----------------------------------------------------------------------------

    def _hypercall(self, vcpu: Vcpu) -> None:
        """R10 != 0: a KVM hypercall by TDVMCALL; the handler's value goes back as it is (T30)."""
        number, *args = (vcpu.read_register(name) for name in ("r10", "r11", "r12", "r13", "r14"))
        handler = self._machine.hooks.handler
        value = 0
        if handler is not None:
            a0, a1, a2, a3 = args
            call = Hypercall(number, a0, a1, a2, a3, 0, True, TdVcpu(vcpu), True)
            value = handler.hypercall(call)
        vcpu.write_register("r10", value & U64_MASK)

    def _map_gpa(self, vcpu: Vcpu) -> Shutdown | None:
        gpa, size = vcpu.read_register("r12"), vcpu.read_register("r13")
        bit = self._machine.bit
        private = bit.is_private(gpa)
        writes = self._machine.ram.table_write_count
        handler: object = self._machine.hooks.handler
        answer: MapGpaAnswer | RunFailed
        if isinstance(handler, MapGpaHandler):
            answer = handler.tdx_map_gpa(gpa, size, bit, TdVcpu(vcpu), self.sept)
        else:
            answer = self._map_plainly(gpa & ~bit.mask, size, private, TdVcpu(vcpu))
        if isinstance(answer, RunFailed):
            return RunFailed(answer.reason, vcpu.read_register("rip"))
        status, next_gpa = answer
        vcpu.write_register("r10", status)
        vcpu.write_register("r11", next_gpa & U64_MASK)
        self.events.append(
            MapGpaCall(gpa & ~bit.mask, size, private, status, next_gpa & ~bit.mask, writes)
        )
        return None

    def _map_plainly(self, gpa: int, size: int, private: bool, vcpu: VcpuAccess) -> MapGpaAnswer:
        """MapGPA under a handler that answers whole ranges."""
        pages = size >> PAGE_SHIFT
        if gpa & PAGE_MASK or size & PAGE_MASK:
            return MapGpaAnswer(tdx.VMCALL_ALIGN_ERROR)
        if not pages or gpa + size > self.sept.frames * PAGE_SIZE:
            return MapGpaAnswer(tdx.VMCALL_INVALID_OPERAND)
        handler = self._machine.hooks.handler
        attributes = MAP_GPA_RANGE_ENCRYPTED if private else MAP_GPA_RANGE_DECRYPTED
        if handler is not None and handler.map_gpa_range(
            MapGpaRange(gpa, pages, attributes, "mapgpa", vcpu)
        ):
            return MapGpaAnswer(tdx.VMCALL_INVALID_OPERAND)
        convert = self.sept.make_private if private else self.sept.make_shared
        convert(gpa >> PAGE_SHIFT, pages)
        return MapGpaAnswer(tdx.VMCALL_SUCCESS)

    def _fatal_error(self, vcpu: Vcpu) -> Shutdown:
        words = [vcpu.read_register(name) for name in _FATAL_TEXT]
        text = struct.pack("<8Q", *words).partition(b"\0")[0].decode("ascii", "replace")
        return Shutdown(f"ReportFatalError: {text}", vcpu.read_register("rip"))

    def _hlt(self, vcpu: Vcpu) -> Halt:
        vcpu.write_register("r10", tdx.VMCALL_SUCCESS)
        return Halt(vcpu.read_register("rip") + _TDCALL_LENGTH)

    def _vmcall_info(self, vcpu: Vcpu) -> None:
        for name in ("r10", "r11", "r12", "r13", "r14"):
            vcpu.write_register(name, 0)

    def _cpuid_exit(self, vcpu: Vcpu) -> None:
        leaf = self._cpuid(
            vcpu.read_register("r12") & U32_MASK, vcpu.read_register("r13") & U32_MASK
        )
        vcpu.write_register("r10", tdx.VMCALL_SUCCESS)
        for name, value in zip(("r12", "r13", "r14", "r15"), leaf, strict=True):
            vcpu.write_register(name, value)

    def _rdmsr(self, vcpu: Vcpu) -> None:
        index = vcpu.read_register("r12") & U32_MASK
        msrs, handler = self._machine.msrs, self._machine.hooks.handler
        value = 0
        status = tdx.VMCALL_SUCCESS
        try:
            if msrs.holds(index):
                value = msrs.read(index)
            elif handler is not None:
                value = handler.rdmsr(index, TdVcpu(vcpu))
        except GuestFault:
            status = tdx.VMCALL_INVALID_OPERAND
        vcpu.write_register("r10", status)
        vcpu.write_register("r11", value)

    def _wrmsr(self, vcpu: Vcpu) -> None:
        index, value = vcpu.read_register("r12") & U32_MASK, vcpu.read_register("r13")
        msrs, handler = self._machine.msrs, self._machine.hooks.handler
        status = tdx.VMCALL_SUCCESS
        try:
            if msrs.holds(index):
                msrs.write(index, value)
            elif handler is not None:
                handler.wrmsr(index, value, TdVcpu(vcpu))
        except GuestFault:
            status = tdx.VMCALL_INVALID_OPERAND
        vcpu.write_register("r10", status)

    def _io(self, vcpu: Vcpu) -> None:
        size, is_write, port = (vcpu.read_register(name) for name in ("r12", "r13", "r14"))
        hooks = self._machine.hooks
        value = (1 << 8 * (size & 7)) - 1
        if is_write:
            if hooks.port_out is not None:
                hooks.port_out(port, size, vcpu.read_register("r15"))
        elif hooks.port_in is not None:
            value = hooks.port_in(port, size)
        vcpu.write_register("r10", tdx.VMCALL_SUCCESS)
        if not is_write:
            vcpu.write_register("r11", value)

    def _mmio(self, vcpu: Vcpu) -> None:
        """No device is there: loads read all ones."""
        vcpu.write_register("r10", tdx.VMCALL_SUCCESS)
        if not vcpu.read_register("r13"):
            size = vcpu.read_register("r12")
            vcpu.write_register("r11", (1 << 8 * min(size, 8)) - 1)


class _Stopped(Exception):
    """A TDCALL that does not return to the guest."""

    def __init__(self, end: Shutdown) -> None:
        super().__init__(end.reason)
        self.end = end
