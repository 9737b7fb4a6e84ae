# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of the known defects a kernel has: a small experiment for each, on a booted guest.

The defects are those of docs/findings.md. Every experiment judges by what the guest did: its
hypercalls and MSR writes, its page tables, what it returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, Gva
from guestemu.abi.errno import EINVAL
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.abi.msrs import MSR_KVM_MIGRATION_CONTROL
from guestemu.abi.regions import Region
from guestemu.abi.x86 import PTE_ADDRESS_MASK
from guestemu.events.exits import HypercallExit, WrmsrExit
from guestemu.guest.linux.dma import KernelDma
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.host.registry import load_host
from guestemu.kernel.kexec import kexec
from guestemu.machine.exits import BudgetExhausted
from guestemu.machine.paging import walk
from guestemu.study.outcomes.cells import ABSENT, FAILED, Verdict
from guestemu.study.outcomes.known import KNOWN

SEEN: Final = "seen"
NOT_SEEN: Final = "not seen"

_SHORT_BUDGET: Final = 300_000
_HUGE_PAGES: Final = 1 << 19
_REFUSE: Final = -EINVAL
_HOLE: Final = 0x4000800
_MANY: Final = 64
_CONVERSION_PAGE: Final = 8


class Defect(msgspec.Struct, frozen=True):
    """One row: its name, a sentence, and the experiment."""

    name: str
    sentence: str
    measure: Callable[[LinuxGuest], Verdict]


class _Bench:
    """A guest put back to its start, with a host that answers `answer` and notes every exit."""

    def __init__(self, guest: LinuxGuest, answer: int = 0) -> None:
        self.guest = guest
        self._recorder = BootRecorder(answer)
        guest.machine.hooks.handler = self._recorder
        guest.reset()
        self.flips()

    def flips(self) -> int:
        """Pages whose C-bit changed since the last call."""
        changes = self.guest.leaf_map.update(self.guest.machine.ram.table_writes())
        return sum(flip.pages for flip in changes)

    def told(self) -> int:
        """Pages of which the host was notified since the last call."""
        pages = sum(
            told.args[1]
            for told in self._recorder.exits
            if isinstance(told, HypercallExit) and told.nr == KVM_HC_MAP_GPA_RANGE
        )
        self._recorder.exits.clear()
        return pages

    def hypercalls(self) -> int:
        """Hypercalls so far."""
        return sum(isinstance(told, HypercallExit) for told in self._recorder.exits)

    def migration_control(self) -> list[int]:
        """What was written to the MSR since the last call."""
        values = [
            told.args[0]
            for told in self._recorder.exits
            if isinstance(told, WrmsrExit) and told.nr == MSR_KVM_MIGRATION_CONTROL
        ]
        self._recorder.exits.clear()
        return values


def _seen(is_seen: bool, detail: str) -> Verdict:
    return Verdict(SEEN if is_seen else NOT_SEEN, detail)


def _tells(guest: LinuxGuest) -> bool:
    """Whether this kernel makes a hypercall for a conversion at all."""
    bench = _Bench(guest)
    guest.set_memory_decrypted(guest.gva(Region.D, _CONVERSION_PAGE), 1)
    return bench.told() > 0


def _never_told(guest: LinuxGuest) -> Verdict:
    bench = _Bench(guest)
    guest.set_memory_decrypted(guest.gva(Region.D, _CONVERSION_PAGE), 1)
    pages, told = bench.flips(), bench.told()
    return _seen(pages == 1 and not told, f"{pages} page converted, the host told of {told}")


def _two_gib(guest: LinuxGuest) -> Verdict:
    """The notifier alone, as the length is its own: a range that overflows is walked not at all."""
    bench = _Bench(guest)
    start = guest.gva(Region.L, 0)
    told = []
    for pages in (1, _HUGE_PAGES):
        guest.call("amd_enc_status_change_finish", start, pages, 0)
        told.append(bench.told())
    return _seen(told[0] > 0 and told[1] == 0, f"of {_HUGE_PAGES} pages the host is told {told[1]}")


def _frame_zero(guest: LinuxGuest) -> Verdict:
    _Bench(guest)
    guest.set_budget(_SHORT_BUDGET)
    outcome = guest.set_memory_decrypted(guest.direct_map, 1)
    if isinstance(outcome.end, BudgetExhausted):
        return Verdict(SEEN, f"does not return: {guest.location(outcome.end.rip)}")
    return Verdict(NOT_SEEN, f"returned {outcome.value}")


def _hole(guest: LinuxGuest) -> Verdict:
    """The second page of two has no mapping."""
    _Bench(guest)
    first = guest.gva(Region.D, _CONVERSION_PAGE)
    hole = guest.gva(Region.D, _CONVERSION_PAGE + 1)
    guest.edit_entry(hole, True)
    guest.set_budget(_SHORT_BUDGET)
    outcome = guest.set_memory_decrypted(first, 2)
    leaf = walk(guest.machine.ram, guest.machine.pte_cbit, guest.root, hole)
    own = guest.gpa(Region.D, _CONVERSION_PAGE + 1)
    if not leaf.is_present:
        return Verdict(NOT_SEEN, f"returned {outcome.value}, the hole has no mapping")
    gpa = leaf.entry & PTE_ADDRESS_MASK & ~guest.machine.pte_cbit
    return _seen(
        outcome.value == 0 and gpa != own,
        f"returned {outcome.value}, the hole maps GPA {gpa:#x}",
    )


