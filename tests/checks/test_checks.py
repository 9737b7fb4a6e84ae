# SPDX-License-Identifier: GPL-2.0-or-later
"""Every check fires on a planted defect, and is silent on what is right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

import msgspec
import pytest

from guestemu.abi.addresses import PAGE_SHIFT, Gpa, gpa_text
from guestemu.abi.msrs import MSR_KVM_MIGRATION_CONTROL
from guestemu.abi.regions import Region
from guestemu.abi.x86 import PTE_PRESENT, PTE_RW
from guestemu.checks.base import OpView, Violation
from guestemu.checks.progress import ProgressCheck
from guestemu.checks.results import Reference, ResultCheck
from guestemu.events.exits import HypercallExit
from guestemu.guest.snippet.guest import SnippetGuest
from guestemu.host.base import Host, Hypercall
from guestemu.host.registry import load_host
from guestemu.machine import layout
from guestemu.machine.exits import Shutdown, Unbacked
from guestemu.machine.machine import MachineConfig
from guestemu.program.ops import Op, OpKind, canonical_op
from guestemu.runner.testbed import Testbed

PASSING = ["5.17", "6.1", "6.12"]
GENERATIONS = ["5.10", "2020", *PASSING]
CONFIG = MachineConfig(frames=64 << 20 >> PAGE_SHIFT)
VMMCALL = b"\x0f\x01\xd9"


def op(kind: OpKind, *arguments: int, region: Region = Region.D, page: int = 0) -> Op:
    return canonical_op(Op(kind, arguments, region, page))


def decrypt(pages: int = 1, **where: object) -> Op:
    return op(OpKind.SET_MEMORY_DECRYPTED, pages, 0, **where)  # type: ignore[arg-type]


def encrypt(pages: int = 1, **where: object) -> Op:
    return op(OpKind.SET_MEMORY_ENCRYPTED, pages, 0, **where)  # type: ignore[arg-type]


CORRECT = [
    op(OpKind.INIT_PLATFORM, 0),
    decrypt(3, page=5),
    op(OpKind.WRITE, 0x5A, 0, 12000, page=5),
    encrypt(3, page=5),
    decrypt(1024, region=Region.L, page=512),
    encrypt(700, region=Region.L, page=512),
    decrypt(2, region=Region.V, page=8),
    encrypt(2, region=Region.V, page=8),
    op(OpKind.EARLY_SET_MEMORY_DECRYPTED, 8192, 0, page=20),
    op(OpKind.EARLY_SET_MEMORY_ENCRYPTED, 8192, 0, page=20),
    op(OpKind.DMA_ALLOC, 1, 9000, 0),
    op(OpKind.DMA_ALLOC, 2, 100, 1),
    op(OpKind.DMA_FREE, 1),
    op(OpKind.DMA_FREE, 2),
    op(OpKind.HYPERCALL, 12, 0x400001, 1, 0, 0),
    op(OpKind.CPU_OFFLINE),
]


@cache
def bed_of(generation: str, host: str = "map-gpa-range") -> Testbed:
    return Testbed(SnippetGuest(generation, CONFIG), load_host(host))


def violated(bed: Testbed, program: Iterable[Op]) -> list[tuple[str, int]]:
    return [(violation.check, violation.op) for violation in bed.run(program).violations]


# Silence ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generation", PASSING)
def test_a_correct_run_violates_nothing(generation: str) -> None:
    outcome = bed_of(generation).run(CORRECT)
    assert outcome.violations == ()
    assert all(result.outcome.end is None for result in outcome.results)


def test_kernel_5_10_converts_and_tells_nobody() -> None:
    found = {check for check, _ in violated(bed_of("5.10"), [decrypt(page=5)])}
    assert found == {"status"}


def test_the_patch_sets_attributes_are_not_those_of_the_merged_call() -> None:
    """2020 passes 1 for private; bit 4 says it since 5.14: the re-encryption is lost (M42)."""
    bed = bed_of("2020")
    assert violated(bed, [decrypt(page=5)]) == []
    assert ("status", 1) in violated(bed, [decrypt(page=5), encrypt(page=5)])


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_conversion_that_failed_is_not_judged_by_the_status(generation: str) -> None:
    program = [op(OpKind.FAIL_SPLIT, 0), decrypt(page=3, region=Region.L)]
    assert "status" not in {check for check, _ in violated(bed_of(generation), program)}


# Hosts with a planted defect ----------------------------------------------------------------------


def with_host(change: Callable[[Host], None], generation: str = "6.1") -> Testbed:
    host = load_host("map-gpa-range")
    change(host)
    return Testbed(SnippetGuest(generation, CONFIG), host)


def drops_the_last_page(host: Host) -> None:
    original = host.hypercall

    def hypercall(call: Hypercall) -> int:
        pages = call.a1 - 1 if call.a1 > 1 else call.a1
        return original(msgspec.structs.replace(call, a1=pages))

    host.hypercall = hypercall  # type: ignore[method-assign]


def converts_a_neighbour(host: Host) -> None:
    original = host.hypercall

    def hypercall(call: Hypercall) -> int:
        return original(msgspec.structs.replace(call, a1=call.a1 + 1))

    host.hypercall = hypercall  # type: ignore[method-assign]


def answers_minus_one(host: Host) -> None:
    original = host.hypercall

    def hypercall(call: Hypercall) -> int:
        original(call)
        return 2**64 - 1

    host.hypercall = hypercall  # type: ignore[method-assign]


def test_status_fires_when_the_host_drops_the_last_page() -> None:
    bed = with_host(drops_the_last_page)
    outcome = bed.run([decrypt(512, region=Region.L, page=512)])
    (found,) = [v for v in outcome.violations if v.check == "status"]
    last = (bed.guest.gpa(Region.L, 1023) >> 12) + 0
    assert f"{gpa_text(last)} is private, expected shared (inside" in found.message
    assert "1 frame differs" in found.message


def test_status_fires_when_the_host_converts_a_neighbour() -> None:
    outcome = with_host(converts_a_neighbour).run([decrypt(page=5)])
    assert any(
        v.check == "status" and "(outside the converted range" in v.message
        for v in outcome.violations
    )


def test_results_fires_on_an_answer_that_the_reference_does_not_give() -> None:
    outcome = with_host(answers_minus_one).run([op(OpKind.HYPERCALL, 12, 0x400000, 1, 0, 0)])
    (found,) = [v for v in outcome.violations if v.check == "results"]
    assert "expected 0x0" in found.message
    assert found.fact == "K3-c"


def test_results_is_silent_for_a_host_of_another_contract() -> None:
    host = load_host("bitmap-v6")
    bed = Testbed(SnippetGuest("2020", CONFIG), host, [ResultCheck()])
    assert violated(bed, [op(OpKind.HYPERCALL, 12, 0x400001, 0, 0, 0)]) == []


def test_ready_fires_when_the_host_lost_the_boot_notifications() -> None:
    def forgets(host: Host) -> None:
        host.hypercall = lambda call: 0  # type: ignore[method-assign]

    bed = with_host(forgets)
    assert ("ready", 1) in violated(bed, [decrypt(page=5), op(OpKind.INIT_PLATFORM, 0)])
    assert ("ready", 1) not in violated(
        bed_of("6.1"), [decrypt(page=5), op(OpKind.WRMSR, MSR_KVM_MIGRATION_CONTROL, 1)]
    ), "a raw write of the program is no kernel flow"


# Guests with a planted defect ---------------------------------------------------------------------


def guest_without_hypercalls() -> SnippetGuest:
    guest = SnippetGuest("6.1", CONFIG)
    ram = guest.machine.ram
    text = ram.read(Gpa(layout.TEXT), 0x8000)
    at = text.find(VMMCALL)
    assert at >= 0
    while at >= 0:
        ram.write(Gpa(layout.TEXT + at), b"\x90\x31\xc0")
        at = text.find(VMMCALL, at + 3)
    guest.machine.hooks.forget_code()
    guest.machine.checkpoint()
    return guest


def test_status_fires_when_the_guest_does_not_notify() -> None:
    bed = Testbed(guest_without_hypercalls(), load_host("map-gpa-range"))
    outcome = bed.run([decrypt(2, page=5)])
    assert outcome.results[0].exits == ()
    assert [(v.check, v.message.split(":")[0]) for v in outcome.violations] == [("status", "host")]


def test_status_names_the_page_tables_when_they_are_wrong() -> None:
    """A guest that flips a page of the range back on its way."""
    bed = bed_of("6.1")
    original = bed.guest.set_memory_decrypted

    def flips_back(gva: int, pages: int) -> object:
        outcome = original(gva, pages)  # type: ignore[arg-type]
        bed.guest.touch_cbit(gva, True)  # type: ignore[arg-type]
        return outcome

    bed.guest.set_memory_decrypted = flips_back  # type: ignore[method-assign,assignment]
    try:
        outcome = bed.run([decrypt(2, page=5)])
    finally:
        del bed.guest.set_memory_decrypted  # type: ignore[method-assign]
    assert [(v.check, v.message.split(":")[0]) for v in outcome.violations] == [
        ("status", "page tables")
    ]


def test_frames_fires_when_a_hole_is_populated() -> None:
    assert ("frames", 1) in violated(bed_of("6.1"), [op(OpKind.UNMAP, page=6), decrypt(3, page=5)])
    assert violated(bed_of("6.1"), [op(OpKind.UNMAP, page=60), decrypt(3, page=5)]) == []


def test_status_fires_on_the_unaligned_early_call() -> None:
    """CVE-2023-53996: a size rounded up from an unaligned start takes one page too many."""
    early = op(OpKind.EARLY_SET_MEMORY_DECRYPTED, 4000, 8, page=20)
    assert ("status", 0) in violated(bed_of("5.17"), [early])


def test_progress_fires_on_the_endless_walk() -> None:
    guest = SnippetGuest("6.1", CONFIG, budget=20_000)
    bed = Testbed(guest, load_host("map-gpa-range"))
    program = [op(OpKind.UNMAP, page=6), decrypt(1, page=6)]
    (found,) = [v for v in bed.run(program).violations if v.check == "progress"]
    assert "after 20000 basic blocks" in found.message


def test_free_pages_fires_when_pages_are_freed_shared() -> None:
    """The re-encryption of dma_free is answered with an error and not recorded (M3)."""
    program = [
        op(OpKind.DMA_ALLOC, 1, 4096, 0),
        op(OpKind.ANSWER, 2**64 - 22, 1),
        op(OpKind.DMA_FREE, 1),
    ]
    found = [v for v in bed_of("6.1").run(program).violations if v.check == "free-pages"]
    assert [v.op for v in found] == [2]
    assert "1 free frames are shared for the host" in found[0].message


# Checks by themselves -----------------------------------------------------------------------------


def progress(end: object) -> list[Violation]:
    bed = bed_of("6.1")
    views: list[OpView] = []
    bed.observe = views.append
    try:
        bed.run([op(OpKind.READ, 0)])
    finally:
        bed.observe = None
    (view,) = views
    view.outcome = msgspec.structs.replace(view.outcome, value=None, end=end)
    return list(ProgressCheck().after(view))


def test_progress_fires_on_a_shutdown_and_on_a_missing_page_of_ram() -> None:
    (shutdown,) = progress(Shutdown("vector 14: no gate", 0x1234))
    assert "0x1234" in shutdown.message
    assert "no gate" in shutdown.message
    (beyond,) = progress(Unbacked(0x7000_0000, 8, True, 0x1234))
    assert "0x70000000" in beyond.message
    assert progress(None) == []


def test_an_access_beyond_ram_is_reported_by_a_whole_run() -> None:
    """A leaf that maps a frame which does not exist; on hardware it would be MMIO."""
    guest = SnippetGuest("6.1", CONFIG)
    gva = guest.gva(Region.D, 7)
    ram = guest.machine.ram
    wrong = (CONFIG.frames << 12) | PTE_PRESENT | PTE_RW | 0x60 | guest.machine.pte_cbit
    leaf = guest._tables.walk(gva)
    ram.write_u64(leaf.entry_gpa, wrong)
    guest.machine.engine.flush_tlb()
    guest.machine.checkpoint()
    bed = Testbed(guest, load_host("map-gpa-range"))
    outcome = bed.run([op(OpKind.READ, 0, page=7)])
    assert isinstance(outcome.results[0].outcome.end, Unbacked)
    assert [v.check for v in outcome.violations] == ["progress"]


def record(nr: int, a0: int, a1: int, cpl: int = 0, is_64bit: bool = True) -> HypercallExit:
    return HypercallExit(nr, (a0, a1, 0, 0), 0, 0, cpl, is_64bit)


EINVAL, EPERM, ENOSYS = 2**64 - 22, 2**64 - 1, 2**64 - 1000
U32 = 2**32 - 1


@pytest.mark.parametrize(
    ("exit_record", "expected"),
    [
        (record(12, 0x1000, 1), 0),
        (record(12, 0x1001, 1), EINVAL),
        (record(12, 0x1000, 0), EINVAL),
        (record(12, 0, 2**64 - 1), 0),
        (record(12, 0x1000, 2**64 - 1), EINVAL),
        (record(12, 0x1001, 0, cpl=3), EPERM),
        (record(12, 0x1000, 1, cpl=1), EPERM),
        (record(99, 0x1000, 1), ENOSYS),
        (record(2**32 + 12, 0x1000, 1), ENOSYS),
        (record(2**32 + 12, 2**33 + 0x1000, 2**34 + 1, is_64bit=False), 0),
        (record(2**32 + 12, 0x1000, 2**34, is_64bit=False), EINVAL & U32),
        (record(99, 0, 0, is_64bit=False), ENOSYS & U32),
        (record(11, 0, 0), None),
    ],
)
def test_the_reference_of_the_map_gpa_range_call(
    exit_record: HypercallExit, expected: int | None
) -> None:
    """K3-c; privilege before arguments (M74), RAX and arguments truncated together (M73)."""
    assert Reference(0, 0).answer(exit_record) == expected


def test_an_ordered_answer_reaches_only_exits_that_reach_user_space() -> None:
    reference = Reference(7, 1)
    assert reference.answer(record(12, 0x1001, 1)) == EINVAL
    assert reference.answer(record(12, 0x1000, 1)) == 7
    assert reference.answer(record(12, 0x1000, 1)) == 0
