# SPDX-License-Identifier: GPL-2.0-or-later
"""Enabling migration, MSR faults, exceptions, memory accesses and raw stubs."""

from __future__ import annotations

import pytest
from snippet_machine import BASE, PAGE, PMD, C, D, Machine
from unicorn import x86_const as x86

MERGED = ("5.17", "6.1", "6.12")
CONTROL = 0x4B564D08
FEATURE_17, FEATURE_16, FEATURE_14 = 1 << 17, 1 << 16, 1 << 14
BSS = 0x60_0000


def machine(generation: str) -> Machine:
    m = Machine(generation)
    m.info.write("kvm_features", FEATURE_17)
    m.info.write("notify_enabled", 0)
    m.info.write("bss_decrypted_start", BASE + BSS)
    m.info.write("bss_decrypted_end", BASE + BSS + 2 * PAGE)
    m.info.write_e820(
        [(0, 0x9FC00, 1), (0x9FC00, 0x400, 2), (0x100000, 0xF00000, 1), (0x1000800, 0x1001, 1)]
    )
    return m


@pytest.mark.parametrize("generation", MERGED)
def test_init_platform_reports_ram_then_the_decrypted_section(generation: str) -> None:
    m = machine(generation)
    m.call("kvm_init_platform", 0)
    assert m.take() == [
        (12, 0, 0xA0, 0x10),
        (12, 0x100000, 0xF00, 0x10),
        (12, 0x1000800, 2, 0x10),  # neither aligned nor whole: reported as it is
        (12, BSS, 1, 0),
        (12, BSS + PAGE, 1, 0),
    ]
    assert m.msrs == [(CONTROL, 1)]
    assert m.info.read("notify_enabled") == 1


def test_init_platform_leaves_the_msr_to_efi() -> None:
    m = machine("6.1")
    m.call("kvm_init_platform", 1)
    assert len(m.take()) == 5
    assert m.msrs == []


@pytest.mark.parametrize(("field", "value"), [("kvm_features", FEATURE_16), ("cbit_mask", 0)])
def test_init_platform_needs_feature_17_and_encryption(field: str, value: int) -> None:
    m = machine("6.1")
    m.info.write(field, value)
    m.call("kvm_init_platform", 0)
    assert (m.take(), m.msrs, m.info.read("notify_enabled")) == ([], [], 0)


def test_init_platform_of_the_patch_set_needs_bit_14() -> None:
    m = machine("2020")
    m.call("kvm_init_platform", 0)
    assert (m.take(), m.msrs, m.info.read("notify_enabled")) == ([], [], 1)
    m.info.write("kvm_features", FEATURE_14)
    m.call("kvm_init_platform", 0)
    assert m.msrs == [(CONTROL, 1)]
    old = machine("5.10")
    old.call("kvm_init_platform", 0)
    assert (old.take(), old.msrs, old.info.read("notify_enabled")) == ([], [], 0)


@pytest.mark.parametrize(
    ("arguments", "writes"),
    [
        ((1, 1, 0, 1), 1),
        ((0, 1, 0, 1), 0),
        ((1, 0, 0, 1), 0),
        ((1, 1, 0x800000000000000E, 1), 0),
        ((1, 1, 0, 0), 0),
    ],
)
def test_the_efi_variable_enables_migration(arguments: tuple[int, ...], writes: int) -> None:
    m = machine("6.12")
    assert m.call("setup_efi_kvm_sev_migration", *arguments) == 0
    assert m.msrs == [(CONTROL, 1)] * writes


def test_cpu_offline_writes_0_even_without_encryption() -> None:
    m = machine("6.1")
    m.info.write("cbit_mask", 0)
    m.call("kvm_guest_cpu_offline")
    assert m.msrs == [(CONTROL, 0)]
    m.info.write("kvm_features", 0)
    m.call("kvm_guest_cpu_offline")
    assert len(m.msrs) == 1


@pytest.mark.parametrize("generation", MERGED)
def test_a_faulting_msr_write_warns_once_and_goes_on(generation: str) -> None:
    m = machine(generation)
    m.fail_msr = True
    assert m.call("kvm_init_platform", 0) == 0
    assert m.call("kvm_guest_cpu_offline") == 0
    assert m.msrs == [(CONTROL, 1), (CONTROL, 0)]
    assert m.warnings == ["unchecked_msr"]
    assert m.info.read("unchecked_msr") == 2


