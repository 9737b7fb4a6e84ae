# SPDX-License-Identifier: GPL-2.0-or-later
"""Bugs of mirror VMs, of migration handlers and of the VMM that drives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from guestemu.campaign.planted.bug import Configuration, ZooBug, with_header
from guestemu.checks.mirror import CONTEXT, EXPORTED, SKIPPED, STOPPED
from guestemu.host.firmware.kvm_vm import SevDefect
from guestemu.host.firmware.world import SevWorld
from guestemu.host.mirror.host import MirrorHost
from guestemu.host.mirror.side import Weakness

_HEADER: Final = with_header(host="mirror")
_REPAIRED: Final = Configuration("mirror", _HEADER)


def mirror_host(defect: SevDefect | Weakness) -> Callable[[], MirrorHost]:
    """Hosts whose KVM, or whose handlers and VMMs, have one defect."""

    class Host(MirrorHost):
        """A host with a planted bug."""

        name: ClassVar[str] = "zoo-mirror"

        def make_world(self) -> SevWorld:
            """See `SevFirmwareHost`."""
            return SevWorld(defects=frozenset({defect} if isinstance(defect, SevDefect) else ()))

        def weaknesses(self) -> frozenset[Weakness]:
            """See `MirrorHost`."""
            return frozenset({defect} if isinstance(defect, Weakness) else ())

    return Host


def _mirror(
    bug_id: str, title: str, facts: str, where: str, check: str, defect: SevDefect | Weakness
) -> ZooBug:
    planted = Configuration(f"mirror with {bug_id}", _HEADER, host=mirror_host(defect))
    return ZooBug(bug_id, title, facts, where, "mirror", check, planted, _REPAIRED)


MIRROR_BUGS: Final = (
    _mirror(
        "M27",
        "COPY reads the source's context, unlocks it, installs what it read",
        "F2",
        "KVM 5.15",
        CONTEXT,
        SevDefect.MIRROR_SOURCE_UNLOCKED,
    ),
    _mirror(
        "M28c",
        "a mirror VM may issue every command",
        "E20, F1",
        "mutation of KVM 7.1",
        "sev-firmware",
        SevDefect.MIRROR_ALL_COMMANDS,
    ),
    _mirror(
        "M62b",
        "the handler's page tables have the C-bit at bit 47 on a processor with another one",
        "F11",
        "handler of the prototype of 2021",
        STOPPED,
        Weakness.CBIT_47,
    ),
    _mirror(
        "M63",
        "the handler's own pages are told by their offset in the RAM block",
        "F14",
        "QEMU of the prototype of 2021",
        SKIPPED,
        Weakness.BLOCK_OFFSET_SKIP,
    ),
    _mirror(
        "M64",
        "shared pages are also exported through the handler's C = 1",
        "F15",
        "mutation of QEMU of the prototype of 2021",
        EXPORTED,
        Weakness.UNCHECKED_STATUS,
    ),
)
"""In the order of the fact sheet."""
