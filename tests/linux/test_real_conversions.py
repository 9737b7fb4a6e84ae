# SPDX-License-Identifier: GPL-2.0-or-later
"""What set_memory_encrypted/decrypted of real 6.1 and 6.12 kernels do, case by case."""

from __future__ import annotations

import pytest

from guestemu.abi.addresses import Gva
from guestemu.abi.regions import Region
from guestemu.abi.x86 import PTE_PRESENT
from guestemu.events.base import kind_of
from guestemu.events.exits import HypercallExit, WrmsrExit
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.machine.callbacks import CodeHook
from guestemu.machine.engine import HOOK_CODE
from guestemu.machine.exits import BudgetExhausted, Hypercall
from guestemu.machine.paging import walk

SHARED, PRIVATE = 0, 16
ENOMEM = 12
LOOP_BUDGET = 100_000


def decrypt(kernel, region, page, pages):
    return kernel.guest.set_memory_decrypted(Gva(kernel.gva(region, page)), pages)


def encrypt(kernel, region, page, pages):
    return kernel.guest.set_memory_encrypted(Gva(kernel.gva(region, page)), pages)


def leaf(kernel, address):
    guest = kernel.guest
    return walk(guest.machine.ram, guest.machine.pte_cbit, guest.root, Gva(address))


def is_private(kernel, region, page):
    return bool(leaf(kernel, kernel.gva(region, page)).entry & kernel.guest.machine.pte_cbit)


def test_one_page_of_a_2m_leaf_splits_it_and_changes_only_that_page(kernel):
    assert leaf(kernel, kernel.gva(Region.L, 3)).level == 2
    assert decrypt(kernel, Region.L, 3, 1).value == 0
    assert leaf(kernel, kernel.gva(Region.L, 3)).level == 1
    assert [page for page in range(512) if not is_private(kernel, Region.L, page)] == [3]
    assert kernel.hypercalls(Region.L) == [(3, 1, SHARED)]


def test_the_same_conversion_again_changes_nothing_and_still_notifies(kernel):
    decrypt(kernel, Region.D, 3, 1)
    kernel.hypercalls(Region.D)
    kernel.flips()
    assert decrypt(kernel, Region.D, 3, 1).value == 0
    assert kernel.flips() == []
    assert kernel.hypercalls(Region.D) == [(3, 1, SHARED)]


def test_a_whole_aligned_leaf_is_kept_and_reported_as_512_pages(kernel):
    assert decrypt(kernel, Region.L, 512, 512).value == 0
    assert leaf(kernel, kernel.gva(Region.L, 512)).level == 2
    assert kernel.hypercalls(Region.L) == [(512, 512, SHARED)]


def test_513_pages_make_two_hypercalls(kernel):
    assert decrypt(kernel, Region.L, 512, 513).value == 0
    assert kernel.hypercalls(Region.L) == [(512, 512, SHARED), (1024, 1, SHARED)]
    assert leaf(kernel, kernel.gva(Region.L, 1024)).level == 1


def test_one_page_of_a_shared_leaf_reports_the_whole_leaf(kernel):
    decrypt(kernel, Region.L, 512, 512)
    kernel.hypercalls(Region.L)
    assert decrypt(kernel, Region.L, 514, 1).value == 0
    assert leaf(kernel, kernel.gva(Region.L, 514)).level == 2
    assert kernel.hypercalls(Region.L) == [(512, 512, SHARED)]


def test_split_leaves_stay_split_after_the_way_back(kernel):
    decrypt(kernel, Region.L, 3, 1)
    encrypt(kernel, Region.L, 3, 1)
    kernel.hypercalls(Region.L)
    decrypt(kernel, Region.L, 0, 512)
    assert kernel.hypercalls(Region.L) == [(page, 1, SHARED) for page in range(512)]


def test_a_vmalloc_address_converts_the_direct_map_too(kernel):
    assert decrypt(kernel, Region.V, 5, 1).value == 0
    assert not is_private(kernel, Region.D, 5)
    assert not is_private(kernel, Region.V, 5)
    assert kernel.hypercalls(Region.D) == [(5, 1, SHARED)]


def test_no_pages_is_success_without_a_hypercall(kernel):
    assert decrypt(kernel, Region.D, 3, 0).value == 0
    assert kernel.hypercalls(Region.D) == []
    assert kernel.flips() == []


