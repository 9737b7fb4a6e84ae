# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import struct

import pytest
from bare_machine import (
    CODE,
    DATA,
    FRAMES,
    HLT,
    IRETQ,
    PRIVATE,
    UD2,
    VMMCALL,
    Bare,
    load,
    mov,
    store,
)

from guestemu.abi.addresses import PAGE_SIZE, Gpa, Gva
from guestemu.abi.x86 import (
    PTE_NX,
    PTE_RW,
    PTE_USER,
    VECTOR_BP,
    VECTOR_DE,
    VECTOR_DF,
    VECTOR_GP,
    VECTOR_PF,
    VECTOR_UD,
    Mode,
)
from guestemu.machine import layout
from guestemu.machine.exits import (
    BudgetExhausted,
    ExceptionExit,
    GuestFault,
    Halt,
    Hypercall,
    Shutdown,
)
from guestemu.machine.machine import MachineConfig

UNMAPPED = 0x7000_0000
NOP_AT_HANDLER = layout.HANDLERS


def handler(vector: int) -> int:
    return layout.HANDLERS + 16 * vector


def bare_with(**handlers: bytes) -> Bare:
    """A machine with handlers "pf", "gp", "ud", "df", "bp", "de" at their default places."""
    vectors = {
        "de": VECTOR_DE,
        "bp": VECTOR_BP,
        "ud": VECTOR_UD,
        "df": VECTOR_DF,
        "gp": VECTOR_GP,
        "pf": VECTOR_PF,
    }
    bare = Bare()
    for name, code in handlers.items():
        assert len(code) <= 16
        bare.place(handler(vectors[name]), code)
    return bare


def frame(bare: Bare, words: int) -> tuple[int, ...]:
    """The topmost 64-bit words of the stack."""
    data = bare.machine.current.read_memory(Gva(bare.register("rsp")), 8 * words)
    assert data is not None
    return struct.unpack(f"<{words}Q", data)


# r8 = error code; the return address += length; r9 += 1; iretq
def skip(length: int) -> bytes:
    return b"\x41\x58" + b"\x48\x83\x04\x24" + bytes([length]) + b"\x49\xff\xc1" + IRETQ


@pytest.mark.parametrize("cpl", range(4))
def test_a_guest_handles_its_own_gp_and_returns(cpl: int) -> None:
    """HLT above CPL 0 is #GP(0); at CPL 0 a load through a non-canonical address is."""
    bare = bare_with(gp=skip(3))
    faulting = HLT + b"\x90\x90" if cpl else b"\x48\x8b\x03"
    code = mov(3, 1 << 60) + mov(6, 0x5E11) + faulting + VMMCALL
    end = bare.run(code, cpl=cpl, deliver=True)
    assert isinstance(end, Hypercall)
    assert (end.cpl, end.a3) == (cpl, 0x5E11)
    assert (bare.register("r8"), bare.register("r9")) == (0, 1)
    assert bare.register("rsp") == layout.USER_STACK


@pytest.mark.parametrize("cpl", [1, 2, 3])
def test_a_change_of_level_takes_the_stack_of_the_tss(cpl: int) -> None:
    bare = bare_with(gp=HLT)
    end = bare.run(b"\x90" + HLT, cpl=cpl, deliver=True)
    assert end == Halt(handler(VECTOR_GP) + 1)
    assert bare.machine.current.cpl == 0
    assert bare.register("rsp") == layout.KERNEL_STACK - 48
    error, rip, cs, _, rsp, ss = frame(bare, 6)
    assert (error, rip, rsp) == (0, CODE + 1, layout.USER_STACK)
    assert (cs, ss) == (layout.CODE64_BY_CPL[cpl], layout.DATA_BY_CPL[cpl])


def test_without_a_change_of_level_the_stack_stays_and_is_aligned() -> None:
    bare = bare_with(ud=HLT)
    end = bare.run(mov(4, layout.USER_STACK - 4) + UD2, deliver=True)
    assert end == Halt(handler(VECTOR_UD) + 1)
    assert bare.register("rsp") == (layout.USER_STACK - 16) - 40
    rip, cs, _, rsp, _ = frame(bare, 5)
    assert (rip, cs, rsp) == (CODE + 10, layout.CODE64, layout.USER_STACK - 4)


