# SPDX-License-Identifier: GPL-2.0-or-later
"""VMSA pages and AP creation: what RMPADJUST, VMRUN of another vCPU and KVM's versions make of them
(N26, N57 to N59)."""

from __future__ import annotations

import pytest
from bare_machine import DATA, FRAMES, HLT, PRIVATE, load, mov, store
from ghcb_guest import ES, SNP, Guest

from guestemu.abi import ghcb as abi
from guestemu.abi.addresses import PAGE_SIZE, PMD_SIZE, Gpa
from guestemu.events.snp import PermissionChange, VcpuCreation
from guestemu.machine import ghcb
from guestemu.machine.ap_creation import KVM_VCPUS, ApState
from guestemu.machine.exits import Halt, RunFailed
from guestemu.machine.rmp import ASSIGNED, VALIDATED, Rmp
from guestemu.machine.rmp import SHARED as HYPERVISORS
from guestemu.machine.snp_psc import PSC_KERNELS, psc_kernel

PAGE = DATA + PMD_SIZE + PAGE_SIZE
GFN = PAGE >> 12
TAG, UNTAG = abi.RMPADJUST_VMSA | 1, 1
ON_INIT, CREATE, DESTROY = abi.AP_CREATE_ON_INIT, abi.AP_CREATE, abi.AP_DESTROY
DONE = (0, 0)
BAD = (abi.RESP_MALFORMED_INPUT, abi.GhcbError.INVALID_INPUT)
MISSING = (abi.RESP_MALFORMED_INPUT, abi.GhcbError.MISSING_INPUT)
EVENT = (abi.RESP_MALFORMED_INPUT, abi.GhcbError.INVALID_EVENT)


class Scene(Guest):
    """An SNP guest whose vCPU 1 is an AP."""

    @property
    def rmp(self) -> Rmp:
        assert self.sev.snp is not None
        return self.sev.snp.rmp

    def adjust(self, attributes: int) -> int:
        code = mov(0, PRIVATE + PAGE) + mov(1, 0) + mov(2, attributes) + abi.RMPADJUST + HLT
        assert isinstance(self.bare.run(code), Halt)
        return self.bare.register("rax")

    def ask(
        self, request: int, vmsa: int = PAGE, apic: int = 1, features: int = 1
    ) -> tuple[int, int]:
        info_1 = apic << 32 | request
        return self.request(abi.EXIT_AP_CREATION, info_1, vmsa, rax=features)

    def state(self, apic: int = 1) -> ApState:
        assert self.sev.aps is not None
        return self.sev.aps.state(apic)


@pytest.fixture
def snp() -> Scene:
    guest = Scene(SNP)
    guest.sev.kernel = psc_kernel("7.3")
    return guest


def test_a_vmsa_is_memory_until_its_vcpu_runs(snp: Scene) -> None:
    assert snp.sev.snp is not None
    snp.sev.snp.enforce()
    assert isinstance(snp.bare.run(store(PRIVATE + PAGE, 0x77) + HLT), Halt)
    assert snp.adjust(TAG) == 0
    assert snp.rmp.entry(GFN).vmsa
    assert isinstance(snp.bare.run(load(PRIVATE + PAGE) + HLT), Halt)
    assert snp.bare.register("rax") == 0x77
    assert (snp.ask(CREATE), snp.state()) == (DONE, ApState.RUNS)
    for code in (load(PRIVATE + PAGE), store(PRIVATE + PAGE, 0x78)):
        end = snp.bare.run(code + HLT)
        assert isinstance(end, RunFailed)
        assert "a VMSA in use" in end.reason
    assert isinstance(snp.bare.run(load(PRIVATE + PAGE + PAGE_SIZE) + HLT), Halt)  # its neighbour
    assert (snp.ask(DESTROY), snp.state()) == (DONE, ApState.STOPPED)
    assert isinstance(snp.bare.run(load(PRIVATE + PAGE) + HLT), Halt)
    assert snp.bare.register("rax") == 0x77


def test_the_bit_stays_while_the_page_is_in_use(snp: Scene) -> None:
    assert (snp.adjust(TAG), snp.ask(CREATE)) == (0, DONE)
    assert snp.adjust(UNTAG) == abi.RMP_FAIL_IN_USE
    assert snp.rmp.rmpupdate(GFN, snp.rmp.entry(GFN)) == abi.RMP_FAIL_IN_USE
    assert snp.ask(DESTROY) == DONE
    assert snp.adjust(UNTAG) == 0
    assert not snp.rmp.entry(GFN).vmsa
    results = [event.result for event in snp.sev.events if isinstance(event, PermissionChange)]
    assert results == [0, abi.RMP_FAIL_IN_USE, 0]


