# SPDX-License-Identifier: GPL-2.0-or-later
"""A real kernel, stopped inside a conversion and moved, goes on as if nothing had happened."""

from __future__ import annotations

import pytest

from guestemu.migration.sweep.experiment import Experiment
from guestemu.migration.sweep.instants import FetchOrder, SweepResult, migrate, sweep


def swept(experiment: Experiment, every: int) -> SweepResult:
    result = SweepResult()
    assert len(list(sweep(experiment, every, FetchOrder.DIRTY_FIRST, result))) == result.points
    return result


@pytest.mark.parametrize(
    ("series", "split", "path"),
    [
        ("6.1", False, "plain"),
        ("6.1", True, "plain"),
        pytest.param("6.1", False, "firmware", marks=pytest.mark.soak),
        pytest.param("6.1", True, "firmware", marks=pytest.mark.soak),
        pytest.param("6.12", False, "plain", marks=pytest.mark.soak),
        pytest.param("6.12", True, "firmware", marks=pytest.mark.soak),
    ],
)
def test_no_difference_and_no_loss(experiment_of, series: str, split: bool, path: str) -> None:
    experiment = experiment_of(series, split, path)
    result = swept(experiment, 500)
    assert result.points == -(-experiment.recording.length // 500) > 12
    assert result.first == []
    assert (result.differences, result.lost_defined) == (0, 0)


@pytest.mark.parametrize("path", ["plain", pytest.param("firmware", marks=pytest.mark.soak)])
def test_every_step_of_the_conversion_itself(experiment_of, path: str) -> None:
    """Before and after each PTE store, INVLPG, CR4 write, WBINVD and VMMCALL."""
    experiment = experiment_of("6.1", True, path)
    events = {event.index for event in experiment.recording.events}
    assert {"pte", "pmd", "invlpg", "mov-cr", "wbinvd", "vmmcall"} == {
        event.kind for event in experiment.recording.events
    }
    for index in sorted(events | {index + 1 for index in events}):
        point = migrate(experiment, index, FetchOrder.DIRTY_FIRST)
        assert (point.difference, point.lost_defined) == (None, False), index


def test_status_first_loses_from_the_first_shared_store_on(experiment_of) -> None:
    """C15: the page goes by the status it had before the conversion."""
    experiment = experiment_of("6.1")
    first = next(store.index for store in experiment.recording.stores if not store.is_private)
    indices = [*range(0, experiment.recording.length, 400), first, first + 1, first + 2]
    for index in indices:
        point = migrate(experiment, index, FetchOrder.STATUS_FIRST)
        assert point.lost_defined == (index > first), index
        assert not point.lost_defined or point.lost_strict


def test_between_flip_and_hypercall_only_undefined_bytes_differ(experiment_of) -> None:
    """The status is late there, and the page has no content that anybody may rely on."""
    experiment = experiment_of("6.1")
    flip = experiment.recording.flips[0].index
    call = next(event.index for event in experiment.recording.events if event.kind == "vmmcall")
    for index, strict in ((flip, False), (flip + 1, True), (call, True), (call + 1, False)):
        point = migrate(experiment, index, FetchOrder.DIRTY_FIRST)
        assert (point.lost_defined, point.lost_strict) == (False, strict), index


def test_a_guest_with_one_register_changed_is_noticed(experiment_of) -> None:
    experiment = experiment_of("6.1")
    departure = experiment.leave(3000)
    experiment.arrive(departure, experiment.packets(departure))
    experiment.destination.machine.current.write_register("r12", 0x1234)
    experiment.destination.machine.hooks.rip_moved = False
    ended, _ = experiment.go_on()
    station = experiment.destination
    assert experiment.reference.difference(station, ended, departure.log) is not None


def test_a_page_that_did_not_come_is_noticed(experiment_of) -> None:
    experiment = experiment_of("6.1", True)
    departure = experiment.leave(24_900)
    packets = experiment.packets(departure)
    noticed = 0
    assert len(packets) > 10
    for left_out in packets:
        if left_out.gfn == experiment.scenario.gfn:
            continue
        experiment.arrive(departure, [page for page in packets if page is not left_out])
        ended, _ = experiment.go_on()
        station = experiment.destination
        noticed += experiment.reference.difference(station, ended, departure.log) is not None
    assert noticed >= 5


def test_a_destination_that_keeps_its_translations_loses_stores(experiment_of, monkeypatch) -> None:
    """A context restore leaves the TLB. The guest that ended here before had the page shared; this
    one is about to fill it as private again."""
    experiment = experiment_of("6.1", round_trip=True)
    runs = experiment.recording.runs()
    assert [run[0].is_private for run in runs] == [True, False, True]
    index = runs[2][2000].index
    engine = experiment.destination.machine.engine
    for is_forgetful in (False, True, False):
        with monkeypatch.context() as patch:
            if is_forgetful:
                patch.setattr(engine, "flush_tlb", lambda: None)
            point = migrate(experiment, index, FetchOrder.DIRTY_FIRST)
        assert point.lost_defined == is_forgetful


def test_there_is_more_than_one_key(experiment_of) -> None:
    """The same private page is other bytes in the two hosts' DRAM."""
    experiment = experiment_of("6.1")
    departure = experiment.leave(2000)
    experiment.arrive(departure, experiment.packets(departure))
    gfn = experiment.scenario.gfn
    source, destination = experiment.source.machine.ram, experiment.destination.machine.ram
    assert source.read(gfn << 12, 4096) == destination.read(gfn << 12, 4096)
    assert source.dram(gfn) != destination.dram(gfn)
