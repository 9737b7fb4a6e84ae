# SPDX-License-Identifier: GPL-2.0-or-later
"""Every planted bug, and the configurations without any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from string import ascii_uppercase
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.campaign.planted.bug import Configuration, ZooBug, sort_key
from guestemu.campaign.planted.catalogue_firmware import FIRMWARE_BUGS
from guestemu.campaign.planted.catalogue_guests import GUEST_BUGS
from guestemu.campaign.planted.catalogue_hosts import HOST_BUGS
from guestemu.campaign.planted.catalogue_mirror import MIRROR_BUGS
from guestemu.campaign.planted.catalogue_qemu import QEMU_BUGS
from guestemu.campaign.planted.catalogue_snp import SNP_BUGS
from guestemu.campaign.planted.catalogue_td import TD_BUGS
from guestemu.campaign.planted.catalogue_vmms import VMM_BUGS

BUGS: Final[Mapping[str, ZooBug]] = {
    bug.id: bug
    for bug in sorted(
        (
            *HOST_BUGS,
            *GUEST_BUGS,
            *FIRMWARE_BUGS,
            *QEMU_BUGS,
            *MIRROR_BUGS,
            *TD_BUGS,
            *SNP_BUGS,
            *VMM_BUGS,
        ),
        key=lambda bug: sort_key(bug.id),
    )
}
"""By id, in the order of the fact sheet."""


class RepairedConfiguration(msgspec.Struct, frozen=True):
    """A configuration without a known bug on one target, and the bugs whose twin it is."""

    target: str
    configuration: Configuration
    bugs: tuple[str, ...]


def find_bugs(ids: Iterable[str]) -> tuple[ZooBug, ...]:
    """The bugs called `ids` (none: all); M39 stands for M39a and M39b. Raises `InputError`."""
    chosen: dict[str, ZooBug] = {}
    for bug_id in ids:
        wanted = bug_id.upper()
        found = [
            bug
            for bug in BUGS.values()
            if bug.id.upper() == wanted or bug.id.upper().rstrip(ascii_uppercase) == wanted
        ]
        if not found:
            raise InputError(f"zoo bug {bug_id!r}: not in the zoo; see guestemu zoo list")
        chosen |= {bug.id: bug for bug in found}
    return tuple(chosen.values()) or tuple(BUGS.values())


def repaired_configurations(bugs: Iterable[ZooBug]) -> tuple[RepairedConfiguration, ...]:
    """The different repaired configurations of `bugs`, by target and name."""
    by_key: dict[tuple[str, str], list[ZooBug]] = {}
    for bug in bugs:
        by_key.setdefault((bug.target, bug.repaired.name), []).append(bug)
    return tuple(
        RepairedConfiguration(target, group[0].repaired, tuple(bug.id for bug in group))
        for (target, _), group in by_key.items()
    )
