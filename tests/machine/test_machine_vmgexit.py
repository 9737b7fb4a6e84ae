# SPDX-License-Identifier: GPL-2.0-or-later
"""The hypervisor's side of SEV-ES and SNP, driven by hand-made requests."""

from __future__ import annotations

import struct

import pytest
from bare_machine import (
    CODE,
    DATA,
    FRAMES,
    HLT,
    PRIVATE,
    SHARED,
    VMCALL,
    VMMCALL,
    Answers,
    Bare,
    mov,
)
from ghcb_guest import ALWAYS, ES, GHCB, LEAF_GFN, SNP, Guest, cpuid, entry

from guestemu.abi import ghcb as abi
from guestemu.abi.addresses import PAGE_SIZE, Gpa
from guestemu.abi.msrs import MSR_AMD64_SEV_ES_GHCB, MSR_KVM_MIGRATION_CONTROL
from guestemu.events.snp import GhcbRequest, MsrRequest, Validation
from guestemu.guest.linux.ccblob import SETUP_CC_BLOB, launch_pages
from guestemu.guest.linux.es import attach_sev
from guestemu.machine import ghcb
from guestemu.machine.exits import (
    ExceptionExit,
    Halt,
    Hypercall,
    MapGpaRange,
    RunFailed,
    Shutdown,
    Terminated,
    Vmgexit,
)
from guestemu.machine.machine import Machine, MachineConfig
from guestemu.machine.rmp import ASSIGNED, VALIDATED
from guestemu.machine.rmp import SHARED as HYPERVISOR
from guestemu.machine.snp_psc import psc_kernel


@pytest.fixture
def es() -> Guest:
    return Guest(ES)


@pytest.fixture
def snp() -> Guest:
    return Guest(SNP)


# VMMCALL ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", [True, False])
def test_vmmcall_is_a_vc_and_vmcall_undefined(native: bool) -> None:
    bare = Bare(MachineConfig(frames=FRAMES, sev_status=ES, native_hooks=native))
    attach_sev(bare.machine, cpuid)
    bare.machine.hooks.handler = Answers()
    assert bare.run(VMMCALL + HLT) == ExceptionExit(29, 0x81, CODE)
    assert bare.run(VMCALL + HLT) == ExceptionExit(6, None, CODE)


def test_vc_is_delivered_through_the_idt_with_its_error_code() -> None:
    handler = 0xC000
    bare = Bare(MachineConfig(frames=FRAMES, sev_status=ES), {29: handler})
    attach_sev(bare.machine, cpuid)
    bare.place(handler, b"\x5b" + HLT)  # pop rbx
    assert isinstance(bare.run(VMMCALL + HLT, deliver=True), Halt)
    assert bare.register("rbx") == 0x81


def test_plain_sev_has_no_such_thing() -> None:
    bare = Bare()
    assert attach_sev(bare.machine, cpuid) is None
    assert isinstance(bare.run(VMMCALL + HLT), Hypercall)
    assert isinstance(bare.run(abi.VMGEXIT + HLT), Vmgexit)


def test_without_a_host_the_request_is_an_exit(es: Guest) -> None:
    es.machine.hooks.handler = None
    es.machine.msrs.platform[MSR_AMD64_SEV_ES_GHCB] = GHCB
    assert es.vmgexit() == Vmgexit(CODE)


def test_a_hypercall_arrives_with_the_registers_that_were_given(es: Guest) -> None:
    es.host.value = 2**64 - 22
    answer = es.request(
        abi.EXIT_VMMCALL, rax=2**64 - 1, rbx=0x1000, rcx=7, rdx=0x10, rsi=9, without=(ghcb.RDX,)
    )
    assert answer == (0, 0)
    call = es.host.calls[0]
    assert (call.nr, call.a0, call.a1, call.a2, call.a3) == (2**64 - 1, 0x1000, 7, 0, 9)
    assert (call.cpl, call.is_64bit, call.is_vmcall) == (0, True, False)
    assert es.field(ghcb.RAX) == 2**64 - 22
    assert es.given(ghcb.RAX)
    assert not es.given(ghcb.RSI)
    assert es.sev.events[-1] == GhcbRequest(abi.EXIT_VMMCALL, 0, 0, 0, 0, 0)


def test_the_privilege_level_is_the_ghcbs(es: Guest) -> None:
    es.request(abi.EXIT_VMMCALL, rax=12, cpl=3)
    assert es.host.calls[0].cpl == 3


