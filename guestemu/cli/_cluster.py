# SPDX-License-Identifier: GPL-2.0-or-later
"""--cluster of `fuzz`, `replay` and `explore --confirm`."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from guestemu.abi.errors import InputError, MissingError
from guestemu.cli import _campaign as ask
from guestemu.cli import console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from guestemu.campaign.campaign import Options
    from guestemu.campaign.cluster.dask import Cluster
    from guestemu.host.permission import Permissions
    from guestemu.replay.suite import Result
    from guestemu.study.explore_confirm import Judge

MAX_WORKERS: Final = 1 << 16


def workers_of(cluster: Cluster) -> dict[str, int]:
    """The workers with this guestemu, threads by address. Raises `MissingError` where one has
    another, or there are none."""
    workers = cluster.workers()
    if not workers:
        raise MissingError(
            f"--cluster {cluster.address}: the scheduler has no workers; start some with "
            f"`dask worker {cluster.address}`"
        )
    cluster.check(workers)
    return workers


def check_jobs(address: str, jobs: int | None) -> None:
    """Raises `InputError` for --jobs where the cluster has the workers that it has."""
    from guestemu.campaign.cluster.dask import LOCAL

    if address != LOCAL and jobs is not None and jobs > 1:
        raise InputError(
            f"--jobs {jobs}: --cluster {address} has as many workers as it has; leave --jobs out"
        )


def fuzz(options: Options, address: str, as_json: bool) -> int:
    """Runs a campaign; as `guestemu fuzz` otherwise."""
    from guestemu.campaign.campaign import prepare
    from guestemu.campaign.cluster.campaign import ClusterCampaign
    from guestemu.campaign.cluster.dask import Cluster
    from guestemu.campaign.screen import Screen

    check_jobs(address, options.jobs)
    with Cluster(address, options.jobs) as cluster:
        workers = workers_of(cluster)
        jobs = sum(workers.values())
        campaign = prepare(msgspec.structs.replace(options, jobs=jobs), MAX_WORKERS)
        for line in campaign.notes:
            console.note(line)
        title = f"fuzz {options.target}, {campaign.engine}, {len(workers)} cluster workers"
        with Screen(title, console.notes(), console.is_live()) as screen:
            running = ClusterCampaign(campaign, cluster, workers, screen.show)
            figures = running.run()
    traffic = running.traffic
    if as_json:
        found = ask.campaign_object(campaign, figures)
        console.emit_json({**found, "cluster": traffic})
    else:
        ask.tell(campaign, figures)
        console.note(
            f"{traffic.nodes} nodes, {traffic.lost} lost; {traffic.exchanges} exchanges, "
            f"{traffic.bytes_sent:,} bytes sent, {traffic.bytes_received:,} received"
        )
    return ask.end(campaign, figures)


def replay(
    address: str,
    programs: Sequence[Path],
    jobs: int | None,
    record: bool,
    allowed: Permissions,
    watch: Callable[[Result], None] | None,
) -> tuple[Result, ...]:
    """Replays programs on the cluster's workers. Raises `InputError` for --record, which writes
    where the programs are."""
    from guestemu.campaign.cluster.batches import replay_on
    from guestemu.campaign.cluster.dask import Cluster

    if record:
        raise InputError("replay: --record has no meaning with --cluster; leave one out")
    check_jobs(address, jobs)
    with Cluster(address, jobs or _cores()) as cluster:
        threads = sum(workers_of(cluster).values())
        return replay_on(cluster, threads, programs, allowed, watch)


@contextmanager
def judge(address: str) -> Iterator[Judge]:
    """What gives the machine's verdicts by way of the cluster's workers."""
    from functools import partial

    from guestemu.campaign.cluster.batches import judge_on
    from guestemu.campaign.cluster.dask import Cluster

    with Cluster(address, _cores()) as cluster:
        workers_of(cluster)
        yield partial(judge_on, cluster)


def _cores() -> int:
    return os.cpu_count() or 1