def test_an_ist_gate_switches_the_stack_at_the_same_level() -> None:
    bare = bare_with(ud=HLT)
    ram = bare.machine.ram
    ram.write(Gpa(layout.TSS64 + 36 + 8 * 2), struct.pack("<Q", 0xA800))
    gate = Gpa(layout.IDT64 + 16 * VECTOR_UD + 4)
    ram.write(gate, b"\x03")
    assert isinstance(bare.run(UD2, deliver=True), Halt)
    assert bare.register("rsp") == 0xA800 - 40
    assert frame(bare, 4)[3] == layout.USER_STACK


@pytest.mark.parametrize("cpl", [0, 3])
def test_compatibility_mode_is_left_for_a_64_bit_handler(cpl: int) -> None:
    bare = bare_with(ud=HLT)
    assert isinstance(bare.run(UD2, Mode.COMPAT32, cpl, deliver=True), Halt)
    assert bare.machine.current.is_64bit
    rip, cs, _, rsp, _ = frame(bare, 5)
    assert (rip, cs, rsp) == (CODE, layout.CODE32_BY_CPL[cpl], layout.USER_STACK)


@pytest.mark.parametrize("cpl", range(4))
def test_protected_mode_vectors_and_returns(cpl: int) -> None:
    # At CPL 0: mov ds, ax with a selector beyond the GDT.
    faulting = HLT if cpl else b"\x8e\xd8"
    #        pop ecx (error code); add dword [esp], length; iret
    bare = bare_with(gp=b"\x59\x83\x04\x24" + bytes([len(faulting)]) + b"\xcf")
    end = bare.run(b"\xb8\xf8\xff\x00\x00" + faulting + VMMCALL, Mode.PROT32, cpl, deliver=True)
    assert isinstance(end, Hypercall)
    assert (end.cpl, end.a1) == (cpl, 0 if cpl else 0xFFF8)
    assert bare.register("rsp") == layout.USER_STACK


def test_a_protected_mode_stack_beyond_low_memory_works() -> None:
    """Without paging the CPU's own pops must find what delivery pushed."""
    bare = bare_with(ud=b"\x83\x04\x24\x02\xcf")
    code = b"\xbc" + struct.pack("<I", 0x30000) + UD2 + VMMCALL
    end = bare.run(code, Mode.PROT32, 0, deliver=True)
    assert isinstance(end, Hypercall)
    assert bare.register("rip") == CODE + 7
    assert bare.register("rsp") == 0x30000


def test_real_mode_uses_the_vector_table() -> None:
    #       pop ax; add ax, 2; push ax; iret
    bare = bare_with(ud=b"\x58\x83\xc0\x02\x50\xcf")
    end = bare.run(UD2 + b"\xbe\x34\x12" + VMMCALL, Mode.REAL16, 0, deliver=True)
    assert isinstance(end, Hypercall)
    assert end.a3 & 0xFFFF == 0x1234
    assert bare.register("rsp") & 0xFFFF == layout.USER_STACK & 0xFFFF


def test_a_real_mode_stack_wraps_at_64_kib() -> None:
    bare = bare_with(ud=HLT)
    end = bare.run(b"\xbc\x04\x00" + UD2, Mode.REAL16, 0, deliver=True)
    assert end == Halt(handler(VECTOR_UD) + 1)
    assert bare.register("rsp") & 0xFFFF == 0xFFFE


def test_repeated_page_faults_stay_page_faults() -> None:
    """The emulator would report the second as a double fault and stop without a word at a third."""
    bare = bare_with(pf=skip(3))
    code = mov(3, UNMAPPED) + b"\x48\x8b\x03" * 6 + HLT
    assert bare.run(code, deliver=True) == Halt(CODE + 10 + 18 + 1)
    assert bare.register("r9") == 6
    assert bare.register("cr2") == UNMAPPED


def test_a_page_fault_after_another_fault_was_handled() -> None:
    bare = bare_with(pf=skip(3), gp=skip(3))
    code = mov(3, UNMAPPED) + mov(6, 1 << 60)
    code += (b"\x48\x8b\x03" + b"\x48\x8b\x06") * 3 + HLT
    assert isinstance(bare.run(code, deliver=True), Halt)
    assert bare.register("r9") == 6