def test_a_request_in_the_private_view_is_not_seen(es: Guest) -> None:
    es.request(abi.EXIT_VMMCALL, rax=12, private=True)
    assert es.host.calls == []


# Requests that are refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "info_1", "missing"),
    [
        *((abi.EXIT_VMMCALL, 0, offset) for offset in (*ALWAYS, ghcb.RAX)),
        (abi.EXIT_CPUID, 0, ghcb.RCX),
        (abi.EXIT_MSR, 0, ghcb.RCX),
        (abi.EXIT_MSR, 1, ghcb.RDX),
    ],
)
def test_a_missing_field_is_malformed(es: Guest, code: int, info_1: int, missing: int) -> None:
    registers = dict.fromkeys(("rax", "rcx", "rdx"), MSR_KVM_MIGRATION_CONTROL)
    answer = es.request(code, info_1, without=(missing,), **registers)
    assert answer == (abi.RESP_MALFORMED_INPUT, abi.GhcbError.MISSING_INPUT)
    assert es.host.calls == es.host.written == []


def test_a_hypercall_needs_its_privilege_level(es: Guest) -> None:
    answer = es.request(abi.EXIT_VMMCALL, rax=12, cpl=None)
    assert answer == (abi.RESP_MALFORMED_INPUT, abi.GhcbError.MISSING_INPUT)


def test_an_unknown_exit_code_is_an_invalid_event(es: Guest) -> None:
    assert es.request(0x6E) == (abi.RESP_MALFORMED_INPUT, abi.GhcbError.INVALID_EVENT)


def test_another_usage_is_refused(es: Guest) -> None:
    es.machine.ram.write(Gpa(GHCB + ghcb.USAGE), b"\1\0\0\0", private=False)
    answer = es.request(abi.EXIT_VMMCALL, rax=12)
    assert answer == (abi.RESP_MALFORMED_INPUT, abi.GhcbError.INVALID_USAGE)


def test_page_states_are_not_for_plain_es(es: Guest) -> None:
    assert es.psc(entry(1, abi.PSC_OP_SHARED))[0] == abi.RESP_MALFORMED_INPUT


@pytest.mark.parametrize("address", [FRAMES * PAGE_SIZE, 1 << 40, 0])
def test_a_ghcb_that_cannot_be_mapped_is_not_answered(es: Guest, address: int) -> None:
    """N11."""
    before = es.page()
    assert es.msr(address) == address
    assert es.page() == before
    assert es.host.calls == []


def test_an_snp_guest_registers_its_ghcb_first(snp: Guest) -> None:
    """N5: 6.12's KVM_RUN fails, 7.2 tells the guest."""
    snp.sev.kernel = psc_kernel("7.2")
    snp.msr(GHCB + PAGE_SIZE | abi.MSR_REG_GPA_REQ)
    answer = snp.request(abi.EXIT_VMMCALL, rax=12)
    assert answer == (abi.RESP_MALFORMED_INPUT, abi.GhcbError.NOT_REGISTERED)
    snp.sev.kernel = psc_kernel("6.12")
    assert isinstance(snp.vmgexit(), RunFailed)
    snp.machine.rollback()
    assert snp.request(abi.EXIT_VMMCALL, rax=12) == (0, 0)


# MSRs, CPUID, features ----------------------------------------------------------------------------


def test_msrs_go_to_the_host(es: Guest) -> None:
    index = MSR_KVM_MIGRATION_CONTROL
    assert es.request(abi.EXIT_MSR, 1, rcx=index, rax=0xF_0000_0001, rdx=2) == (0, 0)
    assert es.host.written == [(index, 0x2_0000_0001)]
    es.host.value = 0xAAAA_BBBB_CCCC
    assert es.request(abi.EXIT_MSR, 0, rcx=index) == (0, 0)
    assert (es.field(ghcb.RAX), es.field(ghcb.RDX)) == (0xBBBB_CCCC, 0xAAAA)


def test_a_fault_is_injected_by_the_answer(es: Guest) -> None:
    answer = es.request(abi.EXIT_MSR, 1, rcx=0xDEAD, rax=0, rdx=0)
    assert answer == (abi.RESP_ISSUE_EXCEPTION, 0x8000_030D)  # valid, exception, #GP


def test_cpuid_through_the_page(es: Guest) -> None:
    assert es.request(abi.EXIT_CPUID, rax=7, rcx=1) == (0, 0)
    values = [es.field(ghcb.GENERAL[name]) for name in ("rax", "rbx", "rcx", "rdx")]
    assert values == [7, 1, 0x33, 0x44]


