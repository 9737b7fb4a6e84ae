# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from bare_machine import CODE, CPUID, FRAMES, HLT, Answers, Bare, mov

from guestemu.abi.msrs import MSR_AMD64_SEV, MSR_EFER
from guestemu.abi.x86 import VECTOR_GP, Mode
from guestemu.machine.exits import ExceptionExit, Halt
from guestemu.machine.machine import MachineConfig

RDMSR, WRMSR = b"\x0f\x32", b"\x0f\x30"


def cpuid(bare: Bare, leaf: int, mode: Mode = Mode.LONG64, cpl: int = 0) -> tuple[int, ...]:
    bare.place(CODE, CPUID + b"\x0f\x0b")
    bare.enter(mode, cpl)
    vcpu = bare.machine.current
    vcpu.write_register("rax", 0xFFFF_FFFF_0000_0000 | leaf)
    vcpu.write_register("rcx", 0)
    vcpu.deliver = False
    assert isinstance(vcpu.run(CODE, 100), ExceptionExit)
    return tuple(bare.register(name) for name in ("rax", "rbx", "rcx", "rdx"))


@pytest.mark.parametrize("cbit", [33, 36, 39, 47, 51])
def test_cpuid_names_the_cbit_and_one_bit_of_reduction(cbit: int) -> None:
    bare = Bare(MachineConfig(frames=FRAMES, cbit=cbit))
    eax, ebx, _, _ = cpuid(bare, 0x8000_001F)
    assert eax == 1 << 1 | 1 << 10
    assert (ebx & 0x3F, ebx >> 6 & 0x3F) == (cbit, 1)
    assert cpuid(bare, 0x8000_0000)[0] >= 0x8000_001F
    assert cpuid(bare, 0x8000_0008)[0] & 0xFF > cbit


def test_cpuid_without_coherence_has_bit_10_clear() -> None:
    bare = Bare(MachineConfig(frames=FRAMES, coherent=False))
    assert cpuid(bare, 0x8000_001F)[0] == 1 << 1


def test_sev_es_and_snp_show_in_cpuid() -> None:
    bare = Bare(MachineConfig(frames=FRAMES, sev_status=7))
    assert cpuid(bare, 0x8000_001F)[0] & 0x1A == 0x1A


@pytest.mark.parametrize(("mode", "cpl"), [(Mode.LONG64, 3), (Mode.PROT32, 0), (Mode.REAL16, 0)])
def test_the_hypervisor_is_kvm_in_every_mode(mode: Mode, cpl: int) -> None:
    eax, *vendor = cpuid(Bare(), 0x4000_0000, mode, cpl)
    assert eax == 0x4000_0001
    assert b"".join(word.to_bytes(4, "little") for word in vendor) == b"KVMKVMKVM\0\0\0"
    assert cpuid(Bare(), 0x4000_0001)[0] & (1 << 16 | 1 << 17) == 1 << 16 | 1 << 17


def test_a_guest_of_kvm_sees_the_hypervisor_bit() -> None:
    """CPUID 1 ECX bit 31: the kernel looks for 0x40000000 only behind it."""
    assert cpuid(Bare(), 1)[2] >> 31 == 1


def test_leaf_1_is_the_emulated_cpus_own_apart_from_that_bit() -> None:
    plain = cpuid(Bare(MachineConfig(frames=FRAMES, cbit=None, sev_status=0)), 1)
    ours = cpuid(Bare(), 1)
    assert (ours[0], ours[1], ours[2] & ~(1 << 31), ours[3]) == (
        plain[0],
        plain[1],
        plain[2] & ~(1 << 31),
        plain[3],
    )
    assert ours[3] & (1 << 4 | 1 << 5 | 1 << 6), "TSC, MSR and PAE"


def msr(bare: Bare, index: int, value: int | None = None) -> object:
    """RDMSR's EDX:EAX, or the exit of an access that did not complete."""
    code, site = (RDMSR, CODE + 0x200) if value is None else (WRMSR, CODE + 0x210)
    bare.machine.hooks.add_msr_site(site, value is not None)
    bare.place(site, code + HLT)
    bare.enter(Mode.LONG64, 0)
    vcpu = bare.machine.current
    vcpu.deliver = False
    vcpu.write_register("rcx", 0xABCD_0000_0000_0000 | index)
    if value is not None:
        vcpu.write_register("rax", value & 0xFFFFFFFF)
        vcpu.write_register("rdx", value >> 32)
    end = vcpu.run(site, 100)
    if not isinstance(end, Halt):
        return end
    assert end.rip == site + 3
    return bare.register("rdx") << 32 | bare.register("rax")


@pytest.mark.parametrize("status", [1, 3, 7])
def test_sev_status_reads_what_the_machine_was_made_with(status: int) -> None:
    bare = Bare(MachineConfig(frames=FRAMES, sev_status=status))
    bare.machine.hooks.handler = Answers()
    assert msr(bare, MSR_AMD64_SEV) == status
    assert msr(bare, MSR_AMD64_SEV, 0) == ExceptionExit(VECTOR_GP, 0, CODE + 0x210)
    assert msr(bare, MSR_AMD64_SEV) == status


@pytest.mark.parametrize("index", [0xC0000082, 0xC0000100, 0xC0000102, 0x176])
def test_msrs_of_the_cpu_do_not_reach_the_host(index: int) -> None:
    bare = Bare()
    answers = Answers(99)
    bare.machine.hooks.handler = answers
    value = 0xFFFF_8000_1234_5678 if index != 0x176 else 0x1234_5678
    msr(bare, index, value)
    vcpu = bare.machine.current
    assert bare.machine.engine.read_msr(index) == value
    assert answers.written == []
    vcpu.deliver = False
    site = CODE + 0x200
    bare.machine.hooks.add_msr_site(site, is_write=False)
    bare.place(site, RDMSR + HLT)
    vcpu.write_register("rcx", index)
    assert isinstance(vcpu.run(site, 100), Halt)
    assert bare.register("rdx") << 32 | bare.register("rax") == value


def test_efer_shows_long_mode() -> None:
    assert msr(Bare(), MSR_EFER) == 0xD01


def test_an_msr_of_the_host_is_zero_extended_into_both_halves() -> None:
    bare = Bare()
    answers = Answers(0xFFFF_FFFF_0000_0001)
    bare.machine.hooks.handler = answers
    assert msr(bare, 0x4B56_4D08) == 0xFFFF_FFFF_0000_0001
    msr(bare, 0x4B56_4D08, 0x1_0000_0002)
    assert answers.written == [(0x4B56_4D08, 0x1_0000_0002)]
    assert msr(bare, 0xDEAD, 1) == ExceptionExit(VECTOR_GP, 0, CODE + 0x210)


def test_mov_to_registers_is_not_disturbed() -> None:
    bare = Bare()
    assert isinstance(bare.run(mov(6, 2**63 + 5) + HLT), Halt)
    assert bare.register("rsi") == 2**63 + 5


def test_code_whose_gdt_is_not_mapped_is_64_bit_in_long_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A CPU that left a kernel's trampoline executes by a descriptor that it keeps."""
    bare = Bare()
    bare.enter(Mode.LONG64, 0)
    vcpu = bare.machine.current
    with monkeypatch.context() as patch:
        patch.setattr(type(vcpu), "read_memory", lambda *_: None)
        assert vcpu.privilege(0x110) == (0, True)
    assert vcpu.privilege(0x110) == (0, False)  # once it can be read
