# SPDX-License-Identifier: GPL-2.0-or-later
"""A real kernel that leaves and enters through migration handlers in mirror VMs."""

from __future__ import annotations

import pytest

from guestemu.abi.addresses import PAGE_SIZE, Gpa
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.machine.machine import Machine
from guestemu.migration.handler_link import FIRMWARE_MAILBOX, FIRMWARE_PAGES, HandlerRefusal
from guestemu.migration.sweep.experiment import Experiment
from guestemu.migration.sweep.handler_path import VMSA_FRAME
from guestemu.migration.sweep.instants import FetchOrder, SweepResult, migrate, sweep
from guestemu.migration.sweep.station import touched_frames

OWN = {*FIRMWARE_PAGES, FIRMWARE_MAILBOX, FIRMWARE_MAILBOX + 1}
CASES = [
    pytest.param("6.1", False, "sev", marks=pytest.mark.soak),
    pytest.param("6.1", False, "es", marks=pytest.mark.soak),
    pytest.param("6.12", True, "sev", marks=pytest.mark.soak),
]


def page(machine: Machine, gfn: int, private: bool) -> bytes:
    """As one view reads it, which is then the current one: the page counts as written."""
    return machine.ram.read(Gpa(gfn * PAGE_SIZE), PAGE_SIZE, private)


@pytest.mark.parametrize(("series", "split", "sev"), CASES)
def test_no_difference_and_no_loss(experiment_of, series: str, split: bool, sev: str) -> None:
    experiment = experiment_of(series, split, "handler", sev)
    result = SweepResult()
    every = experiment.recording.length // 12
    assert len(list(sweep(experiment, every, FetchOrder.DIRTY_FIRST, result))) > 11
    assert result.first == []
    assert (result.differences, result.lost_defined) == (0, 0)


@pytest.mark.soak
def test_every_step_of_the_conversion_itself(experiment_of) -> None:
    """Before and after each PTE store, INVLPG, CR4 write, WBINVD and VMMCALL."""
    experiment = experiment_of("6.1", False, "handler")
    events = {event.index for event in experiment.recording.events}
    for index in sorted(events | {index + 1 for index in events}):
        point = migrate(experiment, index, FetchOrder.DIRTY_FIRST)
        assert (point.difference, point.lost_defined) == (None, False), index


def test_status_first_loses_from_the_first_shared_store_on(experiment_of) -> None:
    """C15 on this path: the handler exports what C=1 reads of a shared page (F15)."""
    experiment = experiment_of("6.1", False, "handler")
    first = next(store.index for store in experiment.recording.stores if not store.is_private)
    for index in (first, first + 1):
        point = migrate(experiment, index, FetchOrder.STATUS_FIRST)
        assert point.lost_defined == (index > first), index


def arrived(experiment: Experiment) -> Experiment:
    """The guest at both ends, behind its conversion, before it goes on."""
    departure = experiment.leave(experiment.recording.length - 1)
    experiment.arrive(departure, experiment.packets(departure))
    return experiment


def test_it_converts_pages_afterwards(experiment_of) -> None:
    """All hypercalls of the program's tail are made at the destination: 512 pages and others."""
    experiment = experiment_of("6.1", False, "handler")
    departure = experiment.leave(experiment.recording.length - 1)
    experiment.arrive(departure, experiment.packets(departure))
    ended, content = experiment.go_on()
    assert experiment.difference(ended, departure) is None
    assert content == experiment.page_at_end
    calls = [
        record for record in experiment.destination.host.exits if record.nr == KVM_HC_MAP_GPA_RANGE
    ]
    assert len(calls) >= 5


def test_a_page_that_was_changed_on_the_way_ends_the_migration(experiment_of) -> None:
    experiment = experiment_of("6.1", False, "handler")
    departure = experiment.leave(3000)
    packets = experiment.packets(departure)
    index, private = next((i, one) for i, one in enumerate(packets) if one.is_private)
    data = bytes([private.data[0] ^ 1]) + private.data[1:]
    packets[index] = type(private)(private.gfn, True, data, private.header)
    with pytest.raises(HandlerRefusal, match="authentication"):
        experiment.arrive(departure, packets)


@pytest.mark.soak  # test_kernel_es.py has the save area in its packet
def test_a_save_area_crosses_as_a_page(experiment_of) -> None:
    """F16: no page table of the guest maps it."""
    experiment = arrived(experiment_of("6.1", False, "handler", "es"))
    source, target = experiment.source.machine, experiment.destination.machine
    assert page(source, VMSA_FRAME, True) == page(target, VMSA_FRAME, True)
    assert any(page(target, VMSA_FRAME, True))
    assert page(source, VMSA_FRAME, False) != page(target, VMSA_FRAME, False)


def test_both_ends_hold_the_same_guest(experiment_of) -> None:
    """All of it: private pages as C=1 reads them, shared ones as C=0 does. Private content is other
    bytes in the two hosts' DRAM. Frames that both views have in common are not encrypted here. This
    is the last test: behind it all pages travel."""
    experiment = arrived(experiment_of("6.1", False, "handler"))
    source, target = experiment.source, experiment.destination
    shared = source.host.shared
    assert target.host.shared == shared
    touched = {*touched_frames(source.machine), *touched_frames(target.machine)}
    own = OWN | {VMSA_FRAME} | set(range(source.machine.ram.low))
    frames = sorted(touched - own)
    assert len(frames) > 5000
    assert any(shared[gfn] for gfn in frames)
    different = [
        gfn
        for gfn in frames
        if page(source.machine, gfn, not shared[gfn]) != page(target.machine, gfn, not shared[gfn])
    ]
    assert different == []
    in_dram = [
        page(source.machine, gfn, False) == page(target.machine, gfn, False) for gfn in frames
    ]
    assert in_dram == [bool(shared[gfn]) for gfn in frames]