def test_a_new_vmsa_frees_the_old_one(snp: Scene) -> None:
    """wakeup_cpu_via_vmgexit() of a CPU that comes again."""
    snp.adjust(TAG)
    snp.ask(CREATE)
    assert snp.rmp.rmpadjust(GFN + 1, False, TAG).code == 0
    assert snp.ask(CREATE, PAGE + PAGE_SIZE) == DONE
    assert (snp.rmp.is_in_use(GFN), snp.rmp.is_in_use(GFN + 1)) == (False, True)
    assert snp.adjust(UNTAG) == 0


def test_kvm_takes_what_vmrun_refuses(snp: Scene) -> None:
    assert (snp.ask(CREATE), snp.state()) == (DONE, ApState.FAILS)  # not tagged
    snp.adjust(TAG)
    assert snp.state() is ApState.FAILS
    assert (snp.ask(CREATE), snp.state()) == (DONE, ApState.RUNS)
    beyond = FRAMES * PAGE_SIZE + PAGE_SIZE
    assert (snp.ask(CREATE, beyond), snp.state()) == (DONE, ApState.FAILS)


@pytest.mark.parametrize("is_2m", [False, True])
def test_vmrun_wants_a_page_of_4_kib_that_is_validated(snp: Scene, is_2m: bool) -> None:
    rmp = Rmp(1024, large_pages=is_2m)
    assert str(rmp.rmpadjust(0, is_2m, TAG)) == "0"
    assert rmp.enter(0) == (None if is_2m else 0)
    fresh = Rmp(1024)
    fresh.rmpadjust(7, False, TAG)
    fresh.pvalidate(7, False, False)
    assert fresh.enter(7) is None
    assert fresh.entry(7).vmsa  # PVALIDATE leaves the bit


def test_a_page_that_kvm_takes_back_is_no_vmsa_any_more(snp: Scene) -> None:
    assert snp.sev.snp is not None
    snp.adjust(TAG)
    snp.ask(CREATE)
    snp.sev.snp.convert(GFN, 1, private=False)
    assert (snp.rmp.state(GFN), snp.state()) == (HYPERVISORS, ApState.FAILS)
    snp.sev.snp.convert(GFN, 1, private=True)
    snp.rmp.assign(GFN, 1)
    assert (snp.rmp.state(GFN), snp.rmp.entry(GFN).vmsa) == (ASSIGNED, False)


def test_two_vcpus_cannot_run_from_one_page(snp: Scene) -> None:
    snp.adjust(TAG)
    assert (snp.ask(CREATE), snp.ask(CREATE, apic=2)) == (DONE, DONE)
    assert (snp.state(1), snp.state(2)) == (ApState.RUNS, ApState.FAILS)
    assert snp.ask(DESTROY, apic=2) == DONE
    assert (snp.state(1), snp.adjust(UNTAG)) == (ApState.RUNS, abi.RMP_FAIL_IN_USE)


def test_a_vcpu_leaves_the_frame_that_it_was_in(snp: Scene) -> None:
    """The hypervisor puts other memory behind the page meanwhile."""
    assert snp.sev.snp is not None
    snp.adjust(TAG)
    snp.ask(CREATE)
    spare = snp.rmp.frames
    snp.sev.snp.remap(GFN, spare)
    assert (snp.rmp.uses(GFN), snp.rmp.is_in_use(GFN)) == (True, False)
    assert snp.ask(DESTROY) == DONE
    assert not snp.rmp.uses(GFN)


def test_a_vcpu_that_waits_for_init_leaves_its_page_alone(snp: Scene) -> None:
    snp.adjust(TAG)
    assert (snp.ask(ON_INIT), snp.state()) == (DONE, ApState.WAITS)
    assert (snp.rmp.state(GFN), snp.adjust(UNTAG)) == (VALIDATED, 0)


@pytest.mark.parametrize(("request_word", "what"), [(CREATE, "runs"), (DESTROY, "has no VMSA")])
def test_a_vcpu_that_names_itself_stops(snp: Scene, request_word: int, what: str) -> None:
    outcome = snp.sev.create_ap_by_hand(request_word, Gpa(PAGE), 1)
    assert isinstance(outcome.end, RunFailed)
    assert what in outcome.end.reason
    (created,) = (event for event in snp.sev.events if isinstance(event, VcpuCreation))
    assert (created.apic_id, created.result) == (0, 0)


