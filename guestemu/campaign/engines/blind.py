# SPDX-License-Identifier: GPL-2.0-or-later
"""New programs alone: what the feedback of the other engines has to be better than.

Programs come from the generator that an atheris campaign draws its new programs from. Nothing that
covered something new is mutated. With a seed and a number of executions a session always does the
same.
"""

from __future__ import annotations

import random
from typing import Final

from guestemu.campaign.engines.base import Leave
from guestemu.campaign.mixed_mutator import MixedMutator
from guestemu.campaign.mutator import Mutator
from guestemu.campaign.session import Session, SessionOver

_SEED_BITS: Final = 32


class BlindEngine:
    """See the module's docstring."""

    name = "blind"
    summary = "new programs alone, no mutation: what feedback is measured against"
    remedy = ""

    def is_available(self) -> bool:
        """Always."""
        return True

    def run(self, session: Session, leave: Leave) -> None:
        """See `Engine.run`."""
        session.skips_known = True
        plan = session.plan
        size = session.executor.max_size
        mutator = MixedMutator(
            Mutator(plan.header, session.kinds, session.executor.decoder.extra), size
        )
        rng = random.Random(plan.seed)
        try:
            while True:
                data = mutator.mutate(b"", size, rng.getrandbits(_SEED_BITS))
                session.feedback.clear()
                if session.execute(data) and session.store is not None:
                    session.store.save_input(data)
        except SessionOver:
            return
