# SPDX-License-Identifier: GPL-2.0-or-later
"""The default host with a migrating QEMU beside it: the targets `sync` and `stream`.

`qemu-migration` is QEMU's code as it should have been; the others have the defects of the posted
patch sets, each with the switch that repairs it (`docs/qemu.md`). QEMU's modules are imported when
a program asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

import msgspec

from guestemu.host.kvm.findings import ResourceFinding
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.host.qemu.patch_sets import QemuDefect, defects_left, patch_set
from guestemu.program.ops import QEMU_SPECS, Op, OpKind

if TYPE_CHECKING:
    from guestemu.host.qemu.world import QemuWorld


class QemuMigrationHost(MapGpaRangeHost):
    """`map-gpa-range` plus QEMU's migration code with a bitmap (2019), all defects repaired."""

    name: ClassVar[str] = "qemu-migration"
    summary: ClassVar[str] = "map-gpa-range with QEMU's migration code, driven by qemu_* operations"
    patch_set: ClassVar[str] = "2019-v2"
    is_as_posted: ClassVar[bool] = False

    def reset(self, frames: int) -> None:
        """See `Host`."""
        self._qemu: QemuWorld | None = None
        super().reset(frames)

    def restore(self, frames: int) -> None:
        """See `Host`; a QEMU that no operation touched stays."""
        if self._qemu is not None and self._qemu.is_touched:
            self._qemu = None
        super().restore(frames)

    def defects(self) -> frozenset[QemuDefect]:
        """The defects that this host has."""
        if not self.is_as_posted:
            return frozenset()
        return defects_left(patch_set(self.patch_set), self.repaired)

    def make_world(self) -> QemuWorld:
        """A new QEMU."""
        from guestemu.host.qemu.world import QemuWorld

        return QemuWorld(patch_set(self.patch_set), self.defects())

    def qemu_world(self) -> QemuWorld:
        """See `HasQemuWorld`."""
        if self._qemu is None:
            self._qemu = self.make_world()
        return self._qemu

    def operations(self) -> Mapping[OpKind, Callable[..., int]]:
        """See `Host`; QEMU's are methods of `QemuWorld`."""
        return {
            **super().operations(),
            OpKind.QEMU_STATUS: lambda *args: self.qemu_world().set_status(*args),
            OpKind.QEMU_SYNC: lambda: self.qemu_world().sync(),
            OpKind.QEMU_RESIZE: lambda block: self.qemu_world().resize(block),
            OpKind.QEMU_HANDOVER: lambda: self.qemu_world().handover(),
            OpKind.QEMU_RESET: lambda: self.qemu_world().reset(),
            OpKind.QEMU_SEND: lambda step: self.qemu_world().send(step),
            OpKind.QEMU_RECORD: lambda *args: self.qemu_world().feed(*args),
        }

    def plain(self, op: Op) -> Op:
        """See `Host`."""
        if op.kind not in QEMU_SPECS:
            return super().plain(op)
        from guestemu.host.qemu.world import plain_arguments

        return msgspec.structs.replace(op, arguments=plain_arguments(op.kind, op.arguments))

    @property
    def findings(self) -> tuple[ResourceFinding, ...]:
        """What the defects did to QEMU since the last reset."""
        return () if self._qemu is None else self._qemu.findings

    @property
    def state(self) -> int:
        """That of the base, and QEMU's."""
        return super().state | (0 if self._qemu is None else self._qemu.state) << 8


def _switches(name: str) -> tuple[str, ...]:
    return tuple(sorted(defect.value for defect in patch_set(name).defects))


class QemuMigration2019Host(QemuMigrationHost):
    """QEMU with the patch set of July 2019 as posted."""

    name: ClassVar[str] = "qemu-migration-2019"
    summary: ClassVar[str] = "the same with the defects of the patch set of July 2019"
    is_as_posted: ClassVar[bool] = True
    switches: ClassVar[tuple[str, ...]] = _switches("2019-v2")


class QemuMigration2020Host(QemuMigrationHost):
    """QEMU with the patch set of May 2020 as posted."""

    name: ClassVar[str] = "qemu-migration-2020"
    summary: ClassVar[str] = "the same with the defects of the patch set of May 2020"
    patch_set: ClassVar[str] = "2020-v1"
    is_as_posted: ClassVar[bool] = True
    switches: ClassVar[tuple[str, ...]] = _switches("2020-v1")


class QemuMigration2021Host(QemuMigrationHost):
    """QEMU with the patch set of August 2021 as posted."""

    name: ClassVar[str] = "qemu-migration-2021"
    summary: ClassVar[str] = "the same with the defects of the patch set of August 2021"
    patch_set: ClassVar[str] = "2021-v4"
    is_as_posted: ClassVar[bool] = True
    switches: ClassVar[tuple[str, ...]] = _switches("2021-v4")
