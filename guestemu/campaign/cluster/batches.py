# SPDX-License-Identifier: GPL-2.0-or-later
"""`replay` and the machine's verdicts of `explore --confirm` on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from guestemu.abi.errors import GuestemuError, InputError, MissingError
from guestemu.campaign.cluster.dask import Cluster
from guestemu.campaign.cluster.jobs import (
    Batch,
    JobAnswer,
    ReplayBatch,
    RunBatch,
    Task,
    decode_answer,
    encode,
    run_task,
)
from guestemu.campaign.cluster.wire import identity
from guestemu.checks.lost import LOST_DEFINED, LOST_STRICT
from guestemu.host.permission import Permissions
from guestemu.migration.model.order_model import PageVerdict
from guestemu.migration.model.programs import LinkKind, interleaving_ops
from guestemu.migration.model.witness import Witness
from guestemu.program.program import Header, Program
from guestemu.program.text import format_text
from guestemu.replay.suite import Result, batches, died, replay_file

_RUNS_PER_BATCH: Final = 128
"""Migrations of one task: some seconds, of which starting the process takes half of one."""


def run_batches(cluster: Cluster, work: Sequence[Batch]) -> Iterator[tuple[int, JobAnswer]]:
    """Runs batches somewhere; the answers as they come, with their place in `work`. Raises what
    a batch failed of as a whole."""
    own = identity()
    tasks = [encode(Task(number, batch, own)) for number, batch in enumerate(work)]
    for data in cluster.run(run_task, tasks):
        answer = decode_answer(data)
        if answer.failure:
            raise (InputError if answer.is_input else MissingError)(answer.failure)
        yield answer.number, answer


def replay_on(
    cluster: Cluster,
    threads: int,
    paths: Sequence[Path],
    permissions: Permissions,
    progress: Callable[[Result], None] | None = None,
) -> tuple[Result, ...]:
    """Replays the files at `paths` on the workers of `cluster`, which need not have them, only the
    code that `permissions` allow as hosts, at the same places; results in their order. A program
    that kills its process twice, the second time alone, fails."""
    done: dict[Path, Result] = {}

    def take(path: Path, result: Result) -> None:
        done[path] = result
        if progress is not None:
            progress(result)

    plugins = [str(directory) for directory in permissions.directories]
    parts = batches(paths, threads)
    while True:
        readable = [_readable(part, take) for part in parts]
        work = [
            ReplayBatch([(str(path), data) for path, data in part], plugins) for part in readable
        ]
        for number, answer in run_batches(cluster, work):
            for (path, _), result in zip(readable[number], answer.results, strict=False):
                take(path, result)
            if answer.death and len(readable[number]) == 1:
                take(readable[number][0][0], died(readable[number][0][0]))
        parts = [[path] for path in paths if path not in done]
        if not parts:
            return tuple(done[path] for path in paths)


def _readable(
    paths: Iterable[Path], take: Callable[[Path, Result], None]
) -> list[tuple[Path, bytes]]:
    """The files with their content; one that cannot be read is a result at once."""
    found: list[tuple[Path, bytes]] = []
    for path in paths:
        try:
            found.append((path, path.read_bytes()))
        except OSError:
            take(path, replay_file(path))
    return found


def judge_on(
    cluster: Cluster, witnesses: Iterable[Witness], link: LinkKind
) -> Iterator[tuple[Witness, PageVerdict]]:
    """The machine's verdict on each interleaving, in any order. Raises `GuestemuError` where a
    process dies."""
    chosen = list(witnesses)
    parts = [chosen[at : at + _RUNS_PER_BATCH] for at in range(0, len(chosen), _RUNS_PER_BATCH)]
    work = [RunBatch([_text(witness, link) for witness in part]) for part in parts]
    for number, answer in run_batches(cluster, work):
        if answer.death:
            raise GuestemuError(f"--cluster: a process that ran migrations died: {answer.death}")
        for witness, checks in zip(parts[number], answer.checks, strict=True):
            yield witness, PageVerdict(LOST_STRICT in checks, LOST_DEFINED in checks)


def _text(witness: Witness, link: LinkKind) -> bytes:
    steps = (moment.step for moment in witness.moments)
    ops = tuple(interleaving_ops(witness.scenario.order, steps, link))
    return format_text(Program(Header(), ops)).encode()