USER_PAGE = PRIVATE + DATA
READ, WRITE, JUMP = b"\x48\x8b\x03", b"\x48\x89\x03", b"\xff\xe3"
PF_CASES = [
    ("read of nothing", UNMAPPED, 0, READ, 0, 0),
    ("write to nothing", UNMAPPED, 0, WRITE, 0, 2),
    ("jump to nothing", UNMAPPED, 0, JUMP, 0, 0x10),
    ("user read of nothing", UNMAPPED, 0, READ, 3, 4),
    ("user write to nothing", UNMAPPED, 0, WRITE, 3, 6),
    ("user read of a supervisor page", USER_PAGE, PTE_RW, READ, 3, 5),
    ("user write to a supervisor page", USER_PAGE, PTE_RW, WRITE, 3, 7),
    ("write to a read-only page", USER_PAGE, 0, WRITE, 0, 3),
    ("user write to a read-only page", USER_PAGE, PTE_USER, WRITE, 3, 7),
    ("jump into a no-execute page", USER_PAGE, PTE_RW | PTE_NX, JUMP, 0, 0x11),
]


@pytest.mark.parametrize("cbit", [39, 47])
@pytest.mark.parametrize(
    ("flags", "address", "code", "cpl", "error"),
    [(case[2], case[1], *case[3:]) for case in PF_CASES],
    ids=[case[0] for case in PF_CASES],
)
def test_error_codes_of_page_faults(
    flags: int, address: int, code: bytes, cpl: int, error: int, cbit: int
) -> None:
    bare = Bare(MachineConfig(frames=FRAMES, cbit=cbit))
    if address == USER_PAGE:
        entry_gpa = bare.tables.walk(Gva(address)).entry_gpa
        bare.tables.map(Gva(address), Gpa(DATA), flags=flags)
        assert bare.machine.ram.read_u64(entry_gpa) & PTE_RW == flags & PTE_RW
        for level in (4, 3, 2):
            _allow_user(bare, address, level)
    end = bare.run(mov(3, address) + code, cpl=cpl)
    rip = address if code == JUMP else CODE + 10
    assert end == ExceptionExit(VECTOR_PF, error, rip, cr2=address)


def _allow_user(bare: Bare, address: int, level: int) -> None:
    table = bare.tables.root
    for current in range(4, level, -1):
        entry = bare.machine.ram.read_u64(
            Gpa(table + 8 * (address >> 12 + 9 * (current - 1) & 511))
        )
        table = bare.tables.address(entry)
    entry_gpa = Gpa(table + 8 * (address >> 12 + 9 * (level - 1) & 511))
    entry = bare.machine.ram.read_u64(entry_gpa)
    bare.machine.ram.write_u64(entry_gpa, entry | PTE_USER)


@pytest.mark.parametrize("cbit", [39, 47])
def test_a_fault_in_the_second_page_of_an_access_names_that_page(cbit: int) -> None:
    bare = Bare(MachineConfig(frames=FRAMES, cbit=cbit))
    ram = bare.machine.ram
    ram.write_u64(bare.tables.walk(Gva(USER_PAGE + PAGE_SIZE)).entry_gpa, 0)
    end = bare.run(mov(3, USER_PAGE + PAGE_SIZE - 4) + READ)
    assert end == ExceptionExit(VECTOR_PF, 0, CODE + 10, cr2=USER_PAGE + PAGE_SIZE)


@pytest.mark.parametrize(
    ("code", "vector", "error", "offset"),
    [
        (b"\x31\xc9\xf7\xf1", VECTOR_DE, None, 2),
        (b"\xcc", VECTOR_BP, None, 1),
        (b"\x90" + UD2, VECTOR_UD, None, 1),
        (mov(0, 0xFFF8) + b"\x8e\xd8", VECTOR_GP, 0xFFF8, 10),
    ],
)
def test_other_exceptions(code: bytes, vector: int, error: int | None, offset: int) -> None:
    assert Bare().run(code) == ExceptionExit(vector, error, CODE + offset)


@pytest.mark.parametrize("cbit", [39, 47])
@pytest.mark.parametrize("address", [1 << 47, 1 << 60, 2**64 - 2**47 - 8])
@pytest.mark.parametrize("code", [READ, WRITE])
def test_an_address_that_is_not_canonical_is_gp(cbit: int, address: int, code: bytes) -> None:
    bare = Bare(MachineConfig(frames=FRAMES, cbit=cbit))
    assert bare.run(mov(3, address) + code) == ExceptionExit(VECTOR_GP, 0, CODE + 10)
    high = bare.run(mov(3, 2**64 - 2**47) + code)
    assert high == ExceptionExit(VECTOR_PF, 2 * (code == WRITE), CODE + 10, cr2=2**64 - 2**47)


