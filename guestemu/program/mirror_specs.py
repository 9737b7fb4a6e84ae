# SPDX-License-Identifier: GPL-2.0-or-later
"""The ops of a migration through handlers: the guest, both VMMs, and what each may do wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from guestemu.program.kinds import Argument, OpKind, OpSpec
from guestemu.program.kinds import argument as _a

_PLACE: Final = _a("place", Argument.SLOT)
_PAGE: Final = _a("page", Argument.BYTE)

MIRROR_SPECS: Final[Mapping[OpKind, OpSpec]] = {
    OpKind.MIRROR_SETUP: OpSpec(
        "mirror_setup",
        (_a("proposal", Argument.SLOT, 1), _a("other_build", Argument.FLAG)),
        "both ends anew; proposal 0: commands carry GPAs, 1: RAM addresses, low memory 1:1, 2: the "
        "handler at registered tuples, 3: copied into memory of the mirror's own; other_build=1: "
        "the destination's handler lies elsewhere",
    ),
    OpKind.MIRROR_WRITE: OpSpec(
        "mirror_write",
        (_PLACE, _PAGE, _a("value", Argument.BYTE, 0x5A), _a("shared", Argument.FLAG)),
        "the guest fills a page through a private or a shared mapping and tells the host; places: "
        "0 low RAM, 1 above the PCI hole, 2 hot-plugged, 3 unplugged, 4 VMSA, 5 the handler's, 6 "
        "the destination's handler's, 7 the hot-plugged page with the mailbox's offset",
    ),
    OpKind.MIRROR_TELL: OpSpec(
        "mirror_tell",
        (_PLACE, _PAGE, _a("private", Argument.FLAG)),
        "the guest tells the host a status of the page and maps nothing (a lie)",
    ),
    OpKind.MIRROR_POKE: OpSpec(
        "mirror_poke",
        (_PAGE, _a("value", Argument.BYTE, 0xCC)),
        "the guest fills a page of the handler",
    ),
    OpKind.MIRROR_PLUG: OpSpec(
        "mirror_plug",
        (_a("change", Argument.SLOT),),
        "memory of both ends: 0, 1 the DIMM goes, comes back; 2, 3 virtio-mem comes, goes (mod 4)",
    ),
    OpKind.MIRROR_LOAD: OpSpec(
        "mirror_load", (_PLACE, _PAGE), "the guest at the destination loads 8 bytes of the page"
    ),
    OpKind.MIRROR_MIGRATE: OpSpec(
        "mirror_migrate",
        (_PLACE, _PAGE),
        "the VMMs move the page: 0; 1: it does not travel; -EFAULT: it has no name; -EIO: refused",
    ),
    OpKind.MIRROR_SAVE: OpSpec(
        "mirror_save", (_PLACE, _PAGE), "the VMM has the page exported, whatever its status"
    ),
    OpKind.MIRROR_RESTORE: OpSpec(
        "mirror_restore",
        (_a("packet", Argument.BYTE), _PLACE, _PAGE),
        "the VMM has a former packet (modulo all) imported into any page; the handler's answer",
    ),
    OpKind.MIRROR_INJECT: OpSpec(
        "mirror_inject",
        (_a("kind", Argument.SLOT), _PLACE, _PAGE),
        "the VMM has a packet of its own making imported: 0 one bit of the last one flipped, 1 of "
        "another sender with the owner's key, 2 of one without (modulo 3)",
    ),
    OpKind.MIRROR_COMMAND: OpSpec(
        "mirror_command",
        (_a("destination", Argument.FLAG), _a("nr", Argument.U64), _a("address", Argument.U64)),
        "the VMM writes any command into the mailbox of one side; the handler's answer",
    ),
    OpKind.MIRROR_CONTEXT: OpSpec(
        "mirror_context",
        (_a("move", Argument.FLAG), _a("between", Argument.SLOT)),
        "KVM_CAP_VM_COPY_ENC_CONTEXT_FROM (move=1: MOVE) on a new VM, and in the middle of it 1 a "
        "MOVE of the source, 2 a COPY, 3 its close (modulo 4)",
    ),
}
"""On a host without mirror VMs the result is -ENOTTY."""