def _half_way(guest: LinuxGuest) -> Verdict:
    """A range over two 2 MiB leaves; the second split gets no page table."""
    if not _tells(guest):
        return Verdict(ABSENT, "tells the host nothing")
    bench = _Bench(guest)
    guest.fail_split(1)
    outcome = guest.set_memory_decrypted(guest.gva(Region.L, 511), 2)
    guest.clear_faults()
    pages, told = bench.flips(), bench.told()
    detail = f"returned {outcome.value}: {pages} pages converted, the host told of {told}"
    return _seen(bool(outcome.value) and pages > told, detail)


def _told_of_failure(guest: LinuxGuest) -> Verdict:
    """The very first split gets no page table: nothing is converted."""
    bench = _Bench(guest)
    guest.fail_split(0)
    outcome = guest.set_memory_decrypted(guest.gva(Region.L, 511), 1)
    guest.clear_faults()
    pages, told = bench.flips(), bench.told()
    detail = f"returned {outcome.value}: {pages} pages converted, the host told of {told}"
    if not outcome.value:
        return Verdict(FAILED, f"the split did not fail; {detail}")
    return _seen(told > pages, detail)


def _refusal(guest: LinuxGuest) -> Verdict:
    if not _tells(guest):
        return Verdict(ABSENT, "tells the host nothing")
    bench = _Bench(guest, _REFUSE)
    outcome = guest.set_memory_decrypted(guest.gva(Region.D, _CONVERSION_PAGE), 1)
    pages = bench.flips()
    detail = f"the host answers {_REFUSE}: returned {outcome.value}, {pages} page shared"
    return _seen(outcome.value == 0 and pages == 1, detail)


def _cpu_offline(guest: LinuxGuest) -> Verdict:
    bench = _Bench(guest)
    guest.call("kvm_cpu_down_prepare", 0)
    down = bench.migration_control()
    guest.call("kvm_cpu_online", 0)
    up = bench.migration_control()
    if not down:
        return Verdict(NOT_SEEN, "MIGRATION_CONTROL is not written")
    return _seen(
        down[-1] == 0 and 1 not in up, f"a CPU goes: {down}, comes back: {up or 'nothing'}"
    )


def _kexec_hole(guest: LinuxGuest) -> Verdict:
    if not _tells(guest):
        return Verdict(ABSENT, "tells the host nothing")
    report = kexec(guest, guest.kernel, load_host("map-gpa-range"), _HOLE)
    return _seen(report.stale_pages > 0, f"{report.stale_pages} pages stay shared for the host")


def _bss_decrypted(guest: LinuxGuest) -> Verdict:
    if not _tells(guest):
        return Verdict(ABSENT, "tells the host nothing")
    bench = _Bench(guest)
    guest.call("mem_encrypt_free_decrypted_mem")
    calls = bench.hypercalls()
    pages = bench.told()
    return _seen(calls > _MANY, f"{calls} hypercalls for {pages} pages")


def _early_page_more(guest: LinuxGuest) -> Verdict:
    """One byte of a page, from its middle on: one page too many is converted, or told."""
    bench = _Bench(guest)
    start = Gva(guest.gva(Region.D, _CONVERSION_PAGE) + PAGE_SIZE // 2)
    guest.early_set_memory_decrypted(start, PAGE_SIZE // 2)
    pages, told = bench.flips(), bench.told()
    return _seen(max(pages, told) > 1, f"{pages} pages converted, the host told of {told}")


def _dma_pool_pages(guest: LinuxGuest) -> Verdict:
    """dma_alloc_pages() returns a struct page: an address in vmemmap."""
    _Bench(guest)
    guest.kernel.address("dma_alloc_pages")
    vmemmap = guest.calls.read_u64(guest.kernel.address("vmemmap_base"))
    dma = KernelDma(guest.booted, guest.calls)
    outcome = dma.struct_page(PAGE_SIZE, may_block=False)
    value = outcome.value or 0
    if not value:
        return Verdict(NOT_SEEN, "no page")
    what = "a struct page" if value >= vmemmap else "an address of the direct map"
    return _seen(value < vmemmap, f"{value:#x}, {what}")


_EXPERIMENTS: Final[dict[str, Callable[[LinuxGuest], Verdict]]] = {
    "never-told": _never_told,
    "told-of-failure": _told_of_failure,
    "2gib-overflow": _two_gib,
    "frame-0": _frame_zero,
    "hole-mapped": _hole,
    "half-way": _half_way,
    "early-page-more": _early_page_more,
    "refusal-ignored": _refusal,
    "cpu-offline": _cpu_offline,
    "kexec-stale": _kexec_hole,
    "bss-decrypted": _bss_decrypted,
    "dma-pool-pages": _dma_pool_pages,
}

DEFECTS: Final = tuple(
    Defect(known.name, known.sentence, _EXPERIMENTS[known.name])
    for known in KNOWN
    if known.name in _EXPERIMENTS
)
"""Every known defect that has an experiment of its own, in the order of the table."""


def measure(guest: LinuxGuest, defect: Defect) -> Verdict:
    """Does the experiment; the guest keeps its budget and is reset."""
    budget = guest.budget
    try:
        return defect.measure(guest)
    finally:
        guest.set_budget(budget)
        guest.reset()