def no_gate(bare: Bare, vector: int) -> None:
    bare.machine.ram.write(Gpa(layout.IDT64 + 16 * vector), bytes(16))


def test_a_fault_that_cannot_be_delivered_is_a_double_fault() -> None:
    bare = bare_with(df=HLT)
    no_gate(bare, VECTOR_PF)
    assert bare.run(load(UNMAPPED), deliver=True) == Halt(handler(VECTOR_DF) + 1)
    assert frame(bare, 2) == (0, CODE + 10)


def test_a_double_fault_that_cannot_be_delivered_is_a_shutdown() -> None:
    bare = Bare()
    no_gate(bare, VECTOR_PF)
    no_gate(bare, VECTOR_DF)
    end = bare.run(load(UNMAPPED), deliver=True)
    assert isinstance(end, Shutdown)
    assert end.rip == CODE + 10
    assert "vector 14" in end.reason


def test_a_stack_that_is_not_mapped_shuts_down() -> None:
    end = Bare().run(mov(4, UNMAPPED) + UD2, deliver=True)
    assert isinstance(end, Shutdown)
    assert f"{UNMAPPED - 40:#x}" in end.reason


@pytest.mark.parametrize(
    ("mode", "code"),
    [(Mode.LONG64, mov(4, 0)), (Mode.PROT32, b"\x31\xe4"), (Mode.REAL16, b"\x31\xe4")],
)
def test_a_stack_that_wraps_below_zero_gives_a_typed_exit(mode: Mode, code: bytes) -> None:
    end = bare_with(ud=HLT).run(code + UD2, mode, 0, deliver=True)
    assert isinstance(end, Halt if mode is Mode.REAL16 else Shutdown)


def test_a_handler_that_cannot_be_fetched_uses_up_the_budget() -> None:
    """No block ever runs: every delivery must count, or the run would never end."""
    bare = Bare(vectors={VECTOR_PF: UNMAPPED})
    bare.machine.ram.write(Gpa(layout.TSS64 + 36), struct.pack("<Q", 0xA800))
    bare.machine.ram.write(Gpa(layout.IDT64 + 16 * VECTOR_PF + 4), b"\x01")
    end = bare.run(load(UNMAPPED), deliver=True, budget=200)
    assert end == BudgetExhausted(UNMAPPED)


class Refuses:
    def hypercall(self, call: Hypercall) -> int:
        raise GuestFault(VECTOR_UD, None)

    def rdmsr(self, index: int, vcpu: object) -> int:
        raise GuestFault

    def wrmsr(self, index: int, value: int, vcpu: object) -> None:
        raise GuestFault


def test_a_fault_that_the_host_injects_reaches_the_guests_handler() -> None:
    bare = bare_with(ud=b"\x48\x83\x04\x24\x03\x49\xff\xc1" + IRETQ)
    bare.machine.hooks.handler = Refuses()
    assert bare.run(VMMCALL * 3 + HLT, deliver=True) == Halt(CODE + 10)
    assert bare.register("r9") == 3


def test_inject_completes_an_exit_with_an_exception() -> None:
    bare = bare_with(gp=skip(3))
    assert isinstance(bare.run(VMMCALL + HLT, deliver=True), Hypercall)
    vcpu = bare.machine.current
    assert vcpu.inject(VECTOR_GP, 0x18) is None
    assert vcpu.run(bare.register("rip"), 100) == Halt(CODE + 4)
    assert bare.register("r8") == 0x18


def test_a_shutdown_leaves_nothing_behind() -> None:
    bare = Bare()
    no_gate(bare, VECTOR_PF)
    no_gate(bare, VECTOR_DF)
    bare.machine.checkpoint()
    ends = []
    for _ in range(2):
        ends.append(bare.run(mov(4, DATA) + store(UNMAPPED, 1), deliver=True))
        bare.machine.rollback()
    assert ends[0] == ends[1]
    assert isinstance(ends[0], Shutdown)
    bare.place(handler(VECTOR_UD), HLT)
    assert isinstance(bare.run(UD2, deliver=True), Halt)