def test_a_misaligned_address_warns_once_and_is_rounded_down(kernel):
    address = Gva(kernel.gva(Region.D, 7) + 5)
    first = kernel.guest.set_memory_decrypted(address, 1)
    assert first.value == 0
    assert len(first.warnings) == 1
    assert "__set_memory_enc_pgtable" in first.warnings[0]
    assert kernel.hypercalls(Region.D) == [(7, 1, SHARED)]
    assert kernel.guest.set_memory_decrypted(address, 1).warnings == ()


def test_the_hosts_error_is_ignored(kernel):
    for answer in (-22, -1000):
        kernel.guest.machine.hooks.handler = BootRecorder(answer)
        assert decrypt(kernel, Region.D, 9, 1).value == 0
        assert not is_private(kernel, Region.D, 9)
        kernel.guest.reset()


def test_a_failed_split_returns_enomem_and_changes_nothing(kernel):
    kernel.guest.fail_split(0)
    assert decrypt(kernel, Region.L, 1025, 1).value == -ENOMEM
    assert leaf(kernel, kernel.gva(Region.L, 1025)).level == 2
    assert kernel.hypercalls(Region.L) == []
    kernel.guest.clear_faults()
    assert decrypt(kernel, Region.L, 1025, 1).value == 0


def test_a_failed_second_split_leaves_the_first_leaf_changed_and_untold(kernel):
    kernel.guest.fail_split(1)
    assert decrypt(kernel, Region.L, 511, 2).value == -ENOMEM
    assert not is_private(kernel, Region.L, 511)
    assert is_private(kernel, Region.L, 512)
    assert kernel.hypercalls(Region.L) == []


def test_a_hole_is_populated_with_frame_0_and_loops_in_the_notifier(kernel):
    kernel.guest.set_budget(LOOP_BUDGET)
    kernel.guest.edit_entry(Gva(kernel.gva(Region.D, 50)), clear_all=True)
    outcome = decrypt(kernel, Region.D, 50, 1)
    assert isinstance(outcome.end, BudgetExhausted)
    assert "looping in enc_dec_hypercall" in kernel.guest.location(outcome.end.rip)
    found = leaf(kernel, kernel.gva(Region.D, 50))
    assert found.is_present
    assert found.entry & 0xF_FFFF_F000 == 0
    assert kernel.hypercalls(Region.D) == []


def test_frame_0_is_flipped_and_loops_in_the_notifier(kernel):
    kernel.guest.set_budget(LOOP_BUDGET)
    outcome = kernel.guest.set_memory_decrypted(kernel.guest.direct_map, 1)
    assert isinstance(outcome.end, BudgetExhausted)
    assert "looping in enc_dec_hypercall" in kernel.guest.location(outcome.end.rip)
    assert not leaf(kernel, kernel.guest.direct_map).entry & kernel.guest.machine.pte_cbit


def test_a_hole_after_the_first_page_maps_the_page_before_and_reports_it_twice(kernel):
    kernel.guest.edit_entry(Gva(kernel.gva(Region.D, 51)), clear_all=True)
    assert decrypt(kernel, Region.D, 50, 2).value == 0
    assert kernel.hypercalls(Region.D) == [(50, 1, SHARED), (50, 1, SHARED)]


def test_the_last_page_of_ram_and_the_next_map_the_same_frame(kernel):
    guest = kernel.guest
    frames = guest.machine.config.frames
    last = Gva(guest.direct_map + (frames - 1 << 12))
    assert guest.set_memory_decrypted(last, 2).value == 0
    gpas = [told.args[0] for told in kernel.recorder.exits if told.nr == 12]
    assert gpas == [frames - 1 << 12, frames - 1 << 12]
    frame = leaf(kernel, last).entry >> 12 & 0xFFFFF
    assert leaf(kernel, last + 4096).entry >> 12 & 0xFFFFF == frame == frames - 1


def test_minus_one_pages_do_not_end(kernel):
    """The int -1 becomes a huge unsigned count inside the page-attribute code (A26b)."""
    kernel.guest.set_budget(LOOP_BUDGET)
    outcome = decrypt(kernel, Region.D, 3, -1)
    assert isinstance(outcome.end, BudgetExhausted)
    assert kernel.hypercalls(Region.D) == []


