# SPDX-License-Identifier: GPL-2.0-or-later
"""The host with the security processor, a mirror VM and migration handlers: the target of
`guestemu fuzz mirror`. Everything is made when a program first asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

import msgspec

from guestemu.host.firmware.host import SevFirmwareHost
from guestemu.program.ops import MIRROR_SPECS, Op, OpKind

if TYPE_CHECKING:
    from guestemu.host.mirror.side import Weakness
    from guestemu.host.mirror.world import MirrorWorld


class MirrorHost(SevFirmwareHost):
    """`sev-firmware` plus the two ends of a migration through handlers that authenticate a packet's
    sender, address and order, and spare themselves."""

    name: ClassVar[str] = "mirror"
    summary: ClassVar[str] = (
        "sev-firmware with mirror VMs and migration handlers, driven by mirror_setup and others"
    )

    def reset(self, frames: int) -> None:
        """See `Host`."""
        self._mirror: MirrorWorld | None = getattr(self, "_mirror", None)
        if self._mirror is not None:
            self._mirror.close()
        self._mirror = None
        self.context_problem = ""
        super().reset(frames)

    def restore(self, frames: int) -> None:
        """See `Host`."""
        if self._mirror is not None:
            self._mirror.reset()
        self.context_problem = ""
        super().restore(frames)

    def weaknesses(self) -> frozenset[Weakness]:
        """What handlers and VMMs have wrong: nothing."""
        return frozenset()

    def mirror_world(self) -> MirrorWorld:
        """See `HasMirrorWorld`."""
        if self._mirror is None:
            from guestemu.host.mirror.world import MirrorWorld

            self._mirror = MirrorWorld(self.weaknesses())
        return self._mirror

    def operations(self) -> Mapping[OpKind, Callable[..., int]]:
        """See `Host`; those of both ends are methods of `MirrorWorld`."""
        return {
            **super().operations(),
            OpKind.MIRROR_SETUP: lambda *args: self.mirror_world().set_up(*args),
            OpKind.MIRROR_WRITE: lambda *args: self.mirror_world().write(*args),
            OpKind.MIRROR_TELL: lambda *args: self.mirror_world().tell(*args),
            OpKind.MIRROR_POKE: lambda *args: self.mirror_world().poke(*args),
            OpKind.MIRROR_PLUG: lambda change: self.mirror_world().plug(change),
            OpKind.MIRROR_LOAD: lambda *args: self.mirror_world().load(*args),
            OpKind.MIRROR_MIGRATE: lambda *args: self.mirror_world().migrate(*args),
            OpKind.MIRROR_SAVE: lambda *args: self.mirror_world().save(*args),
            OpKind.MIRROR_RESTORE: lambda *args: self.mirror_world().restore(*args),
            OpKind.MIRROR_INJECT: lambda *args: self.mirror_world().inject(*args),
            OpKind.MIRROR_COMMAND: lambda *args: self.mirror_world().command(*args),
            OpKind.MIRROR_CONTEXT: lambda *args: self.mirror_context(*args),
        }

    def plain(self, op: Op) -> Op:
        """See `Host`."""
        if op.kind not in MIRROR_SPECS:
            return super().plain(op)
        from guestemu.host.mirror.world import plain_arguments

        return msgspec.structs.replace(op, arguments=plain_arguments(op.kind, op.arguments))

    @property
    def state(self) -> int:
        """That of the base, and the situation of the migration."""
        return super().state | (0 if self._mirror is None else self._mirror.state) << 16

    def mirror_context(self, is_move: bool, between: int) -> int:
        """See `HasMirrorWorld`."""
        from guestemu.host.mirror.contexts import ContextRace

        world = self.sev_world()
        world.is_touched = True  # ASIDs were used
        race = ContextRace(world, is_move, between)
        self.context_problem = race.problem
        return race.result


class MirrorPrototypeHost(MirrorHost):
    """The prototype of 2021 (F10 to F14) on the same guest: handlers without cryptography, and what
    its VMM has wrong. Each switch repairs one defect."""

    name: ClassVar[str] = "mirror-2021"
    summary: ClassVar[str] = "mirror with the prototype of 2021: no cryptography, its VMM's defects"
    switches: ClassVar[tuple[str, ...]] = (
        "copy-form",
        "cbit-47",
        "block-offset-skip",
        "unchecked-status",
        "no-guard",
        "block-gpa",
        "unbound",
    )

    def weaknesses(self) -> frozenset[Weakness]:
        """Those that no switch repairs."""
        from guestemu.host.mirror.side import Weakness

        return frozenset(Weakness(name) for name in self.switches if name not in self.repaired)
