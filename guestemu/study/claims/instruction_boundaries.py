# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration in the middle of a conversion: C8.

A real kernel fills a page, converts it and fills it again; it is stopped in front of instructions
of that window and goes on as another machine with another key. The order model adds what the kernel
does not do: a write through the new mapping before the hypercall. What flushes are for is seen on
a guest of our own code, behind a cache that tags its lines with the C-bit: a booted kernel has no
caches here. Facts A2, E32, R1; docs/explore.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.guest.linux.load import linux_config
from guestemu.migration.model.rules import Rules
from guestemu.migration.sweep.experiment import Experiment
from guestemu.migration.sweep.instants import FetchOrder, SweepResult, migrate
from guestemu.migration.sweep.scenario import Variant
from guestemu.study.claims import cells
from guestemu.study.claims.cache_lines import (
    CACHED,
    FlushStops,
    LineViews,
    flush_evidence,
    flush_stops,
    look_at_lines,
    migrated_after_flush,
)
from guestemu.study.claims.claim import Claim, Lab, Need
from guestemu.study.claims.kernels import MEMORY, image
from guestemu.study.claims.result import ClaimResult, Evidence, decide
from guestemu.study.claims.witness_text import program_witness

_POINTS: Final = 100
"""Migrations spread over the whole window."""

_STRIDE: Final = 4
"""Between the change of the entry and the hypercall every so many instructions."""

_DEFAULT: Final = Rules()


class Sweeps(msgspec.Struct, frozen=True):
    """One kernel: migrations over the whole window, those between the change of the page-table
    entry and the hypercall, and the first once more with a host that fetches the status first.
    `instructions` of the window, `between` of the part."""

    instructions: int
    between: int
    whole: SweepResult
    part: SweepResult
    wrong_order: SweepResult


