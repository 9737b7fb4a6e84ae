# SPDX-License-Identifier: GPL-2.0-or-later
"""Which function of `guestemu.host.ioctls` each host operation of a program calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from guestemu.guest.base import CallOutcome
from guestemu.host import ioctls
from guestemu.host.base import Host
from guestemu.host.firmware import operations as firmware
from guestemu.host.mirror import operations as mirror
from guestemu.host.qemu import operations as qemu
from guestemu.program.ops import Op, OpKind

HOST_OPERATIONS: Final[Mapping[OpKind, Callable[..., int]]] = {
    OpKind.HOST_GET_BITMAP: ioctls.get_bitmap,
    OpKind.HOST_SET_BITMAP: ioctls.set_bitmap,
    OpKind.HOST_RESET_BITMAP: ioctls.reset_bitmap,
    OpKind.HOST_GET_LIST: ioctls.get_list,
    OpKind.HOST_SET_LIST: ioctls.set_list,
    OpKind.HOST_COMMIT_SLOT: ioctls.commit_slot,
    OpKind.HOST_RESET_VCPU: ioctls.reset_vcpu,
    OpKind.HOST_POISON_PAGE: ioctls.poison_page,
    OpKind.SEV_IOCTL: firmware.sev_ioctl,
    OpKind.SEV_REGION: firmware.sev_region,
    OpKind.MIRROR_SETUP: mirror.mirror_setup,
    OpKind.MIRROR_WRITE: mirror.mirror_write,
    OpKind.MIRROR_TELL: mirror.mirror_tell,
    OpKind.MIRROR_POKE: mirror.mirror_poke,
    OpKind.MIRROR_PLUG: mirror.mirror_plug,
    OpKind.MIRROR_LOAD: mirror.mirror_load,
    OpKind.MIRROR_MIGRATE: mirror.mirror_migrate,
    OpKind.MIRROR_SAVE: mirror.mirror_save,
    OpKind.MIRROR_RESTORE: mirror.mirror_restore,
    OpKind.MIRROR_INJECT: mirror.mirror_inject,
    OpKind.MIRROR_COMMAND: mirror.mirror_command,
    OpKind.MIRROR_CONTEXT: mirror.mirror_context,
    OpKind.QEMU_STATUS: qemu.qemu_status,
    OpKind.QEMU_SYNC: qemu.qemu_sync,
    OpKind.QEMU_RESIZE: qemu.qemu_resize,
    OpKind.QEMU_HANDOVER: qemu.qemu_handover,
    OpKind.QEMU_RESET: qemu.qemu_reset,
    OpKind.QEMU_SEND: qemu.qemu_send,
    OpKind.QEMU_RECORD: qemu.qemu_record,
}
"""Each takes the host and the operation's arguments in their order."""


def host_operations(host: Host) -> Mapping[OpKind, Callable[[Op], CallOutcome]]:
    """The host operations on `host`, by kind; the outcome's value is the ioctl's result."""

    def run(op: Op) -> CallOutcome:
        return CallOutcome(HOST_OPERATIONS[op.kind](host, *op.arguments))

    return dict.fromkeys(HOST_OPERATIONS, run)
