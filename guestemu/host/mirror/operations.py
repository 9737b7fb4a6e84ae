# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration through handlers as operations of a program, on a host that has two ends of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from guestemu.host.mirror.world import MirrorWorld


@runtime_checkable
class HasMirrorWorld(Protocol):
    """A host with a guest that leaves, a destination, and handlers at both ends."""

    def mirror_world(self) -> MirrorWorld:
        """Both ends as they are now."""

    def mirror_context(self, is_move: bool, between: int) -> int:
        """See `ContextRace`: the capability's result; `context_problem` says what is wrong."""

    @property
    def context_problem(self) -> str:
        """Of the last `mirror_context`; empty if nothing is."""