def sweep_kernel(name: str, variant: Variant) -> Sweeps | None:
    """Migrates the kernel `name` in the middle of a conversion, some hundred times; None if it does
    not notify its host, as before 5.16."""
    experiment = Experiment(image(name), linux_config(MEMORY, 39, "sev"), variant)
    try:
        recording = experiment.recording
        first = max(event.index for event in recording.events if event.kind == "pte")
        calls = [event.index for event in recording.events if event.kind == "vmmcall"]
        if not calls:
            return None
        last = max(calls)
        step = max(recording.length // _POINTS, 1)
        everywhere = range(0, recording.length, step)
        inside = range(first, last + 2, _STRIDE)
        return Sweeps(
            recording.length,
            last + 2 - first,
            _migrations(experiment, everywhere, FetchOrder.DIRTY_FIRST),
            _migrations(experiment, inside, FetchOrder.DIRTY_FIRST),
            _migrations(experiment, everywhere, FetchOrder.STATUS_FIRST),
        )
    finally:
        experiment.close()


def _migrations(experiment: Experiment, indices: Iterable[int], order: FetchOrder) -> SweepResult:
    result = SweepResult()
    for index in indices:
        result.add(migrate(experiment, index, order), 0.0, 0.0)
    return result


class Flushing(msgspec.Struct, frozen=True):
    """What a conversion's cache flush is for, and what a migration in the middle does to that."""

    places: tuple[FlushStops, ...]
    views: LineViews

    @property
    def is_decided(self) -> bool:
        """A flush that is left out loses the page where no migration is; no migration of a page
        that became shared loses it; one that became private is lost where the destination's VMM
        stored it after the guest's flush, unless that host also flushes."""
        *flushed, missing = self.places
        return (
            missing.stayed == 2
            and not any(place.stayed for place in flushed)
            and not any(place.to_shared or place.flushed for place in self.places)
            and flushed[0].to_private > 0
            and flushed[-1].to_private == 0
            and self.views.shared_alias == PAGE_SIZE > self.views.shared_past
        )

    def evidence(self) -> tuple[Evidence, ...]:
        """All of it."""
        views = self.views
        return (
            *(line for place in self.places for line in flush_evidence(place)),
            Evidence(
                "shared page, dirty in the guest's cache: sent by a load with C=0",
                views.shared_alias,
                "bytes as written",
                "of 4096: the host reads coherently",
            ),
            Evidence(
                "the same page, from DRAM past these lines",
                views.shared_past,
                "bytes as written",
                "of 4096",
            ),
        )


def flushing() -> Flushing:
    """C8's second half: migrations between a conversion's steps, with caches."""
    return Flushing(flush_stops(), look_at_lines())


def between_steps(
    lab: Lab, rules: Rules = _DEFAULT, caches: Callable[[], Flushing] = flushing
) -> ClaimResult:
    """C8: the kernels at their instructions, the model's S1, S1b, S2 against S1c, and caches."""
    variant = Variant()
    swept = ((name, sweep_kernel(name, variant)) for name in lab.kernels)
    seen = {name: each for name, each in swept if each is not None}
    quiet = [
        cell
        for script in ("S1", "S1b", "S2")
        for cell in cells.count_rows(cells.TIGHT_ORDERS, script, rules)
    ]
    early = cells.count_rows(cells.TIGHT_ORDERS, "S1c", rules)
    wrong = sum(
        sweep.lost_defined + sweep.differences
        for each in seen.values()
        for sweep in (each.whole, each.part)
    )
    can_fail = bool(seen) and all(each.wrong_order.lost_defined for each in seen.values())
    lost_quiet = sum(cell.lost for cell in quiet)
    lost_early = min(cell.lost for cell in early)
    machine = cells.machine_check(early)
    cached = caches()
    is_quiet = can_fail and not wrong and not lost_quiet
    return ClaimResult(
        verdict=decide(
            confirmed=wrong > 0 or lost_quiet > 0,
            refuted=is_quiet and not lost_early,
            conditional=is_quiet and lost_early > 0 and machine.agrees and cached.is_decided,
        ),
        condition=_CONDITION,
        evidence=(
            *(found for name, each in seen.items() for found in _kernel_evidence(name, each)),
            Evidence(
                "orders 1, 4, 5, 6, scripts S1, S1b and S2",
                lost_quiet,
                "losing interleavings",
                f"of {sum(cell.tally.total for cell in quiet)}; guestemu explore --table",
            ),
            *(cells.evidence(cell, "write before the hypercall") for cell in early),
            *machine.evidence,
            *cached.evidence(),
        ),
        guests=(*seen, *machine.guests),
        witnesses=(
            *cells.witness(early[0]),
            program_witness(
                CACHED, migrated_after_flush(), "a line of the destination's VMM is read, not 0x22"
            ),
        ),
        remark=_REMARK,
    )


_CONDITION: Final = (
    "something writes through the new mapping before the hypercall (another CPU, or a device; the "
    "kernel itself does not, and then no stop in between loses anything), or the CPU has no "
    "coherent encryption and a page that becomes private is sent as shared after the guest's flush"
)

_REMARK: Final = (
    "The source's caches do not matter after a migration, not even where the flush was left out, "
    "provided the host reads coherently. What the guest's flush cannot reach are the lines that "
    "the destination's VMM leaves when it stores a page that its record says is shared: the guest "
    "flushes before its hypercall changes that record. A flush after the hypercall would be safe."
)


def _kernel_evidence(name: str, each: Sweeps) -> tuple[Evidence, ...]:
    unit = "migrations that lose or differ"
    return (
        Evidence(
            f"{name}: stopped anywhere",
            each.whole.lost_defined + each.whole.differences,
            unit,
            f"of {each.whole.points}, over {each.instructions} instructions",
        ),
        Evidence(
            f"{name}: stopped between the entry's change and the hypercall",
            each.part.lost_defined + each.part.differences,
            unit,
            f"of {each.part.points}, over {each.between} instructions, the last flush among them",
        ),
        Evidence(
            f"{name}: control, status fetched before the dirty log",
            each.wrong_order.lost_defined,
            "losing migrations",
            f"of {each.wrong_order.points}; the status is that of the window's begin",
        ),
    )


CLAIMS: Final = (
    Claim(
        "C8",
        "A migration between the change of the page table and the hypercall, or between the "
        "hypercall and the flushes, is a problem.",
        "Andy Lutomirski's question, 12 Feb 2020: 'What happens if the guest gets migrated between "
        "the hypercall and the associated flushes?'",
        between_steps,
        Need.KERNEL,
    ),
)
