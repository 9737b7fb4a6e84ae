# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of a campaign on a cluster: which worker has which, and what is left of a lost one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from msgspec.structs import replace

from guestemu.campaign.cluster.dask import RemoteNode
from guestemu.campaign.figures import Figures
from guestemu.campaign.worker import WorkerConfig


class Share:
    """One part: its workers' configurations, the node that has it now, the figures of the nodes
    that had it before."""

    def __init__(self, number: int, configs: list[WorkerConfig]) -> None:
        self.number = number
        self.configs = configs
        self.node: RemoteNode | None = None
        self.figures: Figures | None = None
        self.lives: list[Figures] = []
        self.starts = 0
        self.is_done = False
        self.cursor = 0
        """Inputs of the campaign that the node has."""
        self.answer: Callable[[], bytes | None] | None = None
        self.asked = 0.0
        """When the call that is under way was made."""
        self.lost_at: float | None = None

    def give_to(self, node: RemoteNode, cursor: int) -> None:
        """`node` begins with the first `cursor` inputs."""
        self.node, self.cursor = node, cursor
        self.lost_at = None

    def lose(self) -> None:
        """The node is gone; its last report counts."""
        if self.figures is not None:
            self.lives.append(self.figures)
        self.node = self.answer = self.figures = None
        self.lost_at = time.monotonic()

    def all_figures(self) -> Iterator[Figures]:
        """The last figures of each life."""
        yield from self.lives
        if self.figures is not None:
            yield self.figures

    def left(self, seconds: float | None) -> list[WorkerConfig]:
        """The configurations for another life of at most `seconds`: less what has run, with other
        random numbers."""
        done = {
            config.index: sum(
                worker.executions
                for figures in self.lives
                for worker in figures.workers
                if worker.index == config.index
            )
            for config in self.configs
        }
        return [
            replace(
                config,
                seconds=seconds,
                seed=config.seed + 7919 * self.starts,
                execs=None if config.execs is None else max(config.execs - done[config.index], 0),
            )
            for config in self.configs
        ]


def divide(configs: Sequence[WorkerConfig], threads: Iterable[int]) -> list[Share]:
    """A share for each worker, as many configurations as it has threads."""
    shares: list[Share] = []
    first = 0
    for number, count in enumerate(threads):
        shares.append(Share(number, list(configs[first : first + count])))
        first += count
    return shares


def place(
    share: Share, shares: Sequence[Share], workers: Iterable[str], may_double: bool
) -> str | None:
    """The worker for a share that has none: one without a share; with `may_double`, where there is
    none, the one with the fewest. None: no worker."""
    load = dict.fromkeys(workers, 0)
    for other in shares:
        if other is not share and other.node is not None and not other.is_done:
            address = other.node.address
            if address in load:
                load[address] += 1
    if not load:
        return None
    address = min(load, key=lambda one: load[one])
    return address if may_double or not load[address] else None