def test_features_name_snp_only_where_it_is(es: Guest, snp: Guest) -> None:
    assert es.request(abi.EXIT_HV_FEATURES) == (0, 0)
    assert snp.request(abi.EXIT_HV_FEATURES) == (0, 3)
    assert es.msr(abi.MSR_HV_FT_REQ) == abi.MSR_HV_FT_RESP
    assert snp.msr(abi.MSR_HV_FT_REQ) == 3 << 12 | abi.MSR_HV_FT_RESP


# The MSR protocol ---------------------------------------------------------------------------------


def test_sev_information(es: Guest) -> None:
    assert es.msr(abi.MSR_SEV_INFO_REQ) == 2 << 48 | 1 << 32 | 39 << 24 | 1
    assert isinstance(es.sev.events[-1], MsrRequest)


@pytest.mark.parametrize(("register", "value"), [(0, 0x8000_001F), (2, 0x33), (3, 0x44)])
def test_cpuid_by_msr(es: Guest, register: int, value: int) -> None:
    answer = es.msr(0x8000_001F << 32 | register << 30 | abi.MSR_CPUID_REQ)
    assert answer == value << 32 | register << 30 | abi.MSR_CPUID_RESP


def test_ghcb_addresses(snp: Guest) -> None:
    assert snp.msr(abi.MSR_PREF_GPA_REQ) == 2**64 - 4096 | abi.MSR_PREF_GPA_RESP
    assert snp.msr(0x5000 | abi.MSR_REG_GPA_REQ) == 0x5000 | abi.MSR_REG_GPA_RESP


@pytest.mark.parametrize(
    ("request_word", "words"),
    [
        (2 << 16 | 1 << 12 | abi.MSR_TERM_REQ, "set 1, reason 2 (PVALIDATE failed)"),
        (0x77 << 16 | 5 << 12 | abi.MSR_TERM_REQ, "set 5, reason 119 (unknown reason)"),
    ],
)
def test_requests_that_end_an_es_vm(es: Guest, request_word: int, words: str) -> None:
    es.machine.msrs.platform[MSR_AMD64_SEV_ES_GHCB] = request_word
    end = es.vmgexit()
    assert isinstance(end, Shutdown)
    assert words in end.reason
    assert end.rip == CODE


@pytest.mark.parametrize("request_word", [0x5000 | abi.MSR_REG_GPA_REQ, 0x3, 0x014, 0xFFF])
def test_an_unknown_msr_request_stays_as_it_is(es: Guest, request_word: int) -> None:
    """N11; an SNP request of a guest without SNP is one of them."""
    assert es.msr(request_word) == request_word


