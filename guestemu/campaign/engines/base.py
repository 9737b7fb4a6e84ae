# SPDX-License-Identifier: GPL-2.0-or-later
"""The interface of an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, Protocol

from guestemu.campaign.session import Session

Leave = Callable[[BaseException | None], NoReturn]
"""Ends the process: with the session's last report (None), or saying what went wrong."""


class FuzzingEngine(Protocol):
    """Chooses inputs for a session until the session is over.

    `remedy` says in one phrase what a machine without the engine lacks and how to get it.
    """

    name: str
    summary: str
    remedy: str

    def is_available(self) -> bool:
        """Whether this machine has what the engine needs."""

    def run(self, session: Session, leave: Leave) -> None:
        """Feeds `session` until it raises `SessionOver`, then returns.

        An engine that cannot return calls `leave`, also for any other exception; one that can lets
        it pass.
        """
