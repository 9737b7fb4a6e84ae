# SPDX-License-Identifier: GPL-2.0-or-later
"""A vCPU: runs guest code until its next exit.

`run` returns typed exits (exits.py). With a handler, hypercalls and MSR accesses are answered
without returning; exceptions go through the guest's own vector table when `deliver` is set, so a
guest can handle its own #GP, and come back as `ExceptionExit` when it is not.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import msgspec

from guestemu.abi.addresses import PAGE_MASK, PAGE_SIZE, U32_MASK, Gpa, Gva
from guestemu.abi.errors import EngineError
from guestemu.abi.msrs import EFER_LMA, MSR_EFER
from guestemu.abi.x86 import (
    CR0_PE,
    CR0_PG,
    CR0_WP,
    PTE_ADDRESS_MASK,
    PTE_RW,
    VECTOR_DF,
    VECTOR_GP,
    VECTOR_PF,
    VECTORS_WITH_ERROR_CODE,
    Mode,
)
from guestemu.machine import layout
from guestemu.machine.engine import ERR_EXCEPTION, OK, REGISTERS, Context
from guestemu.machine.exceptions import exception_layout
from guestemu.machine.exits import (
    BudgetExhausted,
    ExceptionExit,
    Exit,
    GuestFault,
    Halt,
    Rdmsr,
    Shutdown,
    ViewFault,
    Wrmsr,
)
from guestemu.machine.hooks import HYPERCALL_LENGTH, PendingException, PendingMsr
from guestemu.machine.interrupts import DeliveryError, deliver
from guestemu.machine.interventions import Intervention
from guestemu.machine.launch import Entry
from guestemu.machine.msr import CPU_MSRS
from guestemu.machine.paging import translate, walk
from guestemu.machine.segments import KernelSegments

if TYPE_CHECKING:
    from guestemu.machine.machine import Machine

_MSR_LENGTH: Final = 2
_GENERAL: Final = (
    "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags fs_base gs_base mxcsr"
).split()
_SELECTORS: Final = {
    selector: (cpl, is_64bit)
    for is_64bit, selectors in ((True, layout.CODE64_BY_CPL), (False, layout.CODE32_BY_CPL))
    for cpl, selector in enumerate(selectors)
} | {0: (0, False)}

PAGE_FAULT_WRITE: Final = 3
"""Error code of a supervisor write to a present, read-only page."""


class Vcpu:
    """One vCPU context over the machine's RAM.

    Only the vCPU that `Machine.activate` made current may be used. `kernel_segments` are those that
    CPL 0 has after an exception in user mode; None for the machine's own flat ones.
    """

    def __init__(self, machine: Machine, index: int) -> None:
        self.machine = machine
        self.index = index
        self.deliver = True
        self._engine = machine.engine
        self._hooks = machine.hooks
        self._context: Context | None = None
        self._probe: Context | None = None
        self.kernel_segments: KernelSegments | None = None
        self._selectors = dict(_SELECTORS)

    # Running ----------------------------------------------------------------------------------

    def run(self, rip: int, budget: int, entry: Entry | None = None) -> Exit:
        """Runs from `rip` for at most `budget` basic blocks and returns the exit that ended it.

        `entry` sets context and registers first; without it the vCPU goes on as it is.
        """
        hooks = self._hooks
        launcher = self.machine.launcher
        resume = launcher.resume.start
        start = resume if entry is None else entry.start
        ram_errors = self.machine.ram.errors
        watch = hooks.watch
        watch.left = budget
        hooks.vcpu = self
        while True:
            hooks.clear()
            code = start(rip)
            start = resume
            pending = hooks.pending
            if hooks.errors or code != OK or ram_errors:
                self.machine.raise_errors()
            if pending is None:
                if code == OK and watch.left >= 0:
                    return Halt(launcher.ended[0])
                ended = self._ended(code)
            elif isinstance(pending, PendingException):
                ended = self._exception(pending.vector)
            elif isinstance(pending, PendingMsr):
                ended = self._msr(pending)
            elif isinstance(pending, GuestFault | Intervention):
                ended = self._imposed(pending)
            else:
                ended = pending
            if ended is not None:
                return ended
            rip = self.read_register("rip")
            # A handler whose first fetch faults runs no block, so each delivery counts as one.
            watch.left -= 1
            if watch.left < 0:
                return BudgetExhausted(rip)

    def step(self) -> Exit | None:
        """Executes one instruction, or delivers the exception that it raises; None to go on.

        Only for a machine that never calls `run` (`Engine.step`). A HLT is not reported.
        """
        hooks = self._hooks
        hooks.watch.left = 1
        hooks.vcpu = self
        hooks.clear()
        rip = self.read_register("rip")
        code = self._engine.step(rip)
        pending = hooks.pending
        if hooks.errors or code != OK or self.machine.ram.errors:
            self.machine.raise_errors()
        if isinstance(pending, PendingException):
            return self._exception(pending.vector)
        if isinstance(pending, PendingMsr):
            return self._msr(pending)
        if isinstance(pending, GuestFault | Intervention):
            return self._imposed(pending)
        if pending is None and code != OK:
            raise EngineError(f"the emulator stepped at {rip:#x} and ended with error {code}")
        return pending

    def interrupt(self, error: BaseException) -> None:
        """Ends the run that goes on: `run` or `step` raises `error` after the present block. Called
        inside of a hook."""
        self._hooks.errors.append(error)
        self._hooks.watch.left = -1

    def _imposed(self, pending: GuestFault | Intervention) -> Exit | None:
        if isinstance(pending, Intervention):
            return pending.carry_out(self)
        return self._raise(pending.vector, pending.error_code)

    def _ended(self, code: int) -> Exit | None:
        rip: int = self.machine.launcher.ended[0]
        if self._hooks.watch.left < 0:
            return BudgetExhausted(rip)
        tlb = self.machine.tlb
        refusal = tlb.take_refusal() if code == ERR_EXCEPTION and tlb is not None else None
        if isinstance(refusal, ViewFault):
            return self._closed(refusal)
        if refusal is not None:
            vector, error_code, address = refusal
            if vector == VECTOR_PF:
                self._engine.write(REGISTERS["cr2"], address)
            return self._raise(vector, error_code)
        raise EngineError(f"the emulator ended at {rip:#x} with error {code}")

    def _closed(self, found: ViewFault) -> Exit | None:
        """A view that is closed to an access: None to make it again."""
        fault = msgspec.structs.replace(found, rip=self.read_register("rip"))
        gates = self.machine.gates
        if gates is None or gates.on_fault is None:
            return fault
        try:
            return gates.on_fault(fault)
        except GuestFault as injected:
            return self._raise(injected.vector, injected.error_code)

    def _exception(self, vector: int) -> Exit | None:
        """Takes the error code out of the CPU and clears its mark of an exception in delivery."""
        if self._probe is None:
            self._probe = Context(self._engine)
        probe = self._probe
        probe.save()
        where = exception_layout()
        (error_code,) = struct.unpack_from("<i", probe.bytes, where.error_code)
        struct.pack_into("<i", probe.bytes, where.old_exception, -1)
        probe.restore()
        has_code = vector in VECTORS_WITH_ERROR_CODE
        return self._raise(vector, error_code & 0xFFFF if has_code else None)

    def _raise(self, vector: int, error_code: int | None) -> Exit | None:
        if not self.deliver:
            return ExceptionExit(
                vector,
                error_code,
                self.read_register("rip"),
                self._engine.read(REGISTERS["cr2"]) if vector == VECTOR_PF else 0,
            )
        rip = self.read_register("rip")
        try:
            deliver(self, vector, error_code)
        except DeliveryError as first:
            try:
                deliver(self, VECTOR_DF, 0)
            except DeliveryError:
                return Shutdown(f"vector {vector}: {first}", rip)
        return None

    def _msr(self, access: PendingMsr) -> Exit | None:
        if self.cpl:
            return self._raise(VECTOR_GP, 0)
        index = self.read_register("rcx") & U32_MASK
        handler = self._hooks.handler
        msr_fault = self._hooks.msr_fault
        if msr_fault is not None and index not in CPU_MSRS:
            reflected = msr_fault(access.is_write)
            if reflected is not None:
                return self._raise(reflected.vector, reflected.error_code)
        msrs = self.machine.msrs
        value = 0
        if access.is_write:
            value = (self.read_register("rdx") & U32_MASK) << 32 | (
                self.read_register("rax") & U32_MASK
            )
        try:
            if index in CPU_MSRS:
                if access.is_write:
                    self._engine.write_msr(index, value)
                else:
                    value = self._engine.read_msr(index)
            elif msrs.holds(index):
                if access.is_write:
                    msrs.write(index, value)
                else:
                    value = msrs.read(index)
            elif handler is None:
                return Wrmsr(index, value) if access.is_write else Rdmsr(index)
            elif access.is_write:
                handler.wrmsr(index, value, self)
            else:
                value = handler.rdmsr(index, self)
        except GuestFault as fault:
            return self._raise(fault.vector, fault.error_code)
        if access.is_write:
            self.complete_wrmsr()
        else:
            self.complete_rdmsr(value)
        return None

    # Completing an exit that `run` returned ---------------------------------------------------

    def complete_hypercall(self, value: int) -> None:
        """RAX gets `value` and RIP moves past the VMMCALL or VMCALL."""
        self.write_register("rax", value)
        self.write_register("rip", self.read_register("rip") + HYPERCALL_LENGTH)

    def complete_rdmsr(self, value: int) -> None:
        """EDX:EAX get `value` and RIP moves past the RDMSR."""
        self.write_register("rax", value & U32_MASK)
        self.write_register("rdx", value >> 32 & U32_MASK)
        self.write_register("rip", self.read_register("rip") + _MSR_LENGTH)

    def complete_wrmsr(self) -> None:
        """RIP moves past the WRMSR."""
        self.write_register("rip", self.read_register("rip") + _MSR_LENGTH)

    def inject(self, vector: int, error_code: int | None) -> Exit | None:
        """Raises an exception in the guest instead of completing; an `Exit` if it cannot be
        delivered (or `deliver` is off)."""
        return self._raise(vector, error_code)

    # State ------------------------------------------------------------------------------------

    def enter(self, mode: Mode, cpl: int) -> None:
        """Puts the vCPU into `mode` at `cpl` with flat segments; registers are left undefined."""
        self.machine.modes.context(mode, cpl).restore()
        self._engine.flush_tlb()

    def switch_context(self, mode: Mode, cpl: int) -> None:
        """Changes mode and level and keeps general, SSE and base registers: what an exception's
        change of level does."""
        if self.kernel_segments is not None and (mode, cpl) == (Mode.LONG64, 0):
            self.kernel_segments.enter()
            return
        saved = [(name, self._engine.read(REGISTERS[name])) for name in _GENERAL]
        cr2 = self._engine.read(REGISTERS["cr2"])
        xmm = self._engine.read_xmm()
        self.enter(mode, cpl)
        for name, value in saved:
            self._engine.write(REGISTERS[name], value)
        self._engine.write(REGISTERS["cr2"], cr2)
        self._engine.write_xmm(xmm)

    def save(self) -> Context:
        """Saves the CPU into this vCPU's context and returns it."""
        if self._context is None:
            self._context = Context(self._engine)
        else:
            self._context.save()
        return self._context

    @property
    def saved(self) -> bytes:
        """The context that `save` took last, as the library keeps it; empty before that."""
        return b"" if self._context is None else bytes(self._context.bytes)

    @saved.setter
    def saved(self, data: bytes) -> None:
        if not data:
            self._context = None
            return
        self.save().bytes[:] = data

    def load(self) -> None:
        """Makes this vCPU's saved context the CPU's state."""
        if self._context is not None:
            self._context.restore()
            self._engine.flush_tlb()
        self._hooks.vcpu = self

    def read_register(self, name: str) -> int:
        """The 64-bit register `name`."""
        return self._engine.read(REGISTERS[name])

    def write_register(self, name: str, value: int) -> None:
        """Sets the 64-bit register `name`; "rip" moves the instruction that completes."""
        self._engine.write(REGISTERS[name], value)
        if name == "rip":
            self._hooks.rip_moved = True

    def table(self, name: str) -> tuple[int, int]:
        """Base and limit of "gdtr", "idtr" or "tr"."""
        return self._engine.read_table(name)

    @property
    def is_real_mode(self) -> bool:
        """CR0.PE is clear."""
        return not self.read_register("cr0") & CR0_PE

    @property
    def is_long_mode(self) -> bool:
        """EFER.LMA is set."""
        return bool(self._engine.read_msr(MSR_EFER) & EFER_LMA)

    @property
    def cpl(self) -> int:
        """Current privilege level."""
        return self.privilege(self.read_register("cs"))[0]

    @property
    def is_64bit(self) -> bool:
        """Executes 64-bit code."""
        return self.privilege(self.read_register("cs"))[1]

    def privilege(self, selector: int) -> tuple[int, bool]:
        """CPL and CS.L for a code selector, from the guest's GDT.

        A CPU may execute by a descriptor whose GDT is not mapped any more, as one that has just
        left a kernel's trampoline. It is 64-bit code then if the CPU is in long mode.
        """
        known = self._selectors.get(selector)
        if known is None:
            base, _ = self.table("gdtr")
            data = self.read_memory(Gva(base + (selector & ~7)), 8)
            if data is None:
                return selector & 3, self.is_long_mode
            is_64bit = bool(data[6] & 0x20)
            known = self._selectors[selector] = (selector & 3, is_64bit)
        return known

    def set_code_is_64bit(self, is_64bit: bool) -> None:
        """Host's KVM_SET_SREGS that changes CS.L: only how an exit completes depends on it here."""
        selector = self.read_register("cs")
        self._selectors[selector] = (self.privilege(selector)[0], is_64bit)

    def reset_selectors(self) -> None:
        """Undoes `set_code_is_64bit`."""
        self._selectors = dict(_SELECTORS)

    # Memory through the vCPU's own mapping ----------------------------------------------------

    def translate(self, gva: int) -> tuple[Gpa, bool] | None:
        """GPA of `gva` by the tables that CR3 names, and whether the access is private; None where
        nothing is mapped."""
        if not self.read_register("cr0") & CR0_PG:
            return Gpa(gva), self.machine.ram.bit.is_private(gva)
        machine = self.machine
        root = Gpa(self.read_register("cr3") & PTE_ADDRESS_MASK & ~machine.pte_cbit)
        return translate(machine.ram, machine.bit, root, Gva(gva))

    def _pieces(self, gva: int, size: int) -> list[tuple[Gpa, bool, int]] | None:
        pieces = []
        while size:
            length = min(size, PAGE_SIZE - (gva & PAGE_MASK))
            found = self.translate(gva)
            if found is None or found[0] + length > self.machine.ram.frames * PAGE_SIZE:
                return None
            pieces.append((found[0], found[1], length))
            gva += length
            size -= length
        return pieces

    def read_memory(self, gva: Gva, size: int) -> bytes | None:
        """`size` bytes at `gva` as the guest would read them; None where nothing is mapped."""
        pieces = self._pieces(gva, size)
        if pieces is None:
            return None
        ram = self.machine.ram
        return b"".join(ram.read(gpa, length, private) for gpa, private, length in pieces)

    def write_memory(self, gva: Gva, data: bytes) -> bool:
        """Stores `data` at `gva` through the guest's mapping; False where nothing is mapped."""
        pieces = self._pieces(gva, len(data))
        if pieces is None:
            return False
        offset = 0
        for gpa, private, length in pieces:
            self.machine.ram.write(gpa, data[offset : offset + length], private)
            offset += length
        return True

    def read_code(self, size: int) -> bytes:
        """Up to `size` bytes of code at RIP."""
        rip = self.read_register("rip")
        while size and (data := self.read_memory(Gva(rip), size)) is None:
            size -= 1
        return data if size and data is not None else b""

    def patch_code(self, code: bytes) -> None:
        """Writes `code` at RIP with the rights of the guest's mapping (supervisor).

        Raises `GuestFault` (#PF, error code 3, CR2 set) where the page is read-only and CR0.WP set.
        """
        rip = self.read_register("rip")
        cr0 = self.read_register("cr0")
        if cr0 & CR0_PG and cr0 & CR0_WP:
            machine = self.machine
            root = Gpa(self.read_register("cr3") & PTE_ADDRESS_MASK & ~machine.pte_cbit)
            leaf = walk(machine.ram, machine.pte_cbit, root, Gva(rip))
            if not leaf.entry & PTE_RW:
                self._engine.write(REGISTERS["cr2"], rip)
                raise GuestFault(VECTOR_PF, PAGE_FAULT_WRITE)
        old = self.read_code(len(code))
        self.write_memory(Gva(rip), code)
        self._hooks.note_patch(rip, old, code)