def test_termination_through_the_page(es: Guest) -> None:
    page = bytearray(PAGE_SIZE)
    struct.pack_into("<QQ", page, ghcb.EXIT_CODE, abi.EXIT_TERM_REQUEST, 2 << 4 | 1)
    page[ghcb.VALID_BITMAP + ghcb.EXIT_CODE // 64] |= 1 << ghcb.EXIT_CODE // 8 % 8
    es.machine.ram.write(Gpa(GHCB), bytes(page), private=False)
    es.machine.msrs.platform[MSR_AMD64_SEV_ES_GHCB] = GHCB
    end = es.vmgexit()
    assert isinstance(end, Terminated)
    assert "set 1, reason 2" in end.reason
    assert (end.reason_set, end.reason_code) == (1, 2)


# Page-state changes (K4-a) ------------------------------------------------------------------------


class Wanting(Answers):
    """A host whose user space hears of page-state changes."""

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.answer = answer
        self.heard: list[tuple[int, int, int]] = []

    def map_gpa_range(self, call: MapGpaRange) -> int:
        self.heard.append((call.gpa, call.pages, call.attributes))
        return self.answer


def test_a_change_by_msr_is_one_page(snp: Guest) -> None:
    snp.machine.hooks.handler = host = Wanting(0)
    assert snp.msr(2 << 52 | 0x205 << 12 | abi.MSR_PSC_REQ) == abi.MSR_PSC_RESP
    assert snp.msr(1 << 52 | 0x206 << 12 | abi.MSR_PSC_REQ) == abi.MSR_PSC_RESP
    assert host.heard == [(0x205000, 1, 0), (0x206000, 1, 0x10)]
    assert (snp.states(0x205), snp.states(0x206)) == ({HYPERVISOR}, {VALIDATED})


def test_a_refused_or_unknown_change_by_msr_is_an_error(snp: Guest) -> None:
    error = 1 << 63 | 0x15  # KVM's word (N1)
    assert snp.msr(3 << 52 | 0x205 << 12 | abi.MSR_PSC_REQ) == error
    snp.machine.hooks.handler = Wanting(22)
    assert snp.msr(2 << 52 | 0x205 << 12 | abi.MSR_PSC_REQ) == error
    assert snp.states(0x205) == {VALIDATED}
    assert snp.changes == [(0x205, 1, 0, 22)]


def test_adjacent_entries_of_one_kind_are_one_request(snp: Guest) -> None:
    snp.machine.hooks.handler = host = Wanting(0)
    shared, private = abi.PSC_OP_SHARED, abi.PSC_OP_PRIVATE
    answer = snp.psc(
        *(entry(gfn, shared) for gfn in (0x210, 0x211, 0x213)),
        *(entry(gfn, private) for gfn in (0x214, 0x215)),
    )
    assert answer == (0, 0)
    assert host.heard == [(0x210000, 2, 0), (0x213000, 1, 0), (0x214000, 2, 0x10)]
    first = int.from_bytes(snp.page()[ghcb.SHARED_BUFFER : ghcb.SHARED_BUFFER + 2], "little")
    words = struct.unpack_from("<5Q", snp.page(), ghcb.SHARED_BUFFER + 8)
    assert first == 5
    assert [word & 0xFFF for word in words] == [1] * 5


def test_large_entries_are_a_request_of_their_size(snp: Guest) -> None:
    snp.psc(
        entry(LEAF_GFN, abi.PSC_OP_SHARED, is_2m=True),
        entry(LEAF_GFN + 512, abi.PSC_OP_SHARED),
        entry(LEAF_GFN + 1024, abi.PSC_OP_SHARED, is_2m=True, done=510),
    )
    assert snp.changes == [
        (LEAF_GFN, 512, 1, 0),
        (LEAF_GFN + 512, 1, 0, 0),
        (LEAF_GFN + 1024 + 510, 2, 1, 0),  # the rest of a begun entry keeps the flag
    ]
    assert snp.states(LEAF_GFN, 513) == {HYPERVISOR}
    assert snp.states(LEAF_GFN + 1024, 510) == {VALIDATED}


def test_done_entries_and_unknown_operations_are_passed_over(snp: Guest) -> None:
    answer = snp.psc(
        entry(0x210, abi.PSC_OP_SHARED, done=1),
        entry(0x210, 3),
        entry(0x211, abi.PSC_OP_SHARED),
    )
    assert answer == (0, 0)
    assert snp.changes == [(0x211, 1, 0, 0)]


def test_a_refusal_stops_the_buffer(snp: Guest) -> None:
    snp.machine.hooks.handler = Wanting(2**64 - 22)
    answer = snp.psc(entry(0x210, abi.PSC_OP_SHARED), entry(0x220, abi.PSC_OP_SHARED))
    assert answer == (0, abi.PSC_ERROR_GENERIC)
    assert len(snp.changes) == 1
    assert snp.page()[ghcb.SHARED_BUFFER : ghcb.SHARED_BUFFER + 2] == b"\0\0"


# PVALIDATE and RMPADJUST --------------------------------------------------------------------------


def test_a_page_is_given_up_and_accepted_again(snp: Guest) -> None:
    gfn, address = DATA >> 12, PRIVATE + DATA
    assert isinstance(snp.pvalidate(address, False, False), Halt)
    assert (snp.bare.register("rax"), snp.carry) == (0, 0)
    assert snp.states(gfn) == {ASSIGNED}
    assert snp.pvalidate(address, False, True) == Halt(snp.bare.register("rip"))
    assert (snp.bare.register("rax"), snp.carry) == (0, 0)
    assert snp.states(gfn) == {VALIDATED}


@pytest.mark.parametrize(("forgives", "carry"), [(False, 1), (True, 0)])
def test_a_double_validation_sets_carry_and_is_noted(
    snp: Guest, forgives: bool, carry: int
) -> None:
    assert snp.sev.snp is not None
    snp.sev.snp.forgives_double = forgives
    snp.pvalidate(PRIVATE + DATA, False, True)
    assert (snp.bare.register("rax"), snp.carry) == (0, carry)
    event = snp.sev.events[-1]
    assert isinstance(event, Validation)
    assert (event.gfn, event.validate, event.is_double) == (DATA >> 12, True, True)


def test_accepting_a_shared_page_has_it_assigned_first(snp: Guest) -> None:
    snp.msr(2 << 52 | DATA | abi.MSR_PSC_REQ)
    snp.pvalidate(PRIVATE + DATA, False, True)
    event = snp.sev.events[-1]
    assert isinstance(event, Validation)
    assert (event.is_implicit, event.is_double) == (True, False)
    assert snp.states(DATA >> 12) == {VALIDATED}


def test_a_large_page_with_small_entries_is_a_size_mismatch(snp: Guest) -> None:
    """So that Linux goes on page by page: guest_memfd has no large pages (N19, N36)."""
    address = PRIVATE + (LEAF_GFN << 12)
    snp.pvalidate(address, True, False)
    assert snp.bare.register("rax") == abi.RMP_FAIL_SIZE_MISMATCH
    assert snp.states(LEAF_GFN, 512) == {VALIDATED}
    snp.pvalidate(address + PAGE_SIZE, True, True)
    assert (snp.bare.register("rax"), snp.carry) == (abi.RMP_FAIL_INPUT, 0)
    failed = [event for event in snp.sev.events if isinstance(event, Validation) and event.result]
    assert [event.is_double for event in failed] == [False, False]


def test_a_shared_mapping_is_a_page_fault_with_the_reserved_bit(snp: Guest) -> None:
    """N31: no result code."""
    end = snp.pvalidate(SHARED + DATA, False, True)
    assert isinstance(end, ExceptionExit)
    assert (end.vector, end.error_code, end.cr2) == (14, 9, SHARED + DATA)


def test_an_unmapped_address_faults(snp: Guest) -> None:
    end = snp.pvalidate(0x7777_0000_0000, False, True)
    assert isinstance(end, ExceptionExit)
    assert (end.vector, end.cr2) == (14, 0x7777_0000_0000)


def test_rmpadjust_succeeds(snp: Guest) -> None:
    snp.bare.run(mov(0, PRIVATE + DATA) + mov(1, 0) + mov(2, 0x101) + abi.RMPADJUST + HLT)
    assert snp.bare.register("rax") == 0
    assert (snp.sev.events[-1].gfn, snp.sev.events[-1].attributes) == (DATA >> 12, 0x101)


def test_es_has_no_pvalidate(es: Guest) -> None:
    assert es.pvalidate(PRIVATE + DATA, False, True).vector == 6


def test_a_rollback_takes_back_page_states_and_requests(snp: Guest) -> None:
    before = snp.machine.msrs.platform[MSR_AMD64_SEV_ES_GHCB]
    snp.msr(2 << 52 | DATA | abi.MSR_PSC_REQ)
    snp.machine.rollback()
    assert snp.states(DATA >> 12) == {VALIDATED}
    assert snp.machine.msrs.platform[MSR_AMD64_SEV_ES_GHCB] == before
    assert not snp.sev.events


# Before anybody watches accesses ------------------------------------------------------------------


def test_views_are_plain_buffers_until_memory_is_watched() -> None:
    machine = Machine(MachineConfig(frames=FRAMES, defer_memory_hooks=True))
    ram = machine.ram
    ram.shared[DATA : DATA + 4] = b"ghcb"
    ram.write(Gpa(DATA), b"kern", private=True)
    assert ram.read(Gpa(DATA), 4, private=False) == b"ghcb"
    ram.write(Gpa(DATA + 8), b"host", private=False)
    assert bytes(ram.shared[DATA : DATA + 12]) == b"ghcb\0\0\0\0host"
    assert ram.read(Gpa(DATA), 4) == b"kern"
    machine.watch_memory([DATA >> 12])
    assert ram.read(Gpa(DATA), 4, private=False) == b"ghcb"
    assert ram.read(Gpa(DATA), 4) != b"kern"


# Launch -------------------------------------------------------------------------------------------


def test_launch_pages_lead_from_setup_data_to_the_cpuid_table() -> None:
    base = 0x2A000
    pages = launch_pages(base, cpuid)
    following, kind, size, blob = struct.unpack_from("<QIII", pages)
    assert (following, kind, size) == (0, SETUP_CC_BLOB, 4)
    magic, _, _, secrets, _, _, table, length, _ = struct.unpack_from(
        "<IHHQIIQII", pages, blob - base
    )
    assert (magic, secrets, length) == (0x45444D41, base + PAGE_SIZE, PAGE_SIZE)
    (count,) = struct.unpack_from("<I", pages, table - base)
    leaves = [
        struct.unpack_from("<IIQQIIIIQ", pages, table - base + 16 + 48 * i) for i in range(count)
    ]
    assert (0x8000001F, 0, 0, 0, 0x8000001F, 0, 0x33, 0x44, 0) in leaves
    assert len(pages) == 3 * PAGE_SIZE
