# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of a campaign: what `--json`, the screen and stats.jsonl show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from guestemu.campaign.findings import FindingCount
from guestemu.campaign.triage.identify import digest_of


class WorkerFigures(msgspec.Struct, frozen=True):
    """One worker: executions in all its lives, rate of this one, how often it was started anew."""

    index: int
    executions: int
    execs_per_second: float
    restarts: int
    is_done: bool


class Figures(msgspec.Struct, frozen=True):
    """A campaign so far. Seconds since its start (of this run, when it was resumed); executions,
    ops and rates are of this run, findings of all. `space` is the number of programs of an
    exhaustive campaign, `is_exhausted` says that all of them ran; `lengths[n]` counts the programs
    of n ops. `distinct_programs` adds up what each worker ran for the first time."""

    seconds: float
    executions: int
    execs_per_second: float
    median_ops: int
    corpus_size: int
    guest_blocks: int
    model_states: int
    last_new_s: float
    findings: list[FindingCount]
    unstable: list[str]
    infrastructure: list[str]
    workers: list[WorkerFigures]
    is_interrupted: bool = False
    near_misses: int = 0
    space: int | None = None
    is_exhausted: bool = False
    lengths: list[int] = []
    distinct_programs: int = 0

    def line(self) -> dict[str, object]:
        """What a line of stats.jsonl holds."""
        return {
            "seconds": self.seconds,
            "executions": self.executions,
            "distinct_programs": self.distinct_programs,
            "execs_per_second": self.execs_per_second,
            "corpus_size": self.corpus_size,
            "guest_blocks": self.guest_blocks,
            "model_states": self.model_states,
            "near_misses": self.near_misses,
            "findings": len(self.findings),
            "infrastructure": len(self.infrastructure),
            "workers": [worker.execs_per_second for worker in self.workers],
        }


def merge_counts(parts: Iterable[Sequence[FindingCount]]) -> list[FindingCount]:
    """One count per finding: counts added, the first sighting the earliest; in order of sighting.

    Keys with the same digest are one finding, which workers named by different checks.
    """
    merged: dict[str, FindingCount] = {}
    for part in parts:
        for found in part:
            known = merged.get(digest_of(found.key))
            if known is None:
                merged[digest_of(found.key)] = msgspec.structs.replace(found)
            else:
                known.count += found.count
                known.first_seen_s = min(known.first_seen_s, found.first_seen_s)
    return sorted(merged.values(), key=lambda found: (found.first_seen_s, found.key))
