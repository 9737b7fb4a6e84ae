# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the source's objects for a patch set by name."""

from __future__ import annotations

from collections.abc import Iterable

from guestemu.abi.errors import InputError
from guestemu.host.qemu.interfaces import RegionSource, StatusSource
from guestemu.host.qemu.memory_map import MemoryMap
from guestemu.host.qemu.patch_sets import defects_left, patch_set
from guestemu.host.qemu.status import BitmapStatus, ListStatus, PageStatus
from guestemu.host.qemu.stream_format import Format


def page_status(
    machine: MemoryMap,
    name: str,
    repaired: Iterable[str] = (),
    *,
    bitmap: StatusSource | None = None,
    regions: RegionSource | None = None,
) -> PageStatus:
    """The status record of patch set `name` with `repaired` switches, over `bitmap` (2019, 2020) or
    `regions` (2021). `InputError` for an unknown name or switch, or if the source is missing."""
    version = patch_set(name)
    defects = defects_left(version, repaired)
    if version.wire is Format.LIST:
        if regions is None:
            raise InputError(f"{name} looks into a list of shared regions; give `regions`")
        return ListStatus(machine, version, defects, regions)
    if bitmap is None:
        raise InputError(f"{name} reads KVM's bitmap; give `bitmap`")
    return BitmapStatus(machine, version, defects, bitmap)
