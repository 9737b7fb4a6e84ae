# SPDX-License-Identifier: GPL-2.0-or-later
"""Random and mutated programs, guided by the counters; needs nothing but Python.

One in eight programs is generated afresh, the others are mutations and crossovers of programs that
covered something new. With a seed and a number of executions a session on a directory of its own
always does the same.
"""

from __future__ import annotations

import random
from typing import Final

from guestemu.campaign.engines.base import Leave
from guestemu.campaign.mutator import Mutator
from guestemu.campaign.session import Session, SessionOver
from guestemu.program.binary import encode_ops
from guestemu.program.generate import generate_ops
from guestemu.program.mutate import crossover_bytes

_FRESH_BELOW: Final = 32
_CROSSOVER_BELOW: Final = 48
_RECENT: Final = 64
_SYNC_EVERY: Final = 1 << 14
_SEED_BITS: Final = 32


class RandomEngine:
    """See the module's docstring."""

    name = "random"
    summary = "coverage-guided mutation in Python, deterministic by --seed and --execs"
    remedy = ""

    def is_available(self) -> bool:
        """Always."""
        return True

    def run(self, session: Session, leave: Leave) -> None:
        """See `Engine.run`."""
        session.skips_known = True
        try:
            _fuzz(session)
        except SessionOver:
            return


def _choose(rng: random.Random, corpus: list[bytes]) -> bytes:
    """A parent: half the time one of the newest."""
    count = len(corpus)
    if count > _RECENT and rng.random() < 0.5:
        return corpus[count - 1 - int(rng.random() * _RECENT)]
    return corpus[int(rng.random() * count)]


def _try(session: Session, data: bytes, corpus: list[bytes]) -> None:
    session.feedback.clear()
    if session.execute(data):
        corpus.append(data)


def _import(session: Session, corpus: list[bytes]) -> None:
    """Runs what is new in the directory and keeps what is new to this process."""
    if session.store is not None:
        for data in session.store.load_inputs():
            _try(session, data[: session.executor.max_size], corpus)


def _fuzz(session: Session) -> None:
    plan = session.plan
    rng = random.Random(plan.seed)
    max_ops = plan.target.max_ops
    max_size = session.executor.max_size
    mutate = Mutator(plan.header, session.kinds, session.executor.decoder.extra).mutate
    corpus: list[bytes] = []
    _import(session, corpus)
    rounds = 0
    while True:
        rounds += 1
        if plan.is_shared and rounds % _SYNC_EVERY == 0:
            _import(session, corpus)
        dice = rng.getrandbits(8)
        if dice < _FRESH_BELOW or not corpus:
            length = 1 + int(rng.random() * max_ops)
            data = encode_ops(generate_ops(rng, plan.header, session.kinds, length))
        elif dice < _CROSSOVER_BELOW:
            data = crossover_bytes(
                _choose(rng, corpus), _choose(rng, corpus), max_size, rng.getrandbits(_SEED_BITS)
            )
        else:
            data = mutate(_choose(rng, corpus), max_size, rng.getrandbits(_SEED_BITS))
        known = len(corpus)
        _try(session, data, corpus)
        if len(corpus) > known and session.store is not None:
            session.store.save_input(data)
