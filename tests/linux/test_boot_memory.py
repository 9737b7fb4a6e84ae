# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that real kernels share at boot: swiotlb, .bss..decrypted, atomic pools, DMA pools."""

from __future__ import annotations

import pytest

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE
from guestemu.abi.errors import InputError
from guestemu.events.exits import HypercallExit
from guestemu.guest.linux.boot import DEFAULT_COMMAND_LINE, STOP_AT, boot_kernel, describe_end
from guestemu.guest.linux.calls import KernelCalls
from guestemu.guest.linux.load import LOADER, linux_config
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.kernel.arguments import resolve

SMALL_SWIOTLB = "swiotlb=2048 "
SHARED, PRIVATE = 0, 16
PMD = 2 << 20


def notified(recorder):
    """(GPA, pages, attributes) of the page-status hypercalls so far."""
    return [told.args[:3] for told in recorder.exits if isinstance(told, HypercallExit)]


def runs(calls):
    """Calls on adjacent ranges with equal attributes as one: (GPA, pages, attributes)."""
    found = []
    for gpa, pages, attributes in calls:
        if found and found[-1][0] + (found[-1][1] << 12) == gpa and found[-1][2] == attributes:
            found[-1][1] += pages
        else:
            found.append([gpa, pages, attributes])
    return [tuple(run) for run in found]


@pytest.mark.parametrize("series", [pytest.param("6.1", marks=pytest.mark.soak), "6.12"])
def test_a_boot_shares_64_mib_of_swiotlb_in_2_mib_calls(series, image_of):
    assert SMALL_SWIOTLB in DEFAULT_COMMAND_LINE
    recorder = BootRecorder()
    booted = boot_kernel(
        LOADER.kernel(image_of(series)),
        linux_config(256, 39, "sev"),
        recorder,
        command_line=DEFAULT_COMMAND_LINE.replace(SMALL_SWIOTLB, ""),
    )
    assert describe_end(booted) == f"reached {STOP_AT}"
    booted.machine.close()
    calls = notified(recorder)[-32:]
    assert {call[1:] for call in calls} == {(512, SHARED)}
    assert [run[1:] for run in runs(calls)] == [(64 << 20 >> 12, SHARED)]


def test_a_kernel_that_does_not_get_to_a_later_stop_is_said_to_have_missed_that(image_of):
    kernel = LOADER.kernel(image_of("6.12"))
    booted = boot_kernel(
        kernel, linux_config(128, 39, "sev"), BootRecorder(), until="prepare_namespace", budget=1000
    )
    with pytest.raises(InputError, match="did not reach prepare_namespace: budget used up in "):
        KernelCalls(booted, 1000)
    booted.machine.close()


@pytest.mark.parametrize("series", [pytest.param("6.1", marks=pytest.mark.soak), "6.12"])
def test_unused_bss_decrypted_is_told_page_by_page(kernel):
    """A36: one set_memory_encrypted() of a part of a 2 MiB leaf, which is split; so one call per
    page. A whole leaf takes one."""
    guest = kernel.guest
    symbols = guest.kernel.symbols
    first = symbols["__start_bss_decrypted_unused"] - 0xFFFF_FFFF_8000_0000
    outcome = guest.call("mem_encrypt_free_decrypted_mem")
    assert outcome.end is None
    calls = notified(kernel.recorder)
    pages = (-first % PMD) >> 12
    assert len(calls) == pages
    assert runs(calls) == [(first, pages, PRIVATE)]
    assert "Freeing unused decrypted memory" in guest.console.text.splitlines()[-1]


def test_unused_bss_decrypted_is_kept_when_its_leaf_cannot_be_split(kernel):
    guest = kernel.guest
    guest.fail_split(0)
    outcome = guest.call("mem_encrypt_free_decrypted_mem")
    guest.clear_faults()
    assert outcome.end is None
    assert notified(kernel.recorder) == []
    assert "failed to free unused decrypted pages" in guest.console.text.splitlines()[-1]


def test_three_atomic_pools_of_128_kib(kernel):
    """B8: kernel, DMA and DMA32 zones."""
    assert kernel.guest.call("dma_atomic_pool_init").value == 0
    pools = runs(notified(kernel.recorder))
    assert sum(pages for _gpa, pages, _attributes in pools) == 3 * (128 << 10 >> 12)
    assert {attributes for _gpa, _pages, attributes in pools} == {SHARED}
    assert min(gpa for gpa, _pages, _attributes in pools) < 16 << 20  # ZONE_DMA


def test_a_dma_pool_shares_a_page_for_64_bytes_and_gives_it_back_at_its_end(kernel):
    guest = kernel.guest
    device, name, handle = (
        resolve(text, guest).value for text in ("device", "string:blocks", "page:0")
    )
    pool = guest.calls.must("dma_pool_create", name, device, 64, 64, 0)
    assert notified(kernel.recorder) == []
    block = guest.calls.must("dma_pool_alloc", pool, 0xCC0, handle)
    bus = guest.calls.read_u64(handle)
    calls = notified(kernel.recorder)
    assert calls == [(bus & ~0xFFF, 1, SHARED)]
    other = guest.calls.must("dma_pool_alloc", pool, 0xCC0, handle)
    assert {block & ~0xFFF} == {other & ~0xFFF}
    for address in (block, other):
        guest.call("dma_pool_free", pool, address, bus & ~0xFFF | address & 0xFFF)
    assert notified(kernel.recorder) == calls
    guest.call("dma_pool_destroy", pool)
    assert notified(kernel.recorder) == [*calls, (bus & ~0xFFF, 1, PRIVATE)]


@pytest.mark.parametrize("words", [("dma_alloc_attrs", "device", "64", "page:0", "0xcc0", "0")])
def test_a_small_coherent_buffer_takes_a_page_each(kernel, words):
    guest = kernel.guest
    function, *texts = words
    values = [resolve(text, guest).value for text in texts]
    guest.calls.must(function, *values)
    guest.calls.must(function, *values)
    assert [call[1:] for call in notified(kernel.recorder)] == [(1, SHARED)] * 2


def test_a_page_shared_and_never_written_holds_ciphertext(kernel):
    """Nobody clears swiotlb after its conversion: through C=0 it reads as the private zeros do in
    DRAM. A page written since reads as written."""
    guest = kernel.guest
    ram = guest.machine.ram
    written = set(ram.shared_current())
    shared = [gfn for gfn in range(ram.frames) if not guest.leaf_map.private[gfn]]
    untouched = [gfn for gfn in shared if gfn not in written]
    assert len(untouched) == 1024  # swiotlb=2048, slots of 2 KiB
    zeros = bytes(PAGE_SIZE)
    for gfn in untouched[:3]:
        assert ram.read(gfn << PAGE_SHIFT, PAGE_SIZE) == zeros
        assert ram.read(gfn << PAGE_SHIFT, PAGE_SIZE, private=False) == ram.dram(gfn) != zeros
    ram.write(untouched[0] << PAGE_SHIFT, zeros, private=False)
    assert ram.read(untouched[0] << PAGE_SHIFT, PAGE_SIZE, private=False) == zeros
