# SPDX-License-Identifier: GPL-2.0-or-later
"""Caches in C8 and C30 (E32): a flush at each place, and what a host or the firmware finds."""

from __future__ import annotations

from contextlib import closing

import msgspec
import pytest

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.sev_firmware import Status
from guestemu.program.program import Header
from guestemu.runner.testbed import build_testbed
from guestemu.study.claims.cache_lines import (
    CACHED,
    Copied,
    FlushStops,
    LineViews,
    copy_page,
    flush_stops,
    look_at_lines,
    migrated_after_flush,
)
from guestemu.study.claims.claim import Lab
from guestemu.study.claims.firmware_promises import moving_pages
from guestemu.study.claims.instruction_boundaries import Flushing
from guestemu.study.claims.result import ClaimVerdict


@pytest.fixture(scope="module")
def stops() -> dict[str, FlushStops]:
    return {place.place: place for place in flush_stops()}


@pytest.fixture(scope="module")
def views() -> LineViews:
    return look_at_lines()


def test_a_conversion_needs_a_flush_wherever_it_is(stops: dict[str, FlushStops]) -> None:
    assert {name: place.stayed for name, place in stops.items()} == {
        "before the change": 0,
        "between change and hypercall": 0,
        "after the hypercall": 0,
        "left out": 2,
    }


def test_the_caches_of_the_source_do_not_matter_after_a_migration(
    stops: dict[str, FlushStops],
) -> None:
    assert not any(place.to_shared or place.flushed for place in stops.values())
    assert [place.migrations for place in stops.values()] == [5, 5, 5, 4]


def test_lines_of_the_destinations_vmm_survive_a_flush_that_came_before(
    stops: dict[str, FlushStops],
) -> None:
    assert {name: place.to_private for name, place in stops.items()} == {
        "before the change": 2,
        "between change and hypercall": 1,
        "after the hypercall": 0,
        "left out": 2,
    }


def test_the_witness_of_such_a_loss() -> None:
    with closing(build_testbed(CACHED)) as bed:
        outcome = bed.run(migrated_after_flush())
    assert outcome.results[-1].outcome.value != 0x2222222222222222
    with closing(build_testbed(Header())) as bed:
        outcome = bed.run(migrated_after_flush())
    assert outcome.results[-1].outcome.value == 0x2222222222222222


def test_without_such_caches_no_flush_is_needed_and_c8_says_nothing_of_them(
    views: LineViews,
) -> None:
    plain = flush_stops(Header())
    assert not any(place.stayed or place.to_private for place in plain)
    assert not Flushing(plain, views).is_decided


def test_c8_is_decided_by_all_that_was_seen(stops: dict[str, FlushStops], views: LineViews) -> None:
    places = tuple(stops.values())
    assert Flushing(places, views).is_decided
    for field in ("stayed", "to_shared", "flushed"):
        other = (msgspec.structs.replace(places[0], **{field: 1}), *places[1:])
        assert not Flushing(other, views).is_decided
    coherent = msgspec.structs.replace(views, shared_past=PAGE_SIZE)
    assert not Flushing(places, coherent).is_decided
    stale = msgspec.structs.replace(views, shared_alias=0)
    assert not Flushing(places, stale).is_decided


def test_a_host_that_reads_coherently_sees_dirty_lines(views: LineViews) -> None:
    assert views.shared_alias == views.firmware == PAGE_SIZE
    assert views.shared_past < PAGE_SIZE // 16


def test_the_vmms_mapping_is_stale_until_its_own_lines_are_flushed(views: LineViews) -> None:
    assert views.mapping < PAGE_SIZE // 16
    assert views.mapping_flushed == PAGE_SIZE


def test_copy_needs_the_hosts_lines_of_the_target_flushed() -> None:
    assert copy_page(flushes=True) == Copied(Status.SUCCESS, PAGE_SIZE)
    kept = copy_page(flushes=False)
    assert kept.status is Status.SUCCESS
    assert kept.kept < PAGE_SIZE // 16


def test_a_mapping_that_no_flush_repairs_confirms_c30(views: LineViews) -> None:
    blind = msgspec.structs.replace(views, mapping_flushed=0)
    assert moving_pages(Lab(), lambda: blind).verdict is ClaimVerdict.CONFIRMED


def test_a_copy_that_never_arrives_confirms_c30() -> None:
    lost = Copied(Status.SUCCESS, 0)
    assert moving_pages(Lab(), copy=lambda _flushes: lost).verdict is ClaimVerdict.CONFIRMED


def test_caches_that_need_no_flush_leave_c30_undecided(views: LineViews) -> None:
    coherent = msgspec.structs.replace(views, mapping=PAGE_SIZE)
    kept = Copied(Status.SUCCESS, PAGE_SIZE)
    assert moving_pages(Lab(), lambda: coherent, lambda _flushes: kept).verdict is (
        ClaimVerdict.UNDECIDED
    )