def test_an_absent_entry_keeps_its_frame_and_stays_absent(kernel):
    kernel.guest.edit_entry(Gva(kernel.gva(Region.D, 60)), clear_all=False)
    assert decrypt(kernel, Region.D, 60, 1).value == 0
    assert kernel.hypercalls(Region.D) == [(60, 1, SHARED)]
    assert not leaf(kernel, kernel.gva(Region.D, 60)).entry & PTE_PRESENT


@pytest.mark.soak  # `kernel test` has the 2 GiB; snippets have them in the corpora
@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_less_than_2_gib_is_told_2_gib_is_not(large_kernel):
    assert leaf(large_kernel, large_kernel.gva(Region.G, 0)).level == 3
    assert decrypt(large_kernel, Region.G, 0, 1 << 18).value == 0
    assert large_kernel.hypercalls(Region.G) == [(0, 1 << 18, SHARED)]
    large_kernel.guest.reset()
    assert decrypt(large_kernel, Region.G, 0, 1 << 19).value == 0
    assert large_kernel.hypercalls(Region.G) == []
    assert sum(flip.changed for flip in large_kernel.flips()) == 1 << 19


def test_the_steps_come_in_this_order(kernel):
    """Flushes, prepare, page table, flush, finish, hypercall (A2, A.3 generation iii)."""
    seen: list[str] = []
    names = (
        "vm_unmap_aliases",
        "cpa_flush",
        "amd_enc_status_change_prepare",
        "__change_page_attr_set_clr",
        "amd_enc_status_change_finish",
        "enc_dec_hypercall",
    )
    engine = kernel.guest.machine.engine

    def on(name):
        def note(_uc, _rip, _size, _user):
            seen.append(name)

        return CodeHook(note)

    for name in names:
        address = kernel.guest.kernel.address(name)
        engine.add_hook(HOOK_CODE, on(name), begin=address, end=address)
    engine.flush_blocks()

    class Host(BootRecorder):
        def hypercall(self, call: Hypercall) -> int:
            seen.append("VMMCALL")
            return super().hypercall(call)

    kernel.guest.machine.hooks.handler = Host()
    decrypt(kernel, Region.D, 3, 1)
    assert seen == [
        "vm_unmap_aliases",
        "cpa_flush",
        "amd_enc_status_change_prepare",
        "__change_page_attr_set_clr",
        "cpa_flush",
        "amd_enc_status_change_finish",
        "enc_dec_hypercall",
        "VMMCALL",
    ]


def test_going_off_line_disables_migration_and_nothing_enables_it_again(kernel):
    assert WrmsrExit(0x4B564D08, (1,), 1, 0) in kernel.guest.boot_exits
    assert kernel.guest.call("kvm_cpu_down_prepare", 0).value == 0
    assert kernel.recorder.exits == [WrmsrExit(0x4B564D08, (0,), 0, 0)]
    assert kernel.guest.call("kvm_cpu_online", 0).value == 0
    assert kernel.recorder.exits == [WrmsrExit(0x4B564D08, (0,), 0, 0)]


def test_boot_tells_ram_private_then_bss_shared_then_ready(kernel):
    boot = kernel.guest.boot_exits
    first = boot[:4]
    assert [kind_of(told) for told in first] == ["hypercall"] * 3 + ["wrmsr"]
    assert [told.args[2] for told in first[:3]] == [PRIVATE, PRIVATE, SHARED]
    assert first[2].args[1] == 512
    assert (first[3].nr, first[3].args) == (0x4B564D08, (1,))
    assert all(told.args[2] == SHARED for told in boot[4:] if isinstance(told, HypercallExit))


def test_a_store_to_a_hole_is_an_oops_with_its_address(kernel):
    kernel.guest.edit_entry(Gva(kernel.gva(Region.D, 50)), clear_all=True)
    outcome = kernel.guest.memset(Gva(kernel.gva(Region.D, 50)), 1, 8)
    assert outcome.value is None
    assert outcome.end.vector == 14
    assert outcome.end.cr2 == kernel.gva(Region.D, 50)
    assert kernel.guest.location(outcome.end.rip).startswith("mem")
