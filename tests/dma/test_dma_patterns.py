# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from recorded import dma_lines

from guestemu.abi.errors import InputError
from guestemu.dma.account import Account
from guestemu.dma.drivers import DRIVERS, dma_pool_page_bytes, dma_pool_pages, vring_bytes
from guestemu.dma.events import Alloc, Event, Free, Mark
from guestemu.dma.live import Accountant
from guestemu.dma.model import ModelRun
from guestemu.dma.patterns import is_pattern, parse_patterns, pattern_events
from guestemu.guest.dma.coherent import Origin


def events_of(text: str) -> list[Event]:
    return list(pattern_events(parse_patterns(text)))


def account_of(text: str) -> Account:
    accountant = Accountant()
    for event in events_of(text):
        accountant.see(event)
    assert accountant.anomalies.counts == {}
    return accountant.result()


@pytest.mark.parametrize(
    ("pattern", "trace", "device"),
    [
        ("virtio-net", "boot", "0000:00:02.0"),
        ("e1000", "io", "0000:00:03.0"),
        ("nvme:prp=0", "boot", "0000:00:06.0"),
        ("nvme:prp=1", "io", "0000:00:06.0"),
        ("virtio-blk", "boot", "0000:00:07.0"),
        ("ahci", "boot", "0000:00:08.0"),
        ("virtio-scsi", "io", "0000:00:0a.0"),
        ("xhci", "boot", "0000:00:0b.0"),
    ],
)
def test_a_probe_asks_for_what_the_real_driver_asked_for(
    pattern: str, trace: str, device: str
) -> None:
    recorded = [
        (line.size, frozenset(line.flags.split("|")))
        for line in dma_lines(trace)
        if line.device == device and line.verb == "alloc"
    ]
    made = [(event.size, event.gfp) for event in events_of(pattern) if isinstance(event, Alloc)]
    assert made == recorded


@pytest.mark.parametrize(
    ("descriptors", "align", "size"),
    [
        (256, 4096, 10246),
        (256, 64, 6726),
        (128, 4096, 5126),
        (1024, 4096, 28678),
        (64, 64, 1734),
        (14, 64, 438),
    ],
)
def test_vring_sizes(descriptors: int, align: int, size: int) -> None:
    assert vring_bytes(descriptors, align) == size


def test_dma_pool_pages() -> None:
    assert dma_pool_pages(17, 256) == 2
    assert dma_pool_pages(16, 256) == 1
    assert dma_pool_pages(3, 10000) == 3
    assert dma_pool_page_bytes(10000) == 10000


@pytest.mark.parametrize("name", list(DRIVERS))
def test_unbinding_gives_everything_back(name: str) -> None:
    account = account_of(f"{name}:scenario=unbind")
    assert account.total.allocations == account.total.frees > 0
    assert account.total.pages_requested == account.total.pages_released
    assert account.total.live_at_end == 0


def test_a_resize_allocates_the_new_rings_before_it_frees_the_old() -> None:
    events = events_of("virtio-blk:queues=1,scenario=resize,rounds=2")
    kinds = [type(event) for event in events]
    assert kinds == [Mark, Alloc, Mark, Alloc, Free, Mark, Alloc, Free]
    sizes = [event.size for event in events if isinstance(event, Alloc)]
    assert sizes == [vring_bytes(256, 64), vring_bytes(128, 64), vring_bytes(256, 64)]
    account = account_of("virtio-blk:queues=1,scenario=resize,rounds=2")
    assert account.by_phase["virtio-blk-resize-1"].peak_live_pages == 3


def test_a_reset_frees_the_rings_and_keeps_the_rest() -> None:
    account = account_of("nvme:queues=4,scenario=reset,rounds=3")
    reset = account.by_phase["nvme-reset-3"]
    assert reset.allocations == reset.frees == 8
    assert reset.peak_live_pages == reset.live_pages_at_end == account.total.peak_live_pages


def test_joined_patterns_share_a_clock_and_have_their_own_devices() -> None:
    events = events_of("e1000+e1000:descriptors=512+xhci")
    assert [event.line for event in events] == list(range(1, len(events) + 1))
    times = [event.time_ns for event in events]
    assert times == sorted(times)
    account = account_of("e1000+e1000:descriptors=512+xhci")
    assert list(account.by_device) == ["0000:00:01.0", "0000:00:02.0", "0000:00:03.0"]
    assert account.by_device["0000:00:02.0"].pages_requested == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("floppy", "no such pattern; use virtio-net"),
        ("", "pattern '': no such pattern"),
        ("nvme:depth=0", r"nvme: depth=0 is not a number from 2 to 65536 \(entries"),
        ("nvme:depth=" + "9" * 5000, "depth=99999999999999999999 is not"),
        ("nvme:depth=²", "is not a number"),
        ("nvme:width=3", "nvme: no parameter 'width'; use queues, depth, prp, scenario, rounds"),
        ("ahci:scenario=resize", "ahci: has no ring to resize; use scenario=reset"),
        ("ahci:scenario=fire", "no scenario 'fire'; use probe, unbind, resize, reset"),
        ("+".join(["e1000"] * 65), "65 drivers; use 64 at most"),
    ],
)
def test_wrong_patterns_are_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_patterns(text)


def test_patterns_are_told_from_files() -> None:
    assert is_pattern("nvme:depth=4+e1000")
    assert not is_pattern("nvme.trace")


def test_unplugging_gives_everything_back_and_probes_again() -> None:
    events = events_of("nvme:scenario=unplug,rounds=2")
    probe = sum(isinstance(event, Alloc) for event in events_of("nvme"))
    assert sum(isinstance(event, Alloc) for event in events) == 3 * probe
    assert sum(isinstance(event, Free) for event in events) == 2 * probe


def test_after_a_kexec_nothing_was_freed() -> None:
    events = events_of("e1000:scenario=kexec")
    addresses = [event.dma_addr for event in events if isinstance(event, Alloc)]
    assert len(set(addresses)) == len(addresses) == 4
    assert not any(isinstance(event, Free) for event in events)


def test_only_the_first_io_asks_for_pool_pages() -> None:
    events = events_of("nvme:prp=3,scenario=io,rounds=4")
    marks = [(at, event.name) for at, event in enumerate(events) if isinstance(event, Mark)]
    assert [name for _, name in marks[:3]] == ["nvme-probe", "nvme-io-1", "nvme-io-2"]
    assert marks[2][0] - marks[1][0] == 1 + 3
    assert marks[3][0] - marks[2][0] == 1


def test_a_legacy_driver_frees_the_buffer_of_each_command() -> None:
    events = events_of("legacy:scenario=io,commands=5,rounds=2")
    kinds = [type(event) for event in events if not isinstance(event, Mark)]
    assert kinds == [Alloc] + [Alloc, Free] * 10


@pytest.mark.parametrize(
    ("ram", "pages"),
    [(512, 16384), (1024, 16384), (2048, 31488), (8192, 125888), (65536, 262144)],
)
def test_swiotlb_by_ram(ram: int, pages: int) -> None:
    """Table of B9; up to whole segments of 64 pages."""
    (want,) = (event for event in events_of(f"swiotlb:ram={ram}") if isinstance(event, Alloc))
    assert (want.pages, want.origin) == (pages, Origin.BOOT)


def test_atomic_buffers_make_the_pools_grow() -> None:
    run = ModelRun("6.1", 256)
    run.steps(events_of("atomic:count=100"))
    report = run.report()
    assert report.pool_hits == 100
    assert report.pools is not None
    assert report.pools.pages_decrypted > 100
    assert report.hypercalls == 0
