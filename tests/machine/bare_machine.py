# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine with page tables and no guest: hand-made code runs on it, one exit at a time.

Every frame is mapped twice, private at PRIVATE + GPA and shared at SHARED + GPA, so that code can
reach both views of a page without touching a page table. Code lies in low memory, which all modes
and levels can execute.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from guestemu.abi.addresses import PAGE_SIZE, PMD_SIZE, Gpa, Gva
from guestemu.abi.x86 import PTE_RW, PTE_USER, Mode
from guestemu.machine import layout
from guestemu.machine.exits import Exit, GuestFault, Hypercall, MapGpaRange, VcpuAccess
from guestemu.machine.machine import Machine, MachineConfig
from guestemu.machine.modes import build_tables
from guestemu.machine.paging import PageTables

PRIVATE = 0x4000_0000
SHARED = 0x8000_0000
FRAMES = 0x1000
TABLES = 0x100_000
TABLE_PAGES = 64
DATA = 0x200_000
CODE = layout.STUB
USER_CODE = layout.STUB
BUDGET = 10_000
MODES = [(mode, cpl) for mode in Mode for cpl in range(1 if mode is Mode.REAL16 else 4)]

HLT = b"\xf4"
VMMCALL = b"\x0f\x01\xd9"
VMCALL = b"\x0f\x01\xc1"
UD2 = b"\x0f\x0b"
CPUID = b"\x0f\xa2"
IRETQ = b"\x48\xcf"
JUMP_SELF = b"\xeb\xfe"
INVLPG_RBX = b"\x0f\x01\x3b"


def mov(register: int, value: int) -> bytes:
    """mov r64, imm64; registers by their encoding: 0 rax, 1 rcx, 2 rdx, 3 rbx, 4 rsp, 6 rsi."""
    return bytes([0x48, 0xB8 + register]) + struct.pack("<Q", value & 2**64 - 1)


_STORE = {1: b"\x88\x03", 2: b"\x66\x89\x03", 4: b"\x89\x03", 8: b"\x48\x89\x03"}
_LOAD = {1: b"\x0f\xb6\x03", 2: b"\x0f\xb7\x03", 4: b"\x8b\x03", 8: b"\x48\x8b\x03"}


def store(address: int, value: int, size: int = 8) -> bytes:
    """rbx = address, rax = value, store `size` bytes."""
    return mov(3, address) + mov(0, value) + _STORE[size]


def load(address: int, size: int = 8) -> bytes:
    """rbx = address, rax = the `size` bytes there, zero-extended."""
    return mov(3, address) + _LOAD[size]


class Answers:
    """A host that notes every exit and answers it with `value`."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.calls: list[Hypercall] = []
        self.written: list[tuple[int, int]] = []
        self.error: BaseException | None = None

    def hypercall(self, call: Hypercall) -> int:
        self.calls.append(call)
        if self.error is not None:
            raise self.error
        return self.value

    def map_gpa_range(self, call: MapGpaRange) -> int:
        return self.value

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        if self.error is not None:
            raise self.error
        return self.value

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        if self.error is not None:
            raise self.error
        if index == 0xDEAD:
            raise GuestFault
        self.written.append((index, value))


class Bare:
    """`config` as for `Machine`; `vectors` as for `build_tables`."""

    def __init__(
        self, config: MachineConfig | None = None, vectors: dict[int, int] | None = None
    ) -> None:
        self.machine = Machine(config or MachineConfig(frames=FRAMES))
        machine = self.machine
        pool = self._pages()
        self.tables = PageTables(machine.ram, machine.bit, next(pool), pool)
        for gpa in range(0, 0x40000, PAGE_SIZE):
            user = PTE_USER if gpa < layout.LOW_PAGES * PAGE_SIZE else 0
            self.tables.map(Gva(gpa), Gpa(gpa), flags=PTE_RW | user)
        for gpa in range(0, DATA, PMD_SIZE):
            self.tables.map(Gva(PRIVATE + gpa), Gpa(gpa), PMD_SIZE)
            self.tables.map(Gva(SHARED + gpa), Gpa(gpa), PMD_SIZE, private=False)
        for gpa in range(DATA, DATA + PMD_SIZE, PAGE_SIZE):
            self.tables.map(Gva(PRIVATE + gpa), Gpa(gpa))
            self.tables.map(Gva(SHARED + gpa), Gpa(gpa), private=False)
        for gpa in range(DATA + PMD_SIZE, machine.config.frames * PAGE_SIZE, PMD_SIZE):
            self.tables.map(Gva(PRIVATE + gpa), Gpa(gpa), PMD_SIZE)
            self.tables.map(Gva(SHARED + gpa), Gpa(gpa), PMD_SIZE, private=False)
        build_tables(machine.ram, vectors or {})
        machine.boot(self.tables.cr3)
        self.enter(Mode.LONG64, 0)
        machine.checkpoint()

    def _pages(self) -> Iterator[Gpa]:
        return iter(self.machine.pool(TABLES >> 12, TABLE_PAGES))

    @property
    def vcpu(self) -> object:
        return self.machine.current

    def enter(self, mode: Mode, cpl: int) -> None:
        self.machine.current.enter(mode, cpl)
        self.machine.current.write_register("rsp", layout.USER_STACK)

    def place(self, address: int, code: bytes) -> int:
        """Writes guest code; it may replace code that ran before."""
        self.machine.ram.write(Gpa(address), code)
        self.machine.hooks.forget_code()
        return address

    def run(
        self,
        code: bytes,
        mode: Mode = Mode.LONG64,
        cpl: int = 0,
        deliver: bool = False,
        budget: int = BUDGET,
        at: int = CODE,
        enter: bool = True,
    ) -> Exit:
        """Runs `code` from a fresh context of `mode`; exceptions come back as exits by default."""
        self.place(at, code)
        if enter:
            self.enter(mode, cpl)
        self.machine.current.deliver = deliver
        return self.machine.current.run(at, budget)

    def register(self, name: str) -> int:
        return self.machine.current.read_register(name)
