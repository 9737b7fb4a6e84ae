# SPDX-License-Identifier: GPL-2.0-or-later
"""Real kernels as SEV-ES and SNP guests. Needs Debian's cloud kernels, from GUESTEMU_KERNEL_61 and
GUESTEMU_KERNEL_612 or from what `guestemu kernel fetch` has fetched."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa, Gva
from guestemu.abi.errors import InputError, MissingError
from guestemu.abi.ghcb import AP_CREATE, EXIT_VMMCALL, RMP_FAIL_SIZE_MISMATCH
from guestemu.abi.hypercalls import MAP_GPA_RANGE_PAGE_SZ_2M
from guestemu.abi.msrs import MSR_KVM_MIGRATION_CONTROL
from guestemu.abi.regions import Instruction, Region
from guestemu.abi.x86 import Mode
from guestemu.events.base import Event
from guestemu.events.exits import HypercallExit, MapGpaRangeExit, WrmsrExit
from guestemu.events.snp import (
    GhcbRequest,
    PageStateChange,
    PermissionChange,
    Validation,
    VcpuCreation,
)
from guestemu.guest.base import RawRegisters
from guestemu.guest.linux.boot import DEFAULT_COMMAND_LINE, boot_kernel, build_machine, describe_end
from guestemu.guest.linux.es import SevEs
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.images import find_image
from guestemu.guest.linux.load import LOADER, linux_config
from guestemu.guest.linux.platform import Console
from guestemu.guest.linux.prepare import Prepared, prepare
from guestemu.guest.linux.recorder import BootRecorder, joined
from guestemu.guest.linux.snapshot import load_snapshot, save_snapshot
from guestemu.machine.ap_creation import ApState
from guestemu.machine.exits import ExceptionExit, Hypercall, MapGpaRange, Shutdown, VcpuAccess
from guestemu.machine.rmp import ASSIGNED, FOREIGN, SHARED, VALIDATED
from guestemu.program.text import parse_text
from guestemu.report.trace.run import run_program
from guestemu.report.trace.words import run_word

BUDGET = 20_000_000
FEATURES = {"es": "AMD SEV SEV-ES", "snp": "AMD SEV SEV-ES SEV-SNP"}


def kernel_file(series: str) -> Path:
    named = os.environ.get(f"GUESTEMU_KERNEL_{series.replace('.', '')}")
    if named:
        return Path(named)
    try:
        return find_image(series)
    except MissingError:
        pytest.skip(f"no {series} kernel; run `guestemu kernel fetch {series}`")


class Host(BootRecorder):
    """Notes every hypercall with the vCPU's state; answers `answer`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Hypercall] = []
        self.answer = 0

    def hypercall(self, call: Hypercall) -> int:
        self.calls.append(call)
        return self.answer


