# SPDX-License-Identifier: GPL-2.0-or-later
"""No guest frame of an SNP guest has two validated system frames (N55).

With two, the hypervisor can show the guest old content in place of new at any time, and neither the
RMP nor the guest notices. A guest gets there only if it validates a page for a second time after
its hypervisor put other memory behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Protocol, runtime_checkable

from guestemu.checks.base import OpView, Oracle, Violation
from guestemu.host.base import Host
from guestemu.machine.exits import Shutdown
from guestemu.machine.rmp import VALIDATED, Rmp
from guestemu.program.ops import OpKind


@runtime_checkable
class HasRmp(Protocol):
    """A guest that runs under SNP."""

    @property
    def rmp(self) -> Rmp | None:
        """The reverse map table; None for a guest without SNP."""


class PageStateCheck(Oracle):
    """No guest frame of an SNP guest has two validated system frames (N55).

    A guest that ended itself, or that its host does not enter again, is not judged any more: what a
    program calls in it afterwards cannot happen.
    """

    name = "page-states"
    kinds: frozenset[OpKind] | None = None

    demands: ClassVar[Mapping[str, str]] = {
        "page-states": "No frame of the guest has two system frames that are validated for it.",
    }
    explanations: ClassVar[Mapping[str, str]] = {
        "page-states": "The hypervisor can show the guest old content in place of new at any time."
    }

    def __init__(self) -> None:
        self._is_over = False

    @classmethod
    def applies(cls, host: Host) -> bool:
        """Only a hypervisor that lies puts other memory behind a page."""
        return bool(host.lie)

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        guest = view.guest
        rmp = guest.rmp if isinstance(guest, HasRmp) else None
        if not view.index:
            self._is_over = False
        if rmp is None or self._is_over:
            return
        self._is_over = isinstance(view.outcome.end, Shutdown)
        if view.op.kind is OpKind.SET_MEMORY_ENCRYPTED and view.outcome.value == 0 and view.frames:
            first, pages = view.frames
            for gfn in range(first, min(first + pages, rmp.frames)):
                if rmp.state(gfn) != VALIDATED:
                    message = f"frame {gfn:#x} was encrypted and is {rmp.describe(gfn)}"
                    yield Violation(self.name, view.index, message, "N55")
                    break
        twice = rmp.validated_twice()
        if not twice:
            return
        message = (
            f"frame {twice[0]:#x} has two validated system frames ({len(twice)} such frames): the "
            "hypervisor can bring its old content back"
        )
        yield Violation(self.name, view.index, message, "N55")