ANSWERS = {
    "create": ((CREATE, PAGE, 1, 1), {}),
    "create at INIT": ((ON_INIT, PAGE, 1, 1), {}),
    "destroy": ((DESTROY, PAGE, 1, 1), {}),
    "destroy of a vCPU with any features and address": ((DESTROY, 1, 1, 0x3F), {}),
    "no such vCPU": ((CREATE, PAGE, KVM_VCPUS, 1), dict.fromkeys(PSC_KERNELS, BAD)),
    "unknown request": ((3, PAGE, 1, 1), dict.fromkeys(PSC_KERNELS, BAD)),
    "a VMPL": ((CREATE | 1 << 16, PAGE, 1, 1), dict.fromkeys(PSC_KERNELS, BAD)),
    "not page-aligned": ((CREATE, PAGE + 8, 1, 1), dict.fromkeys(PSC_KERNELS, BAD)),
    "2 MiB-aligned": ((CREATE, PMD_SIZE * 3, 1, 1), dict.fromkeys(PSC_KERNELS, BAD)),
    "address 0": ((CREATE, 0, 1, 1), dict.fromkeys(PSC_KERNELS, BAD)),
    "beyond MAXPHYADDR": ((CREATE, 1 << 52 | PAGE, 1, 1), dict.fromkeys(PSC_KERNELS, BAD)),
    "restricted injection": ((CREATE, PAGE, 1, 0x9), dict.fromkeys(PSC_KERNELS, BAD)),
    "alternate injection": ((CREATE, PAGE, 1, 0x11), dict.fromkeys(PSC_KERNELS, BAD)),
    "debug swap": ((CREATE, PAGE, 1, 0x21), dict.fromkeys(("6.18", "7.2", "7.3"), BAD)),
    "no SNP": ((ON_INIT, PAGE, 1, 0), dict.fromkeys(("6.18", "7.2", "7.3"), BAD)),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_requests_are_answered_as_the_version_answers(snp: Scene, name: str) -> None:
    asked, unlike = ANSWERS[name]
    for version in PSC_KERNELS:
        snp.machine.rollback()
        snp.sev.kernel = psc_kernel(version)
        assert snp.ask(*asked) == unlike.get(version, DONE), version


def test_a_refusal_took_the_vcpu_away_at_first(snp: Scene) -> None:
    for version in PSC_KERNELS:
        snp.machine.rollback()
        snp.sev.kernel = psc_kernel(version)
        snp.adjust(TAG)
        assert (snp.ask(CREATE), snp.ask(CREATE, PAGE + 8)) == (DONE, BAD)
        assert snp.state() is (ApState.STOPPED if version == "6.11" else ApState.RUNS), version


def test_rax_has_to_be_given_except_for_destroy(snp: Scene) -> None:
    without = (ghcb.RAX,)
    for request, answer in ((CREATE, MISSING), (ON_INIT, MISSING), (DESTROY, DONE)):
        info_1 = 1 << 32 | request
        assert snp.request(abi.EXIT_AP_CREATION, info_1, PAGE, without=without) == answer


def test_only_an_snp_guest_creates_vcpus() -> None:
    es = Guest(ES)
    for version, answer in (("6.12", MISSING), ("7.3", EVENT)):
        es.sev.kernel = psc_kernel(version)
        assert es.request(abi.EXIT_AP_CREATION, 1 << 32 | CREATE, PAGE, rax=1) == answer


def test_a_rollback_forgets_vcpus_and_their_pages(snp: Scene) -> None:
    snp.adjust(TAG)
    snp.ask(CREATE)
    snp.machine.rollback()
    assert (snp.state(), snp.rmp.state(GFN), snp.rmp.entry(GFN).vmsa) == (
        ApState.LAUNCHED,
        VALIDATED,
        False,
    )
    snp.adjust(TAG)
    snp.ask(CREATE)
    snp.machine.checkpoint()
    snp.ask(DESTROY)
    snp.machine.rollback()
    assert (snp.state(), snp.rmp.is_in_use(GFN)) == (ApState.RUNS, True)


def test_a_kexec_hands_vmsa_tags_on(snp: Scene) -> None:
    snp.adjust(TAG)
    states = snp.rmp.dump()
    other = Scene(SNP)
    other.rmp.load(states)
    assert other.rmp.entry(GFN).vmsa
