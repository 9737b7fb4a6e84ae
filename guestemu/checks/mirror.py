# SPDX-License-Identifier: GPL-2.0-or-later
"""Threats to a migration through handlers, and what of it is lost (F7 to F16).

After each operation on a host with two ends of one: an intact handler answers; a page that
was reported as moved is what it was; pages of the guest are not left out; only pages that the
host knows as private leave through the handler; the host reads no private page; a handler takes the
packet that is due, for its own page, from its peer, once; the handler's own pages stay; an ASID has
one owner and mirrors have one that lives. What a guest loses that lied, or wrote into its handler,
is its own loss (F9) and no violation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from guestemu.checks.base import OpView, Oracle, Violation
from guestemu.host.base import Host
from guestemu.host.mirror.operations import HasMirrorWorld
from guestemu.program.ops import MIRROR_SPECS, OpKind

if TYPE_CHECKING:
    from guestemu.host.mirror.world import Seen

STOPPED: Final = "mirror_stopped"
LOST: Final = "mirror_lost"
SKIPPED: Final = "mirror_skipped"
EXPORTED: Final = "mirror_exported"
READABLE: Final = "mirror_readable"
ACCEPTED: Final = "mirror_accepted"
OVERWRITTEN: Final = "mirror_overwritten"
CONTEXT: Final = "mirror_context"


class MirrorCheck(Oracle):
    """See the module's docstring."""

    name = "mirror"
    kinds: frozenset[OpKind] | None = frozenset(MIRROR_SPECS)

    demands: ClassVar[Mapping[str, str]] = {
        STOPPED: "The migration handler answers every command.",
        LOST: "A page that was said to have moved holds at the destination what it held.",
        SKIPPED: "Every page of the guest is moved.",
        EXPORTED: "Only pages that the host's record has as private leave through the handler.",
        READABLE: "The host cannot read a private page in the handler's mailbox.",
        ACCEPTED: (
            "The handler takes a packet of its peer once, in its turn, for the page it was made of."
        ),
        OVERWRITTEN: "No packet overwrites the handler's own pages.",
        CONTEXT: "An ASID has one owner, and a mirror VM has an owner that lives.",
    }
    explanations: ClassVar[Mapping[str, str]] = {
        STOPPED: "QEMU gives the migration up with -EIO: the guest cannot leave this host.",
        LOST: "The guest reads something else at the destination.",
        SKIPPED: "The page stays behind: the guest reads zeros or old bytes at the destination.",
        EXPORTED: "The handler reads shared memory through its private mapping: garbage arrives.",
        READABLE: "The guest's private memory is the host's to read.",
        ACCEPTED: "The host chooses what the guest's memory holds at the destination.",
        OVERWRITTEN: "The host can change the code and the keys of the destination's handler.",
        CONTEXT: "A VM runs with another one's memory key, or with a key that was freed.",
    }

    @classmethod
    def applies(cls, host: Host) -> bool:
        """Hosts with mirror VMs."""
        return isinstance(host, HasMirrorWorld)

    def __init__(self) -> None:
        self._host: Host | None = None
        self._mirrors: HasMirrorWorld | None = None

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        if view.host is not self._host:
            self._host = view.host
            self._mirrors = view.host if isinstance(view.host, HasMirrorWorld) else None
        host = self._mirrors
        if host is None:
            return ()
        if view.op.kind is OpKind.MIRROR_CONTEXT:
            problem = host.context_problem
            return (Violation(CONTEXT, view.index, problem, "F2, M27"),) if problem else ()
        return [
            Violation(name, view.index, message, fact)
            for name, message, fact in _judge(host.mirror_world().seen)
        ]


def _judge(seen: Seen) -> Iterator[tuple[str, str, str]]:
    stop = seen.stop
    if stop is not None:
        yield (
            STOPPED,
            f"the handler stopped at command {stop.nr} for {stop.address:#x}: {stop.cause.value}, "
            f"{stop.detail:#x}, at {stop.rip:#x}",
            "F11, F13",
        )
    if seen.exported:
        yield EXPORTED, "a page that the host knows as shared left through the handler", "F15"
    if seen.is_readable:
        yield READABLE, "the host read a private page in the mailbox", "F12"
    if seen.accepted:
        yield ACCEPTED, seen.accepted, "F10"
    if seen.damaged:
        pages = ", ".join(f"{address:#x}" for address in seen.damaged)
        yield OVERWRITTEN, f"the destination's handler was overwritten: RAM {pages}", "F9"
    if seen.skipped:
        yield SKIPPED, "a page of the guest was taken for the handler's and never sent", "F14"
    if seen.lost:
        yield LOST, seen.lost, "F7, D23"
