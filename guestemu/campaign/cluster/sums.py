# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of a campaign from those of its nodes."""

from __future__ import annotations

from collections.abc import Sequence

from guestemu.campaign.figures import Figures, WorkerFigures, merge_counts
from guestemu.campaign.findings import FindingCount
from guestemu.campaign.session import add_lengths, median_length


def add_up(
    parts: Sequence[Figures],
    seconds: float,
    corpus_size: int,
    before: list[FindingCount],
    infrastructure: list[str],
    is_exhausted: bool,
) -> Figures:
    """`parts` are the last figures of each node that there is or was; coverage is the most that one
    of them has. What was found `before` the campaign also counts."""
    lengths = add_lengths(part.lengths for part in parts)
    unstable = dict.fromkeys(line for part in parts for line in part.unstable)
    told = [line for part in parts for line in part.infrastructure]
    workers = _workers(parts)
    return Figures(
        seconds=round(seconds, 3),
        executions=sum(part.executions for part in parts),
        execs_per_second=round(sum(worker.execs_per_second for worker in workers), 1),
        median_ops=median_length(lengths),
        corpus_size=corpus_size,
        guest_blocks=max((part.guest_blocks for part in parts), default=0),
        model_states=max((part.model_states for part in parts), default=0),
        last_new_s=max((part.last_new_s for part in parts), default=0.0),
        findings=merge_counts([before, *(part.findings for part in parts)]),
        unstable=list(unstable),
        infrastructure=[*infrastructure, *told],
        workers=workers,
        distinct_programs=sum(part.distinct_programs for part in parts),
        near_misses=max((part.near_misses for part in parts), default=0),
        space=next((part.space for part in parts if part.space is not None), None),
        is_exhausted=is_exhausted,
        lengths=lengths,
    )


def _workers(parts: Sequence[Figures]) -> list[WorkerFigures]:
    """One line for each worker, with all its lives."""
    merged: dict[int, WorkerFigures] = {}
    for part in parts:
        for worker in part.workers:
            known = merged.get(worker.index)
            merged[worker.index] = WorkerFigures(
                worker.index,
                worker.executions + (known.executions if known else 0),
                worker.execs_per_second,
                worker.restarts + (known.restarts + 1 if known else 0),
                worker.is_done,
            )
    return [merged[index] for index in sorted(merged)]
