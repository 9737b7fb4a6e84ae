# SPDX-License-Identifier: GPL-2.0-or-later
"""The submitter of a campaign on a cluster: keeps its directory, feeds nodes, replaces lost ones.

The directory is the same as without a cluster. Journals are copies of the nodes' journals, an
exchange behind; so a share whose node is lost goes on elsewhere with what it had met and not filed,
and `--resume`, with or without a cluster, does as it always does. What is lost with a node is what
it found since its last exchange.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec.structs import replace

from guestemu.abi.errors import GuestemuError, MissingError
from guestemu.campaign.campaign import Campaign
from guestemu.campaign.cluster.dask import NOBODY_S, Cluster, NodeLost
from guestemu.campaign.cluster.exchange import Exchange
from guestemu.campaign.cluster.shares import Share, divide, place
from guestemu.campaign.cluster.sums import add_up
from guestemu.campaign.cluster.wire import ShareStart, encode
from guestemu.campaign.engines.exhaustive import ExhaustiveEngine
from guestemu.campaign.figures import Figures
from guestemu.campaign.journal import (
    Entry,
    PositionNoted,
    journal_files,
    journal_path,
    read_journals,
    unsettled,
)
from guestemu.campaign.supervisor import with_settled
from guestemu.processes import EndSignals

EXCHANGE_S: Final = 1.0
"""Seconds between two exchanges with a node."""

_DOUBLE_S: Final = 5.0
"""Seconds that a share waits for a new worker before it goes to one that has a share already."""

_PATIENCE_S: Final = 10.0
_TICK_S: Final = 0.05
_FIGURES_S: Final = 0.25
_STATS_S: Final = 2.0
_MAX_LOST: Final = 100


class ClusterCampaign:
    """A campaign on the `workers` (threads by address) of `cluster`. `campaign` has a configuration
    for each thread; `watch` gets the figures as they come."""

    def __init__(
        self,
        campaign: Campaign,
        cluster: Cluster,
        workers: dict[str, int],
        watch: Callable[[Figures], None],
    ) -> None:
        first = campaign.configs[0]
        self._store = campaign.store
        self._cluster = cluster
        self._watch = watch
        self._record = campaign.store.read_record()
        self._shares = divide(campaign.configs, workers.values())
        self._addresses = list(workers)
        self._template = first
        self._is_divided = first.execs is not None or campaign.engine == ExhaustiveEngine.name
        self._begun = time.monotonic()
        self._infrastructure: list[str] = []
        self._unfit: set[str] = set()
        self._seen_worker = self._begun
        self._next_look = self._begun + EXCHANGE_S
        self._next_figures = self._begun
        self._next_stats = self._begun + _STATS_S
        self._store.lock()
        self._infrastructure += self._store.repair()
        self._before = with_settled(self._store.load_counts(), self._store)
        self._old = len(self._before)
        self._exchange = Exchange(self._store)
        self.traffic = self._exchange.traffic

    def run(self) -> Figures:
        """Until every share is done, or Ctrl-C, SIGTERM or SIGHUP (then `is_interrupted` is set).

        Raises `InputError`, `MissingError` or `GuestemuError` with the words of a worker that met
        one, or when no worker is left.
        """
        is_interrupted = False
        try:
            with EndSignals():
                for share, address in zip(self._shares, self._addresses, strict=True):
                    self._begin(share, address)
                while not all(share.is_done for share in self._shares):
                    self._turn()
                    if self._is_enough():
                        self._ask_to_end()
                        break
        except KeyboardInterrupt:
            is_interrupted = True
            self._ask_to_end()
        except GuestemuError:
            self._ask_to_end()
            self._keep()
            raise
        finally:
            for share in self._shares:
                if share.node is not None:
                    share.node.close()
            self._store.unlock()
        left = len(self._store.unsettled())
        if left:
            self._infrastructure.append(
                f"{left} of the violations in the journal are not minimised yet; --resume files "
                "them"
            )
        return replace(self._keep(), is_interrupted=is_interrupted)

    def _is_enough(self) -> bool:
        """Whether the campaign has found what it was to find."""
        until = self._template.until_finding
        return until is not None and len(self.figures().findings) - self._old >= until

    def figures(self) -> Figures:
        """What is known now."""
        return add_up(
            [figures for share in self._shares for figures in share.all_figures()],
            seconds=time.monotonic() - self._begun,
            corpus_size=len(self._exchange.inputs),
            before=self._before,
            infrastructure=self._infrastructure,
            is_exhausted=all(
                share.figures is not None and share.figures.is_exhausted for share in self._shares
            ),
        )

    def _keep(self) -> Figures:
        """Writes down what is known at the end, and gives it back."""
        known = {found.key for found in self.figures().findings}
        self._before = with_settled(self._before, self._store, known)
        figures = self.figures()
        self._store.save_counts(figures.findings)
        self._store.add_stats(msgspec.json.encode(figures.line()))
        return figures

    # The life of a share ----------------------------------------------------------------------

    def _begin(self, share: Share, address: str) -> None:
        """Starts a share on a worker, which may go away meanwhile."""
        configs = share.left(self._left())
        start = ShareStart(
            share=share.number,
            life=share.starts,
            workdir=str(self._store.root),
            record=self._record,
            configs=configs,
            inputs=self._exchange.inputs,
            entries=[entry for config in configs for entry in self._open_entries(config.index)],
            deadly=sorted(self._store.deadly_inputs()),
        )
        data = encode(start)
        self.traffic.bytes_sent += len(data)
        self.traffic.nodes += 1
        cursor = len(self._exchange.inputs)
        share.starts += 1
        try:
            share.give_to(self._cluster.start(address, data), cursor)
        except NodeLost as error:
            self._lose(share, address, error)

    def _open_entries(self, index: int) -> list[tuple[int, Entry]]:
        """What the journals have for the worker with this index to go on with."""
        jobs = self._template.jobs
        directory = self._store.journals
        own = [journal_path(directory, index)]
        entries = read_journals(journal_files(directory, index, jobs) if index < jobs else own)
        positions = {entry.space: entry for entry in entries if isinstance(entry, PositionNoted)}
        kept: list[Entry] = [*positions.values(), *unsettled(entries)]
        return [(index, entry) for entry in kept]

    def _lose(self, share: Share, address: str, error: NodeLost) -> None:
        """The worker of a share is gone. Raises `GuestemuError` if that happens all the time."""
        if share.node is not None:
            share.node.drop()
        share.lose()
        self.traffic.lost += 1
        self._infrastructure.append(f"cluster worker {address} was lost ({error})")
        if self.traffic.lost > _MAX_LOST:
            raise GuestemuError(f"workers keep dying: {self._infrastructure[-1]}")

    def _turn(self) -> None:
        """One look at every node, then a short sleep."""
        now = time.monotonic()
        for share in self._shares:
            self._talk(share, now)
        if now >= self._next_look:
            self._next_look = now + EXCHANGE_S
            self._look(self._fit(self._cluster.workers()), now)
        if now >= self._next_figures:
            self._next_figures = now + _FIGURES_S
            self._show(now)
        time.sleep(_TICK_S)

    def _show(self, now: float) -> None:
        """The figures for the display, and now and then for stats.jsonl."""
        figures = self.figures()
        self._watch(figures)
        if now >= self._next_stats:
            self._next_stats = now + _STATS_S
            self._store.add_stats(msgspec.json.encode(figures.line()))
            self._store.save_counts(figures.findings)

    def _talk(self, share: Share, now: float) -> None:
        """Takes the node's answer, or asks again when it is time."""
        node = share.node
        if node is None or share.is_done:
            return
        try:
            if share.answer is not None:
                self._exchange.collect(share)
            elif now - share.asked >= EXCHANGE_S:
                left = self._left()
                self._exchange.post(share, is_over=left is not None and left <= 0)
        except NodeLost as error:
            self._lose(share, node.address, error)

    def _look(self, workers: dict[str, int], now: float) -> None:
        """Compares the shares with the workers that there are now. Raises `MissingError` when there
        were none for a minute."""
        if workers:
            self._seen_worker = now
        elif now - self._seen_worker > NOBODY_S:
            raise MissingError(
                f"--cluster {self._cluster.address}: no worker for {NOBODY_S:g} s; start some "
                "with `dask worker`, and go on with --resume"
            )
        for share in self._shares:
            node = share.node
            if node is not None and not share.is_done and node.address not in workers:
                self._lose(share, node.address, NodeLost("the scheduler does not know it any more"))
            if share.lost_at is not None:
                self._place_again(share, workers, now)
        if not self._is_divided:
            self._welcome(workers)

    def _fit(self, workers: dict[str, int]) -> dict[str, int]:
        """Those that have the same guestemu; of each other one a line says why not."""
        for address in workers.keys() - self._unfit:
            try:
                self._cluster.check([address])
            except MissingError as error:
                self._unfit.add(address)
                self._infrastructure.append(str(error))
        return {address: n for address, n in workers.items() if address not in self._unfit}

    def _place_again(self, share: Share, workers: dict[str, int], now: float) -> None:
        left = self._left()
        if left is not None and left <= 0:
            share.is_done = True
            return
        may_double = self._is_divided and now - (share.lost_at or now) > _DOUBLE_S
        address = place(share, self._shares, workers, may_double)
        if address is not None:
            self._begin(share, address)
            self._infrastructure.append(f"share {share.number} goes on at worker {address}")

    def _welcome(self, workers: dict[str, int]) -> None:
        """Workers that joined get a share of their own, where programs are not counted out."""
        left = self._left()
        if left is not None and left <= EXCHANGE_S:
            return
        busy = {share.node.address for share in self._shares if share.node is not None}
        for address, threads in workers.items():
            if address not in busy:
                first = sum(len(share.configs) for share in self._shares)
                configs = [
                    replace(self._template, index=index, seed=self._template.seed + 104_729 * index)
                    for index in range(first, first + threads)
                ]
                share = Share(len(self._shares), configs)
                self._shares.append(share)
                self._begin(share, address)

    def _left(self) -> float | None:
        """Seconds of the campaign that are left."""
        seconds = self._template.seconds
        return None if seconds is None else seconds - (time.monotonic() - self._begun)

    def _ask_to_end(self) -> None:
        """Tells all nodes to end, then takes their last news as far as they come."""
        end = time.monotonic() + _PATIENCE_S
        with contextlib.suppress(KeyboardInterrupt):
            while time.monotonic() < end:
                open_shares = [one for one in self._shares if one.node and not one.is_done]
                if not open_shares:
                    return
                for share in open_shares:
                    try:
                        if share.answer is None:
                            self._exchange.post(share, is_over=True)
                        else:
                            self._exchange.collect(share)
                    except GuestemuError:
                        share.is_done = True
                time.sleep(_TICK_S)
