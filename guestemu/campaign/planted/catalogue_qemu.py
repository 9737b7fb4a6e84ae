# SPDX-License-Identifier: GPL-2.0-or-later
"""Bugs of QEMU's migration code: defects of the posted patch sets of 2019, 2020 and 2021."""

from __future__ import annotations

from typing import ClassVar, Final

from guestemu.campaign.planted.bug import Configuration, ZooBug, with_header
from guestemu.host.qemu.host import (
    QemuMigration2019Host,
    QemuMigration2020Host,
    QemuMigration2021Host,
    QemuMigrationHost,
)
from guestemu.host.qemu.patch_sets import patch_set
from guestemu.host.qemu.world import QemuWorld

_SMALL_PAGE_BITS: Final = 10


def _posted(
    bug_id: str,
    title: str,
    facts: str,
    host: type[QemuMigrationHost],
    switch: str,
    target: str = "sync",
    check: str = "qemu-status",
) -> ZooBug:
    """A defect that `switch` repairs, all others of the patch set repaired."""
    planted = tuple(known for known in host.switches if known != switch)
    return ZooBug(
        bug_id,
        title,
        facts,
        f"QEMU patch set {host.patch_set}",
        target,
        check,
        Configuration(f"{host.name} with {switch}", with_header(host=host.name, switches=planted)),
        Configuration(f"{host.name} repaired", with_header(host=host.name, switches=host.switches)),
    )


class SmallPagesHost(QemuMigrationHost):
    """A target with pages of 1 KiB, where flag 0x400 is an address bit (D8b)."""

    name: ClassVar[str] = "zoo-m75b"

    def make_world(self) -> QemuWorld:
        """See `QemuMigrationHost`."""
        return QemuWorld(patch_set(self.patch_set), frozenset(), _SMALL_PAGE_BITS)


_2019: Final = QemuMigration2019Host
_2020: Final = QemuMigration2020Host
_2021: Final = QemuMigration2021Host

QEMU_BUGS: Final = (
    _posted("M45", "words of 64 shared pages are not stored", "D4", _2019, "zero-word"),
    _posted(
        "M46",
        "an unaligned start moves one page per word and exchanges whole words",
        "D5",
        _2019,
        "unaligned-stride",
    ),
    _posted("M47", "a page counts as private if any of its word is", "D6", _2019, "word-test"),
    _posted("M48", "clearing dirty bits clears the page status", "D7", _2019, "clear-status"),
    _posted("M49", "the bitmap of a slot is stored over the section", "D2", _2019, "slot-section"),
    _posted("M50a", "the mask is ~0 >> n instead of ~0 >> (64 - n)", "D10", _2020, "mask"),
    _posted("M50b", "byte address and page number are mixed", "D10", _2020, "byte-page"),
    _posted("M50c", "the bits are not shifted to their place", "D10", _2020, "value-shift"),
    _posted("M51", "the two maps have opposite defaults", "D1", _2019, "defaults"),
    _posted("M52a", "SEND_FINISH after a failure", "D16", _2020, "finish-on-failure", "outgoing"),
    _posted(
        "M52b",
        "the freed packet header is used by the next attempt",
        "D16",
        _2020,
        "dangling-header",
        "outgoing",
        "resources",
    ),
    _posted("M55a", "an incoming list is appended", "D22", _2021, "list-load"),
    _posted("M55b", "gfns are cut to 32 bits on the wire", "D22", _2021, "list-width"),
    _posted("M55c", "the list survives a system reset", "D22", _2021, "list-reset"),
    _posted(
        "M56",
        "the gfn above the PCI hole is taken from the block's own address",
        "D23",
        _2021,
        "block-gfn",
    ),
    _posted(
        "M75a",
        "lengths and counts of the stream are believed",
        "D8b",
        _2019,
        "unchecked-wire",
        "stream",
        "resources",
    ),
    ZooBug(
        "M75b",
        "flag 0x400 is an address bit where pages are 1 KiB",
        "D8b",
        "QEMU patch set 2019-v2",
        "stream",
        "qemu-status",
        Configuration(
            "qemu-migration with pages of 1 KiB",
            with_header(host="qemu-migration"),
            host=SmallPagesHost,
        ),
        Configuration("qemu-migration", with_header(host="qemu-migration")),
    ),
    _posted("M76b", "device RAM is sent as private", "D8c", _2019, "device-ram"),
)
"""In the order of the fact sheet."""
