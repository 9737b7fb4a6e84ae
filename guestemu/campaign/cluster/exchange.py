# SPDX-License-Identifier: GPL-2.0-or-later
"""The submitter's side of the exchange: what goes to which node, what comes of its news.

An input that one node found goes to all others once, without asking whether it is new to them: a
node's engine keeps only what covers something new to it.
"""

from __future__ import annotations

import time
from typing import Final

import msgspec

from guestemu.abi.errors import GuestemuError, InputError, MissingError
from guestemu.abi.files import write_atomically
from guestemu.campaign.cluster.dask import NodeLost
from guestemu.campaign.cluster.shares import Share
from guestemu.campaign.cluster.wire import News, Post, decode_news, encode
from guestemu.campaign.journal import input_name
from guestemu.campaign.store import WORKDIR, Store
from guestemu.campaign.worker import WorkerFailure

SILENCE_S: Final = 30.0
"""Seconds after which a call without answer means that the node is lost."""


class Traffic(msgspec.Struct):
    """What the exchange cost: calls, bytes of their payload without Dask's own, `seconds` of this
    process's CPU time for packing, unpacking and filing. `nodes` were started in all, `lost` of
    them lost."""

    exchanges: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: float = 0.0
    nodes: int = 0
    lost: int = 0


class Exchange:
    """The inputs of a campaign and who has them; files into `store` what nodes tell."""

    def __init__(self, store: Store) -> None:
        self.traffic = Traffic()
        self.inputs: list[bytes] = []
        self._store = store
        self._origins: list[int] = []
        self._names: set[str] = set()
        for data in Store(store.root).load_inputs():  # `store` leaves out what it saved itself
            self._add(data, -1)

    def _add(self, data: bytes, origin: int) -> bool:
        name = input_name(data)
        if name in self._names:
            return False
        self._names.add(name)
        self.inputs.append(data)
        self._origins.append(origin)
        return True

    def post(self, share: Share, is_over: bool = False) -> None:
        """Sends what the share's node does not have yet. Raises `NodeLost`."""
        assert share.node is not None
        start = time.process_time()
        end = len(self.inputs)
        fresh = [
            self.inputs[place]
            for place in range(share.cursor, end)
            if self._origins[place] != share.number
        ]
        data = encode(Post(fresh, is_over))
        self.traffic.seconds += time.process_time() - start
        share.answer = share.node.call(data)
        share.asked = time.monotonic()
        share.cursor = end
        self.traffic.exchanges += 1
        self.traffic.bytes_sent += len(data)

    def collect(self, share: Share) -> bool:
        """Takes the answer if it is there; whether it was. Raises `NodeLost`, also for a node that
        has been silent for too long, and for a failure on the node what a user can do about it."""
        assert share.answer is not None
        data = share.answer()
        if data is None:
            if time.monotonic() - share.asked > SILENCE_S:
                raise NodeLost(f"no answer for {SILENCE_S:g} s")
            return False
        start = time.process_time()
        share.answer = None
        self.traffic.bytes_received += len(data)
        news = decode_news(data)
        self._file(share, news)
        self.traffic.seconds += time.process_time() - start
        if news.failure is not None:
            _raise(news.failure, share)
        return True

    def _file(self, share: Share, news: News) -> None:
        store = self._store
        for name, data in news.findings:
            path = store.findings / name
            if not path.exists():
                write_atomically(path, data, WORKDIR)
        for name, data in news.files:
            write_atomically(store.infrastructure / name, data, WORKDIR)
        for data in news.inputs:
            if self._add(data, share.number):
                store.save_input(data)
        store.note_all(news.entries)
        share.figures = news.figures or share.figures
        share.is_done = news.is_done


def _raise(failure: WorkerFailure, share: Share) -> None:
    address = "" if share.node is None else share.node.address
    text = f"{failure.message} (on worker {address})"
    if failure.is_input:
        raise InputError(text)
    if failure.is_missing:
        raise MissingError(text)
    raise GuestemuError(text)
