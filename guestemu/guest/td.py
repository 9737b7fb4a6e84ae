# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD around one machine: TDCALL, the Secure EPT, #VE.

The TDX module's side follows facts T4 to T8 and T14; sub-functions of TDG.VP.VMCALL go to the
hypervisor, MapGPA to the `ExitHandler` (KVM's own part is host/kvm/tdx_map_gpa.py, K4-b).

CPUID, I/O ports, HLT and MSRs of a real kernel raise #VE (T8): MSRs by the vCPU, the others at the
addresses that guest/linux/exit_sites.py finds. Until the IDT has a gate for vector 20, and in code
of a program's own, they are answered in place. MMIO and, with SEPT_VE_DISABLE off, pending pages
raise #VE.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, Protocol, runtime_checkable

import msgspec

from guestemu.abi import tdx
from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, U32_MASK, U64_MASK, Gpa
from guestemu.abi.hypercalls import MAP_GPA_RANGE_DECRYPTED, MAP_GPA_RANGE_ENCRYPTED
from guestemu.abi.tdx import MapGpaAnswer, TdcallLeaf, Vmcall
from guestemu.abi.x86 import FIRST_INTERRUPT, RFLAGS_IF, VECTOR_DF, VECTOR_NMI
from guestemu.events.log import EventLog
from guestemu.events.tdx import Accept, MapGpaCall, SeptViolation
from guestemu.machine.cpuid import CpuidLeaf
from guestemu.machine.engine import RegisterBatch
from guestemu.machine.exits import (
    MEMORY_FAULT,
    Exit,
    ExitHandler,
    GuestFault,
    Halt,
    Hypercall,
    MapGpaRange,
    RunFailed,
    Shutdown,
    VcpuAccess,
    ViewFault,
)
from guestemu.machine.interrupts import has_gate
from guestemu.machine.machine import Machine
from guestemu.machine.sept import AccessEnd, AccessKind, SecureEpt
from guestemu.machine.sept_attacks import SEPT_ATTACKS
from guestemu.machine.vcpu import Vcpu
from guestemu.machine.view_bit import ViewBit

_EXPOSABLE: Final = (
    "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()  # by encoding
)
# Plain names: an enum member costs an attribute lookup for each call.
_VP_VMCALL: Final = int(TdcallLeaf.VP_VMCALL)
_PAGE_ACCEPT: Final = int(TdcallLeaf.MEM_PAGE_ACCEPT)
_MAP_GPA: Final = int(Vmcall.MAP_GPA)
_ZEROES: Final = bytes(PAGE_SIZE)
_FATAL_TEXT: Final = ("r14", "r15", "rbx", "rdi", "rsi", "r8", "r9", "rdx")
_INPUTS: Final = ("rax", "rcx", "r10", "r11", "r12", "r13")
_TDCALL_LENGTH: Final = 4
_VMCALL_LENGTH: Final = 3
_MSR_LENGTH: Final = 2
_STATES: Final = 4
"""Numbers of page states."""
_QUALIFICATIONS: Final = {AccessKind.READ: 1, AccessKind.WRITE: 2, AccessKind.FETCH: 4}


class VirtualException(msgspec.Struct, frozen=True, kw_only=True):
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

    __slots__ = ("_mask", "_vcpu")

    def __init__(self, vcpu: Vcpu, mask: int) -> None:
        """`mask` is RCX: a bit for each exposed register, by its encoding."""
        self._vcpu = vcpu
        self._mask = mask

    def _exposes(self, name: str) -> bool:
        return name in _EXPOSABLE and bool(self._mask >> _EXPOSABLE.index(name) & 1)

    def read_register(self, name: str) -> int:
        """An exposed register."""
        return self._vcpu.read_register(name) if self._exposes(name) else 0

    def write_register(self, name: str, value: int) -> None:
        """Sets an exposed register."""
        if self._exposes(name):
            self._vcpu.write_register(name, value)

    @property
    def index(self) -> int:
        """The number of the vCPU in its VM."""
        return self._vcpu.index

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

    `leaves` counts TDCALLs by leaf, `calls` those of TDG.VP.VMCALL but MapGPA by sub-function,
    `reflected` the #VEs of instructions by exit reason; without `reflects` there are none, and
    I/O of `ports_in_place` raises none.
    `attributes` are the TD's (VP.INFO). `accept_error` may order a completion code for an ACCEPT by
    GPA and level (None: what the state says); after each of the next `pending_events` chunks of a
    MapGPA KVM finds an event pending. At KVM_EXIT_MEMORY_FAULT user space is asked by a
    `MapGpaRange` of the origin "memory-fault" and converts the page on answer 0, as QEMU does;
    otherwise, and without `converts`, the run ends there.
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
        self.events: EventLog = machine.log
        self.attributes = attributes
        self.accept_error: Callable[[int, int], int | None] | None = None
        self.pending_events = 0
        self.attacked: set[int] = set()
        """Frames that the VMM attacked since the last rollback."""
        self.met = 0
        """A bit for each attack with the state that it met its page in, since then."""
        self.has_injected = False
        """Whether it injected an event since then."""
        self.lie = ""
        """What it lies about at MapGPA since then, a name that the `MapGpaHandler` knows."""
        self.converts = True
        self.reflects = True
        self.reflected: dict[int, int] = {}
        self.ports_in_place = range(0)
        self._gates: set[int] = set()
        self.leaves: dict[int, int] = {}
        self.calls: dict[int, int] = {}
        self.fields: dict[tuple[TdcallLeaf, int], int] = {}
        self._machine = machine
        self._cpuid = cpuid
        self.exceptions: dict[int, VirtualException] = {}
        """By vCPU a #VE whose information the guest has not read yet."""
        self._kept_exceptions: dict[int, VirtualException] = {}
        self._in = RegisterBatch(machine.engine, _INPUTS)
        self._map_gpa_out = RegisterBatch(machine.engine, ("r10", "r11"))
        self._accept_out = RegisterBatch(machine.engine, ("rcx", "rdx"))
        self._handlers: tuple[ExitHandler | None, MapGpaHandler | None] = (None, None)
        machine.devices.append(self.sept)
        machine.devices.append(self)
        machine.hooks.vmcall_fault = self._vmcall
        machine.hooks.instructions[tdx.TDCALL] = self._tdcall
        self._module: dict[int, Callable[[Vcpu], int]] = {
            TdcallLeaf.VP_INFO: self._vp_info,
            TdcallLeaf.VP_VEINFO_GET: self._veinfo_get,
            TdcallLeaf.VM_RD: self._vm_field,
            TdcallLeaf.VM_WR: self._vm_field,
        }
        self._vmcalls: dict[int, Callable[[Vcpu], Shutdown | Halt | None]] = {
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
        self._kept_exceptions = dict(self.exceptions)

    def rollback(self) -> None:
        """See `Device`; the log of events starts anew, and nothing is ordered."""
        self.events.clear()
        self.accept_error = None
        self.pending_events = 0
        self.attacked.clear()
        self.met = 0
        self.has_injected = False
        self.lie = ""
        self.exceptions = dict(self._kept_exceptions)

    # The VMM's acts at any time ---------------------------------------------------------------

    def inject(self, vector: int, after: int) -> None:
        """The VMM makes an event pending when the guest has begun `after` more instructions: an
        interrupt, which comes if the guest takes one there, or the NMI. The module lets it inject
        nothing else."""
        if vector != VECTOR_NMI and vector < FIRST_INTERRUPT:
            return

        def carry_out(vcpu: Vcpu) -> Exit | None:
            if vector != VECTOR_NMI and not vcpu.read_register("rflags") & RFLAGS_IF:
                return None
            self.has_injected = True
            return vcpu.inject(vector, None)

        self._machine.intervene(after, carry_out)

    def attack(self, gfn: int, name: str, after: int) -> None:
        """The VMM attacks a frame when the guest has begun `after` more instructions; `name` is one
        of `SEPT_ATTACKS`."""
        number = tuple(SEPT_ATTACKS).index(name)

        def carry_out(_vcpu: Vcpu) -> None:
            self.attacked.add(gfn)
            self.met |= 1 << (_STATES * number + self.sept.state(gfn))
            SEPT_ATTACKS[name].carry_out(self.sept, gfn)

        self._machine.intervene(after, carry_out)

    # TDCALL -----------------------------------------------------------------------------------

    def _tdcall(self, vcpu: Vcpu) -> Shutdown | Halt | int | None:
        rax, rcx, r10, r11, r12, r13 = self._in.read().tolist()
        leaf = rax & 0xFFFF
        self.leaves[leaf] = self.leaves.get(leaf, 0) + 1
        if leaf == _VP_VMCALL:
            if r11 == _MAP_GPA and not r10:
                return self._map_gpa(r12, r13, TdVcpu(vcpu, rcx))
            self.calls[r11] = self.calls.get(r11, 0) + 1
            vcpu.write_register("rax", tdx.SUCCESS)
            if r10:
                self._hypercall(vcpu)
                return None
            call = self._vmcalls.get(r11)
            if call is not None:
                return call(vcpu)
            vcpu.write_register("r10", tdx.VMCALL_SUBFUNC_UNSUPPORTED)
            return None
        if leaf == _PAGE_ACCEPT:
            return self._page_accept(rcx)
        function = self._module.get(leaf)
        vcpu.write_register("rax", tdx.OPERAND_INVALID if function is None else function(vcpu))
        return None

    def _vp_info(self, vcpu: Vcpu) -> int:
        width = self._machine.bit.mask.bit_length()
        values = (width, self.attributes, 1 | self._machine.config.vcpus << 32, 0, 0, 0)
        for name, value in zip(("rcx", "rdx", "r8", "r9", "r10", "r11"), values, strict=True):
            vcpu.write_register(name, value)
        return tdx.SUCCESS

    def _vm_field(self, vcpu: Vcpu) -> int:
        leaf = TdcallLeaf(vcpu.read_register("rax") & 0xFFFF)
        key = (leaf, vcpu.read_register("rdx"))
        self.fields[key] = self.fields.get(key, 0) + 1
        vcpu.write_register("r8", 0)
        return tdx.SUCCESS

    def _page_accept(self, rcx: int) -> Shutdown | int:
        gpa, level = rcx & ~PAGE_MASK, rcx & 7
        writes = self._machine.ram.table_write_count
        ordered = self.accept_error(gpa, level) if self.accept_error is not None else None
        exits = 0
        gfn = gpa >> PAGE_SHIFT
        if ordered:
            result = ordered
        elif gfn & (1 << 9 * level) - 1 or gfn >= self.sept.frames:
            result = tdx.OPERAND_INVALID | 1
        else:
            found = self.sept.accept(gfn, level)
            if found is None:  # an EPT violation to the host; then the call starts again
                exits = 1
                state = self.sept.describe(gfn)
                if not self._user_space_converts(gfn, private=True):
                    reason = f"{AccessEnd.MEMORY_FAULT.value}: ACCEPT of {gpa:#x}, which is {state}"
                    return RunFailed(reason, self._machine.current.read_register("rip"))
                self.sept.block(gfn, is_blocked=False)
                self.sept.make_private(gfn, 1)
                found = self.sept.accept(gfn, level)
            result = tdx.OPERAND_BUSY if found is None else found
            if result == tdx.SUCCESS:
                self._machine.ram.write(Gpa(gpa), _ZEROES)
        self._accept_out.write()
        self.events.append(Accept(gpa, level, result, exits, writes))
        return result

    # Accesses ---------------------------------------------------------------------------------

    def guard(self) -> None:
        """From now on the CPU stops before an access that the page's state does not allow (T12)."""
        gates = self._machine.gate_views()
        gates.on_fault = self._on_view_fault
        self.sept.enforce(gates)

    def watch(self) -> None:
        """From now on loads and stores that the page's state does not allow are seen, at no cost
        for others. A conversion by user space comes before the access, as it should; an access that
        ends the VM is seen in time, yet the rest of its basic block still runs, and instruction
        fetches are not watched (`guard` is exact, and slower)."""
        ram = self._machine.ram
        ram.on_watched = self._on_watched
        self.sept.watch(ram)

    def _on_watched(self, gfn: int, private: bool, is_write: bool) -> None:
        kind = "write" if is_write else "read"
        if self.sept.access(gfn, private, AccessKind(kind)) is AccessEnd.WORKS:
            return
        hooks = self._machine.hooks
        rip = self._machine.current.read_register("rip")
        try:
            end = self._on_view_fault(ViewFault(kind, 0, gfn << PAGE_SHIFT, private, rip))
        except GuestFault:
            end = Shutdown(f"{AccessEnd.VE.value}: {kind} of {gfn << PAGE_SHIFT:#x}", rip)
        if end is not None:
            hooks.pending = end
            hooks.engine.stop()

    def _on_view_fault(self, fault: ViewFault) -> Shutdown | None:
        """None to make the access again; `GuestFault` for #VE."""
        sept = self.sept
        gfn = fault.gpa >> PAGE_SHIFT
        kind = AccessKind.READ if fault.kind == "walk" else AccessKind(fault.kind)
        state = sept.describe(gfn)
        end = sept.access(gfn, fault.is_private, kind)
        converts = end is AccessEnd.MEMORY_FAULT and self._user_space_converts(
            gfn, fault.is_private
        )
        self.events.append(
            SeptViolation(
                gpa=fault.gpa,
                private=fault.is_private,
                kind=kind.value,
                state=state,
                end=end.value,
                converted=converts,
                rip=fault.rip,
                table_writes=self._machine.ram.table_write_count,
            )
        )
        alias = "private" if fault.is_private else "shared"
        access = f"{kind.value} of {alias} {fault.gpa:#x}, which is {state}"
        if end is AccessEnd.WRITE_BLOCKED:
            sept.block(gfn, is_blocked=False)
            return None
        if end is AccessEnd.VE:
            raise self.raise_ve(
                VirtualException(
                    reason=tdx.EXIT_REASON_EPT_VIOLATION,
                    qualification=_QUALIFICATIONS[kind],
                    gla=fault.gva,
                    gpa=self._machine.bit.select(fault.gpa, fault.is_private),
                )
            )
        if converts:
            if fault.is_private:
                sept.make_private(gfn, 1)
                return self._on_view_fault(fault)
            sept.make_shared(gfn, 1)
            return None
        ended = RunFailed if end is AccessEnd.MEMORY_FAULT else Shutdown
        return ended(f"{end.value}: {access}", fault.rip)

    def _user_space_converts(self, gfn: int, private: bool) -> bool:
        """KVM_EXIT_MEMORY_FAULT: whether user space makes the page what the access wants it to be,
        and runs the vCPU again. It is asked like an SNP guest's (N16)."""
        handler = self._machine.hooks.handler
        if not self.converts or handler is None:
            return self.converts
        attributes = MAP_GPA_RANGE_ENCRYPTED if private else MAP_GPA_RANGE_DECRYPTED
        vcpu = TdVcpu(self._machine.current, 0)
        gpa = gfn << PAGE_SHIFT
        return not handler.map_gpa_range(MapGpaRange(gpa, 1, attributes, MEMORY_FAULT, vcpu))

    # #VE --------------------------------------------------------------------------------------

    def raise_ve(self, information: VirtualException) -> GuestFault:
        """#VE for the guest, or #DF where it has not read the information of the last one."""
        vcpu = self._machine.current.index
        if vcpu in self.exceptions:
            return GuestFault(VECTOR_DF, 0)
        self.exceptions[vcpu] = information
        return GuestFault(tdx.VECTOR_VE, None)

    def _vmcall(self) -> GuestFault:
        return self.raise_ve(VirtualException(reason=tdx.EXIT_REASON_VMCALL, length=_VMCALL_LENGTH))

    def raise_at(self, rip: int, what: Callable[[Vcpu], VirtualException | None]) -> None:
        """From now on the instruction at `rip` raises #VE with what `what` says (None: none), when
        its block is translated the next time."""

        def fault() -> GuestFault | None:
            if not self.reflects or not self._has_handler():
                return None
            found = what(self._machine.current)
            return None if found is None else self._reflected(found)

        self._machine.hooks.add_fault_site(rip, fault)

    def reflect_msrs(self) -> None:
        """From now on RDMSR and WRMSR of MSRs that the CPU does not keep raise #VE: the kernel's
        handler fetches the information and asks by TDG.VP.VMCALL (T8)."""
        self._machine.hooks.msr_fault = self._msr

    def _has_handler(self) -> bool:
        """Whether the IDT of the code that runs has a gate for #VE; a program's own code has its
        exceptions reported, not delivered."""
        vcpu = self._machine.current
        if not vcpu.deliver:
            return False
        if vcpu.index not in self._gates:
            if not has_gate(vcpu, tdx.VECTOR_VE):
                return False
            self._gates.add(vcpu.index)
        return True

    def _reflected(self, information: VirtualException) -> GuestFault:
        reason = information.reason
        self.reflected[reason] = self.reflected.get(reason, 0) + 1
        return self.raise_ve(information)

    def _msr(self, is_write: bool) -> GuestFault | None:
        if not self.reflects or not self._has_handler():
            return None
        reason = tdx.EXIT_REASON_MSR_WRITE if is_write else tdx.EXIT_REASON_MSR_READ
        return self._reflected(VirtualException(reason=reason, length=_MSR_LENGTH))

    def _veinfo_get(self, vcpu: Vcpu) -> int:
        found = self.exceptions.pop(vcpu.index, None)
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

    @staticmethod
    def _visible(vcpu: Vcpu) -> TdVcpu:
        return TdVcpu(vcpu, vcpu.read_register("rcx"))

    # TDG.VP.VMCALL ----------------------------------------------------------------------------

    def _hypercall(self, vcpu: Vcpu) -> None:
        """R10 != 0: a KVM hypercall by TDVMCALL; the handler's value goes back as it is (T30)."""
        number, *args = (vcpu.read_register(name) for name in ("r10", "r11", "r12", "r13", "r14"))
        handler = self._machine.hooks.handler
        value = 0
        if handler is not None:
            a0, a1, a2, a3 = args
            call = Hypercall(
                nr=number,
                a0=a0,
                a1=a1,
                a2=a2,
                a3=a3,
                cpl=0,
                is_64bit=True,
                vcpu=self._visible(vcpu),
                is_vmcall=True,
            )
            value = handler.hypercall(call)
        vcpu.write_register("r10", value & U64_MASK)

    def _map_gpa(self, gpa: int, size: int, vcpu: TdVcpu) -> Shutdown | int:
        bit = self._machine.bit
        writes = self._machine.ram.table_write_count
        handler = self._machine.hooks.handler
        if self._handlers[0] is not handler:
            whole: object = handler
            self._handlers = (handler, whole if isinstance(whole, MapGpaHandler) else None)
        kvm = self._handlers[1]
        if kvm is not None:
            answer = kvm.tdx_map_gpa(gpa, size, bit, vcpu, self.sept)
        else:
            answer = self._map_plainly(gpa, size, vcpu)
        if isinstance(answer, RunFailed):
            return RunFailed(answer.reason, self._machine.current.read_register("rip"))
        status, next_gpa = answer
        out = self._map_gpa_out
        values = out.values
        values[0] = status
        values[1] = next_gpa & U64_MASK
        out.write()
        plain, private = gpa & ~bit.mask, bit.is_private(gpa)
        self.events.append(MapGpaCall(plain, size, private, status, next_gpa & ~bit.mask, writes))
        return tdx.SUCCESS

    def _map_plainly(self, gpa: int, size: int, vcpu: VcpuAccess) -> MapGpaAnswer:
        """MapGPA under a handler that answers whole ranges."""
        bit = self._machine.bit
        private = bit.is_private(gpa)
        gpa &= ~bit.mask
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
                value = handler.rdmsr(index, self._visible(vcpu))
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
                handler.wrmsr(index, value, self._visible(vcpu))
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
        """Ends at the machine's devices; where there are none, loads read all ones."""
        size, is_write, gpa = (vcpu.read_register(name) for name in ("r12", "r13", "r14"))
        size = min(size, 8)
        gpa &= ~self._machine.bit.mask
        vcpu.write_register("r10", tdx.VMCALL_SUCCESS)
        space = self._machine.mmio
        if is_write:
            if space is not None:
                space.write(gpa, size, vcpu.read_register("r15"))
        else:
            ones = (1 << 8 * size) - 1
            vcpu.write_register("r11", ones if space is None else space.read(gpa, size))
