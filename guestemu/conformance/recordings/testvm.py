# SPDX-License-Identifier: GPL-2.0-or-later
"""The recorder's VM on guestemu's machine: 2 MiB of RAM, one vCPU, one instruction under test.

Memory is laid out as the recorder had it: the instruction at 0x8000, behind it `out 0x80, al`
(done) and HLT; a handler for every vector that says `out 0xc0 + vector, al` and halts; identity
page tables with USER everywhere. Two differences nothing can see: RDMSR and WRMSR lie 32 and 64
bytes further on (the machine hooks them by address), and the GDT has more descriptors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, PMD_SIZE, U32_MASK, Gpa, Gva
from guestemu.abi.x86 import PTE_RW, PTE_USER, RFLAGS_FIXED, RFLAGS_IOPL3, Mode
from guestemu.conformance.recordings.model import MEMORY
from guestemu.conformance.recordings.recording import Inputs, StepOp
from guestemu.machine import layout
from guestemu.machine.engine import RegisterBatch
from guestemu.machine.exits import Exit, ExitHandler
from guestemu.machine.machine import Machine, MachineConfig
from guestemu.machine.modes import build_tables
from guestemu.machine.paging import PageTables, walk
from guestemu.machine.vcpu import Vcpu
from guestemu.machine.view_bit import NO_VIEW_BIT

PORT_DONE: Final = 0x80
PORT_EXCEPTION: Final = 0xC0
TABLES: Final = 0x20000

OPCODES: Final[Mapping[StepOp, bytes]] = {
    StepOp.VMMCALL: b"\x0f\x01\xd9",
    StepOp.VMCALL: b"\x0f\x01\xc1",
    StepOp.RDMSR: b"\x0f\x32",
    StepOp.WRMSR: b"\x0f\x30",
}
CODE: Final[Mapping[StepOp, int]] = {
    StepOp.VMMCALL: layout.STUB,
    StepOp.VMCALL: layout.STUB,
    StepOp.RDMSR: layout.STUB + 0x20,
    StepOp.WRMSR: layout.STUB + 0x40,
}
"""Where the instruction of each op lies."""

_OUT_LENGTH: Final = 2
_BUDGET: Final = 256
_MAPPED: Final = 1 << 30

_NAMES: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "rflags")
_RDI: Final = 0x1111111111111111
_RBP: Final = 0x2222222222222222
_RBX_OF_MSR: Final = 0x3333333333333333
_R8: Final = 0x8888
_RAX_OF_RDMSR: Final = 0x5A5A5A5A5A5A5A5A
_RDX_OF_RDMSR: Final = 0x7B7B7B7B7B7B7B7B


class StepRegisters(msgspec.Struct, frozen=True):
    """The general registers that the recorder sets before a step and looks at after it."""

    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rbp: int
    rsp: int
    r8: int
    rflags: int


def initial_registers(op: StepOp, inputs: Inputs, cpl: int) -> StepRegisters:
    """What the recorder gives KVM_SET_REGS before a step."""
    values: tuple[int, int, int, int]
    if op.is_hypercall:
        values = inputs.rax, inputs.rbx, inputs.rcx, inputs.rdx
    elif op is StepOp.WRMSR:
        values = inputs.val & U32_MASK, _RBX_OF_MSR, inputs.msr, inputs.val >> 32
    else:
        values = _RAX_OF_RDMSR, _RBX_OF_MSR, inputs.msr, _RDX_OF_RDMSR
    stack = layout.USER_STACK if cpl else layout.KERNEL_STACK
    flags = RFLAGS_FIXED | (RFLAGS_IOPL3 if cpl else 0)
    return StepRegisters(*values, inputs.rsi, _RDI, _RBP, stack, _R8, flags)


class TestVm:
    """One machine for all cases: `run` executes a step's instruction in its mode."""

    __test__ = False

    def __init__(self) -> None:
        self.machine = Machine(MachineConfig(frames=MEMORY // PAGE_SIZE, cbit=None, sev_status=0))
        machine = self.machine
        ram = machine.ram
        build_tables(ram, {})
        for vector in range(layout.VECTORS):
            address = layout.HANDLERS + 16 * vector
            ram.write(Gpa(address), _out_and_halt(PORT_EXCEPTION + vector))
            machine.hooks.add_out_site(address + _OUT_LENGTH)
        for op in (StepOp.RDMSR, StepOp.WRMSR):
            machine.hooks.add_msr_site(CODE[op], is_write=op is StepOp.WRMSR)
        for end in {CODE[op] + len(OPCODES[op]) for op in CODE}:
            machine.hooks.add_out_site(end + _OUT_LENGTH)
        root = self._build_page_tables()
        self._code_entry = walk(ram, 0, root, Gva(layout.STUB)).entry_gpa
        machine.boot(root)
        self._registers = RegisterBatch(machine.engine, _NAMES)

    def _build_page_tables(self) -> Gpa:
        pool = iter(self.machine.pool(TABLES // PAGE_SIZE, 4))
        tables = PageTables(self.machine.ram, NO_VIEW_BIT, next(pool), pool)
        flags = PTE_RW | PTE_USER
        for address in range(0, PMD_SIZE, PAGE_SIZE):
            tables.map(Gva(address), Gpa(address), flags=flags)
        for address in range(PMD_SIZE, _MAPPED, PMD_SIZE):
            tables.map(Gva(address), Gpa(address), PMD_SIZE, flags=flags)
        return tables.root

    @property
    def vcpu(self) -> Vcpu:
        """The VM's only vCPU."""
        return self.machine.current

    def _set_code(self, op: StepOp, read_only: bool) -> None:
        """Puts the instruction in place and maps its page as the case wants it."""
        ram = self.machine.ram
        code = OPCODES[op] + _out_and_halt(PORT_DONE)
        if ram.read(Gpa(CODE[op]), len(code)) != code:
            ram.write(Gpa(CODE[op]), code)
            self.machine.hooks.forget_code()
        entry = ram.read_u64(self._code_entry)
        wanted = entry & ~PTE_RW if read_only else entry | PTE_RW
        if wanted != entry:
            ram.write_u64(self._code_entry, wanted)

    def run(
        self,
        op: StepOp,
        inputs: Inputs,
        mode: Mode,
        cpl: int,
        handler: ExitHandler,
        *,
        read_only: bool = False,
    ) -> Exit:
        """Runs one instruction until the guest's OUT or HLT; `handler` answers its exits.

        `read_only` maps the code page without RW (CR0.WP is set). Ends by itself: a guest that
        never gets to an OUT comes back as `BudgetExhausted`.
        """
        machine = self.machine
        vcpu = machine.current
        self._set_code(op, read_only)
        machine.hooks.handler = handler
        vcpu.reset_selectors()
        vcpu.enter(mode, cpl)
        vcpu.deliver = True
        registers = initial_registers(op, inputs, cpl)
        values = self._registers.values
        for index, value in enumerate(msgspec.structs.astuple(registers)):
            values[index] = value
        self._registers.write()
        return vcpu.run(CODE[op], _BUDGET)

    def registers(self) -> StepRegisters:
        """The registers as they are now."""
        return StepRegisters(*self._registers.read())

    def code(self, op: StepOp) -> bytes:
        """The bytes where the instruction of `op` was put."""
        return self.machine.ram.read(Gpa(CODE[op]), len(OPCODES[op]))

    def close(self) -> None:
        """Frees the machine."""
        self.machine.close()


def _out_and_halt(port: int) -> bytes:
    """Out port, al; hlt; jmp to the hlt."""
    return bytes((0xE6, port, 0xF4, 0xEB, 0xFD))