@pytest.mark.parametrize("generation", MERGED)
def test_notifying_an_unmapped_address_warns_and_stops(generation: str) -> None:
    m = Machine(generation)
    m.set_entry(BASE + D + PAGE, 0)
    m.call("enc_dec_hypercall", BASE + D, 3 * PAGE, 0)
    m.call("enc_dec_hypercall", BASE + D + PAGE, PAGE, 0)
    assert [call[1] for call in m.take()] == [D]
    assert m.warnings == ["lookup"]


def test_the_patch_set_stops_silently() -> None:
    m = Machine("2020")
    m.set_entry(BASE + D + PAGE, 0)
    m.call("set_memory_enc_dec_hypercall", BASE + D, 3, 1)
    assert m.take() == [(12, D, 1, 1)]
    assert m.warnings == []


def test_an_msr_fault_at_the_raw_stub_is_an_oops() -> None:
    m = Machine()
    m.fail_msr = True
    with pytest.raises(RuntimeError, match="oops 13"):
        m.call("stub_wrmsr")
    assert m.info.read("oops_rip") == m.image.address("stub_wrmsr")
    assert m.info.read("oops_error_code") == 0


def test_a_page_fault_is_written_down() -> None:
    m = Machine()
    with pytest.raises(RuntimeError, match="oops 14"):
        m.call("guest_memset", 0x7000_0000_0000, 1, 8)
    assert m.info.read("oops_cr2") == 0x7000_0000_0000
    assert m.info.read("oops_vector") == 14


def test_every_vector_ends_in_the_record() -> None:
    for vector in range(32):
        m = Machine()
        with_code = vector in {8, 10, 11, 12, 13, 14, 17, 21, 29, 30}
        frame = [*([0xBEEF] if with_code else []), 0x1234, 8, 2, 0, 0]
        top = 0x3E000
        for index, word in enumerate(frame):
            m.write_u64(top + 8 * index, word)
        m.uc.reg_write(x86.UC_X86_REG_RSP, top)
        m.uc.emu_start(m.image.exceptions[vector], 0)
        assert m.uc.reg_read(x86.UC_X86_REG_RIP) == m.image.address("guest_oops") + 1
        read = m.info.read
        assert (read("oops_vector"), read("oops_rip")) == (vector, 0x1234)
        assert read("oops_error_code") == (0xBEEF if with_code else 0)


@pytest.mark.parametrize(("offset", "size"), [(0, 4096), (3, 13), (8, 1), (1, 0)])
def test_memset_stores_exactly_what_it_is_told(offset: int, size: int) -> None:
    m = Machine()
    m.private[D : D + 2 * PAGE] = b"\xee" * 2 * PAGE
    assert m.call("guest_memset", BASE + D + offset, 0x15A, size) == 0
    expected = bytearray(b"\xee" * 2 * PAGE)
    expected[offset : offset + size] = b"\x5a" * size
    assert m.private[D : D + 2 * PAGE] == expected


def test_set_cbit_flips_one_entry_and_drops_the_old_translation() -> None:
    m = Machine()
    m.shared[D : D + 8] = b"shared.."
    m.private[D : D + 8] = b"private."
    assert m.call("guest_load8", BASE + D) == int.from_bytes(b"private.", "little")
    assert m.call("guest_set_cbit", BASE + D, 0) == 0
    assert m.leaf(BASE + D)[0] == D | 0x63
    assert m.call("guest_load8", BASE + D) == int.from_bytes(b"shared..", "little")
    assert m.call("guest_set_cbit", BASE + D, 1) == 0
    assert m.leaf(BASE + D)[0] == D | 0x63 | C
    m.set_entry(BASE + D + PAGE, 0)
    for va in (BASE + D + PAGE, BASE + 5 * PMD):
        assert m.call("guest_set_cbit", va, 0) & 0xFFFFFFFF == -14 & 0xFFFFFFFF
    assert m.take() == []


def test_hypercall3_passes_all_arguments_and_returns_the_answer() -> None:
    m = Machine(answer=-1000)
    result = m.call("kvm_sev_hypercall3", 0x1_0000_000C, 1 << 63, 3, 1 << 62)
    assert m.take() == [(12, 1 << 63, 3, 1 << 62)]
    assert result == (1 << 64) - 1000
