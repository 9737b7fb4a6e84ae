# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest allows migration only after the host knows which frames are shared.

Judged when a kernel flow (not a raw WRMSR of the program) makes the host's latch go from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Final

from guestemu.checks.base import OpView, Oracle, Violation
from guestemu.program.ops import OpKind

_INIT_PLATFORM: Final = OpKind.INIT_PLATFORM


class ReadyCheck(Oracle):
    """READY only after the boot-time notifications (A40, H.4 item 6)."""

    name = "ready"
    kinds: frozenset[OpKind] | None = frozenset({_INIT_PLATFORM})
    demands: ClassVar[Mapping[str, str]] = {
        "ready": (
            "The guest allows its migration only after it told the host of every page that it "
            "shares."
        ),
    }
    explanations: ClassVar[Mapping[str, str]] = {
        "ready": "A migration may start now and would move pages with the wrong status.",
    }

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        if view.op.kind is not _INIT_PLATFORM or view.ready_before:
            return ()
        if not view.host.migration_ready:
            return ()
        status = view.host.private_map()
        found = view.guest.leaf_map.private
        wrong = (status ^ found).count()
        if not wrong:
            return ()
        message = (
            f"MIGRATION_CONTROL is READY while the host has the wrong status of {wrong} frames"
        )
        return (Violation(self.name, view.index, message, "A40, H.4 item 6"),)