class RefusingHost(Host):
    """A host whose user space fails page-state changes."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[tuple[int, int, int]] = []

    def map_gpa_range(self, call: MapGpaRange) -> int:
        self.changes.append((call.gpa, call.pages, call.attributes))
        return 22


class Scene:
    """One booted kernel with its events."""

    def __init__(self, prepared: Prepared, boot_events: list[Event]) -> None:
        booted = prepared.booted
        assert booted.platform.sev is not None
        self.sev: SevEs = booted.platform.sev
        self.text = booted.console.text
        self.exits = prepared.boot_exits
        self.boot_events = boot_events
        self.boot_shared = set(prepared.shared_frames)
        self.guest = LinuxGuest(prepared, BUDGET)
        self.machine = self.guest.machine
        self.host = Host()

    def start(self) -> Scene:
        self.guest.reset()
        if self.sev.snp is not None:
            self.sev.snp.forgives_double = False
        self.host = Host()
        self.machine.hooks.handler = self.host
        self.machine.ram.table_writes()
        return self

    def state(self, gfn: int) -> int:
        assert self.sev.snp is not None
        return self.sev.snp.rmp.state(gfn)

    def steps(self) -> list[str]:
        """What happened, in order, with each change of page tables where it happened."""
        steps: list[str] = []
        writes = 0
        for event in self.sev.events:
            if event.table_writes > writes:
                steps.append("flip")
            writes = event.table_writes
            match event:
                case Validation():
                    steps.append("accept" if event.validate else "rescind")
                case PageStateChange():
                    steps.append("make private" if event.is_private else "make shared")
                case GhcbRequest(code=code) if code == EXIT_VMMCALL:
                    steps.append("hypercall")
        if self.machine.ram.table_write_count > writes:
            steps.append("flip")
        return steps


def boot_scene(series: str, kind: str, snapshot: Path | None = None) -> Scene:
    kernel = LOADER.kernel(kernel_file(series))
    recorder = BootRecorder()
    booted = boot_kernel(kernel, linux_config(128, 39, kind), recorder)
    assert describe_end(booted) == "reached rest_init"
    assert booted.platform.sev is not None
    events = list(booted.platform.sev.events)
    prepared = prepare(booted, list(recorder.exits))
    if snapshot is not None:
        save_snapshot(snapshot, prepared, DEFAULT_COMMAND_LINE)
    return Scene(prepared, events)


@pytest.fixture(scope="module", params=[pytest.param("6.1", marks=pytest.mark.soak), "6.12"])
def series(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def es_booted(series: str) -> Scene:
    return boot_scene(series, "es")


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory, series: str) -> Path:
    return tmp_path_factory.mktemp(series) / "kernel.snapshot"


@pytest.fixture(scope="module")
def snp_booted(series: str, snapshot: Path) -> Scene:
    return boot_scene(series, "snp", snapshot)


@pytest.fixture
def es(es_booted: Scene) -> Scene:
    return es_booted.start()


@pytest.fixture
def snp(snp_booted: Scene) -> Scene:
    return snp_booted.start()


# Boot ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FEATURES)
def test_the_kernel_finds_its_features(kind: str, es_booted: Scene, snp_booted: Scene) -> None:
    scene = es_booted if kind == "es" else snp_booted
    lines = [line.partition("] ")[2] for line in scene.text.splitlines()]
    assert f"Memory Encryption Features active: {FEATURES[kind]}" in lines


def test_an_es_boot_tells_the_host_through_the_ghcb(es_booted: Scene) -> None:
    calls = [(one.nr, one.args[2]) for one in es_booted.exits if isinstance(one, HypercallExit)]
    assert {nr for nr, _ in calls} == {12}
    assert {attributes for _, attributes in calls} == {0x10, 0}
    assert WrmsrExit(MSR_KVM_MIGRATION_CONTROL, (1,), 1, 0) in es_booted.exits
    assert len(through_ghcb(es_booted)) == len(calls)


def test_an_snp_boot_tells_the_host_by_page_state_changes_only(
    series: str, snp_booted: Scene
) -> None:
    """N18, N22: page by page by MSR, one by buffer, no VMMCALL; 6.1 builds 4 KiB entries (N3)."""
    assert {type(one) for one in snp_booted.exits} == {MapGpaRangeExit}
    sizes = Counter(one.args[1:3] for one in snp_booted.exits)
    assert sizes[1, 0] > 512  # .bss..decrypted and per-CPU pages
    assert max(sizes) == ((253, 0) if series == "6.1" else (1024, 1))
    assert through_ghcb(snp_booted) == []


def through_ghcb(scene: Scene) -> list[GhcbRequest]:
    return [
        event
        for event in scene.boot_events
        if isinstance(event, GhcbRequest) and event.code == EXIT_VMMCALL
    ]


def test_neighbouring_ranges_of_a_boot_are_told_as_one() -> None:
    def told(gfn: int, pages: int, attributes: int) -> HypercallExit:
        return HypercallExit(12, (gfn << PAGE_SHIFT, pages, attributes, 0), 0, 0)

    written = WrmsrExit(12, (1,), 1, 0)
    exits = [told(1, 1, 0), told(2, 2, 0), told(4, 1, 1), written, told(5, 1, 1), told(7, 1, 1)]
    assert joined(exits) == [told(1, 3, 0), *exits[2:]]


def test_an_snp_boot_validates_nothing_twice(snp_booted: Scene) -> None:
    validations = [event for event in snp_booted.boot_events if isinstance(event, Validation)]
    assert len(validations) > 512  # .bss..decrypted, page by page (A35)
    assert not [event for event in validations if event.is_double]
    # a page of 2 MiB is refused, as guest_memfd has small ones, and its 4 KiB pages follow (N19)
    refused = {(event.pages, event.result) for event in validations if event.result}
    assert refused <= {(512, RMP_FAIL_SIZE_MISMATCH)}


def test_only_kernels_that_know_svsm_ask_for_their_vmpl(series: str, snp_booted: Scene) -> None:
    asked = [event for event in snp_booted.boot_events if isinstance(event, PermissionChange)]
    assert len(asked) == (1 if series == "6.12" else 0)


def test_page_tables_and_rmp_agree_after_boot(snp: Scene) -> None:
    assert snp.sev.snp is not None
    states = snp.sev.snp.rmp.dump()
    shared = {gfn for gfn, state in enumerate(states) if state == SHARED}
    assert shared == snp.boot_shared
    assert ASSIGNED not in states


# Conversions under SEV-ES -------------------------------------------------------------------------


def test_es_conversion_notifies_after_the_flip(es: Scene) -> None:
    guest, gpa = es.guest, es.guest.gpa(Region.D, 3)
    assert guest.set_memory_decrypted(guest.gva(Region.D, 3), 1).value == 0
    assert es.steps() == ["flip", "hypercall"]
    call = es.host.calls[0]
    assert (call.nr, call.a0, call.a1, call.a2) == (12, gpa, 1, 0)
    assert (call.cpl, call.is_64bit, call.is_vmcall) == (0, True, False)
    assert guest.set_memory_encrypted(guest.gva(Region.D, 3), 1).value == 0
    assert es.host.calls[1].a2 == 0x10


def test_the_host_sees_only_what_the_ghcb_gave(es: Scene) -> None:
    seen: list[tuple[int, int, int]] = []

    class Nosy(Host):
        def hypercall(self, call: Hypercall) -> int:
            vcpu: VcpuAccess = call.vcpu
            seen.append(tuple(vcpu.read_register(name) for name in ("rax", "rip", "r12")))
            vcpu.write_register("rip", 0xDEAD)
            return super().hypercall(call)

    es.machine.hooks.handler = Nosy()
    assert es.guest.set_memory_decrypted(es.guest.gva(Region.D, 3), 1).value == 0
    assert seen == [(12, 0, 0)]


def test_the_kernel_ignores_the_hosts_refusal(es: Scene) -> None:
    es.host.answer = 2**64 - 22
    assert es.guest.set_memory_decrypted(es.guest.gva(Region.D, 3), 2).value == 0
    assert len(es.host.calls) == 2


def test_a_raw_vmmcall_raises_vc(es: Scene) -> None:
    outcome = es.guest.raw_hypercall(Instruction.VMMCALL, RawRegisters(12), Mode.LONG64, 0)
    assert isinstance(outcome.end, ExceptionExit)
    assert (outcome.end.vector, outcome.end.error_code) == (29, 0x81)
    assert es.host.calls == []


# Conversions under SNP ----------------------------------------------------------------------------


def test_snp_decryption_gives_the_page_up_first(snp: Scene) -> None:
    guest, gfn = snp.guest, snp.guest.gpa(Region.D, 3) >> PAGE_SHIFT
    assert guest.set_memory_decrypted(guest.gva(Region.D, 3), 1).value == 0
    assert snp.steps() == ["rescind", "make shared", "flip"]
    assert snp.state(gfn) == SHARED
    assert snp.state(gfn + 1) == VALIDATED


def test_snp_encryption_accepts_the_page_after_the_flip(snp: Scene) -> None:
    guest, gfn = snp.guest, snp.guest.gpa(Region.D, 3) >> PAGE_SHIFT
    guest.set_memory_decrypted(guest.gva(Region.D, 3), 1)
    snp.sev.events.clear()
    snp.machine.ram.table_writes()
    assert guest.set_memory_encrypted(guest.gva(Region.D, 3), 1).value == 0
    assert snp.steps() == ["flip", "make private", "accept"]
    assert snp.state(gfn) == VALIDATED


def test_a_whole_leaf_is_converted_at_the_size_that_the_kernel_asks_for(
    series: str, snp: Scene
) -> None:
    guest, gfn = snp.guest, snp.guest.gpa(Region.L, 512) >> PAGE_SHIFT
    assert guest.set_memory_decrypted(guest.gva(Region.L, 512), 512).value == 0
    changes = [
        (event.gfn - gfn, event.pages, event.attributes)
        for event in snp.sev.events
        if isinstance(event, PageStateChange)
    ]
    if series == "6.1":  # VMGEXIT_PSC_MAX_ENTRY entries of 4 KiB at a time
        assert changes == [(0, 253, 0), (253, 253, 0), (506, 6, 0)]
    else:
        assert changes == [(0, 512, MAP_GPA_RANGE_PAGE_SZ_2M)]
    assert {snp.state(gfn + page) for page in range(512)} == {SHARED}
    assert snp.host.calls == []


def test_a_kernel_gives_an_ap_its_registers(series: str, snp: Scene) -> None:
    """The page is tagged before KVM hears of it, and is out of reach while the AP runs (N26, N58);
    a kernel that brings the AP up again makes a new page, and frees the old one."""
    if series == "6.1":
        pytest.skip("the CPU's APIC id is per-CPU data there")
    guest, aps = snp.guest, snp.sev.aps
    assert aps is not None
    at = Gva(guest.kernel.address("cpuid_to_apicid"))
    assert snp.machine.current.write_memory(at, (1).to_bytes(4, "little"))  # CPU 0 stands for it
    for _time in range(2):
        snp.sev.events.clear()
        assert guest.call("wakeup_cpu_via_vmgexit", 1, 0).value == 0
        tagged, created, *untagged = [
            event for event in snp.sev.events if isinstance(event, PermissionChange | VcpuCreation)
        ]
        assert isinstance(created, VcpuCreation)
        assert (tagged.gfn, tagged.result) == (created.gfn, 0)
        assert (created.apic_id, created.request, created.result) == (1, AP_CREATE, 0)
        assert created.gfn % 2 == 1  # the second page of a block of two
        assert aps.state(1) is ApState.RUNS
        assert snp.state(created.gfn) == FOREIGN
    assert [(event.result, snp.state(event.gfn)) for event in untagged] == [(0, VALIDATED)]


def test_encrypting_a_private_page_ends_an_snp_guest(snp: Scene) -> None:
    guest = snp.guest
    outcome = guest.set_memory_encrypted(guest.gva(Region.D, 3), 1)
    assert isinstance(outcome.end, Shutdown)
    assert "set 1, reason 2 (PVALIDATE failed)" in outcome.end.reason
    doubles = [e for e in snp.sev.events if isinstance(e, Validation) and e.is_double]
    assert len(doubles) == 1
    guest.reset()
    assert guest.set_memory_decrypted(guest.gva(Region.D, 3), 1).value == 0


def test_forgiven_it_only_is_reported(snp: Scene) -> None:
    assert snp.sev.snp is not None
    snp.sev.snp.forgives_double = True
    assert snp.guest.set_memory_encrypted(snp.guest.gva(Region.D, 3), 1).value == 0
    assert [e.is_double for e in snp.sev.events if isinstance(e, Validation)] == [True]


def test_a_refused_page_state_change_ends_the_guest(snp: Scene) -> None:
    refusing = RefusingHost()
    snp.machine.hooks.handler = refusing
    gpa = snp.guest.gpa(Region.D, 3)
    outcome = snp.guest.set_memory_decrypted(snp.guest.gva(Region.D, 3), 1)
    assert isinstance(outcome.end, Shutdown)
    assert "set 1, reason 1 (a page-state change failed)" in outcome.end.reason
    assert refusing.changes == [(gpa, 1, 0)]
    assert refusing.calls == []


def test_a_reset_forgets_page_states(snp: Scene) -> None:
    guest, gfn = snp.guest, snp.guest.gpa(Region.D, 3) >> PAGE_SHIFT
    guest.set_memory_decrypted(guest.gva(Region.D, 3), 1)
    guest.reset()
    assert snp.state(gfn) == VALIDATED
    assert not snp.sev.events


def test_the_content_after_decryption_is_what_dram_holds(snp: Scene) -> None:
    guest, gpa = snp.guest, snp.guest.gpa(Region.D, 3)
    guest.memset(guest.gva(Region.D, 3), 0x41, PAGE_SIZE)
    guest.set_memory_decrypted(guest.gva(Region.D, 3), 1)
    loaded = guest.load(guest.gva(Region.D, 3)).value
    assert loaded != 0x4141_4141_4141_4141
    assert loaded == int.from_bytes(snp.machine.ram.read(Gpa(gpa), 8, private=False), "little")


@pytest.mark.parametrize("series", [pytest.param("6.1", marks=pytest.mark.soak), "6.12"])
@pytest.mark.parametrize("answer", [-22, 11])
def test_an_ordered_answer_reaches_the_guest(series: str, answer: int) -> None:
    kernel_file(series)
    program = parse_text(
        f"guestemu-program 1\nguest linux:{series}\nsev snp\nmemory 128\n---\n"
        f"answer value={answer} count=1\nset_memory_decrypted D[3] pages=1\n",
        "ordered.prog",
    )
    run = run_program(program)
    assert run_word(run) == "terminated"
    assert run.outcome.violations == ()
    (record,) = run.outcome.results[1].exits
    assert isinstance(record, MapGpaRangeExit)
    assert (record.ret, record.origin) == (answer & 2**64 - 1, "psc-buffer")


# Configuration and snapshots ----------------------------------------------------------------------


def test_a_snapshot_keeps_page_states(series: str, snp_booted: Scene, snapshot: Path) -> None:
    kernel = LOADER.kernel(kernel_file(series))
    prepared = load_snapshot(snapshot, kernel, linux_config(128, 39, "snp"), DEFAULT_COMMAND_LINE)
    scene = Scene(prepared, []).start()
    assert scene.sev.snp is not None
    states = scene.sev.snp.rmp.dump()
    assert {gfn for gfn, state in enumerate(states) if state == SHARED} == snp_booted.boot_shared
    assert scene.guest.set_memory_decrypted(scene.guest.gva(Region.D, 3), 1).value == 0
    assert scene.steps() == ["rescind", "make shared", "flip"]


@pytest.mark.parametrize("status", [2, 4, 5, 6, 8])
def test_a_status_that_no_processor_reports_is_refused(series: str, status: int) -> None:
    kernel = LOADER.kernel(kernel_file(series))
    config = msgspec.structs.replace(linux_config(128, 39, "sev"), sev_status=status)
    with pytest.raises(InputError, match=r"take 1 \(SEV\), 3 \(SEV-ES\) or 7 \(SEV-SNP\)"):
        build_machine(kernel, config, Console())
