# SPDX-License-Identifier: GPL-2.0-or-later
"""The ops that the host's side carries out: user space's ioctls, hardware, a migration's steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from guestemu.program.kinds import Argument, OpKind, OpSpec
from guestemu.program.kinds import argument as _a

_GFN: Final = _a("gfn", Argument.U64)
_PAGES: Final = _a("pages", Argument.COUNT, 1)

HOST_SPECS: Final[Mapping[OpKind, OpSpec]] = {
    OpKind.HOST_GET_BITMAP: OpSpec(
        "host_get_bitmap",
        (_GFN, _PAGES, _a("filler", Argument.BYTE)),
        "user space: KVM_GET_PAGE_ENC_BITMAP of absolute gfns into a buffer of `filler` bytes; "
        "the result is a negative errno or the buffer's first 32 bits",
    ),
    OpKind.HOST_SET_BITMAP: OpSpec(
        "host_set_bitmap",
        (_GFN, _PAGES, _a("bits", Argument.U64), _a("null", Argument.FLAG)),
        "user space: KVM_SET_PAGE_ENC_BITMAP of a buffer that repeats `bits`; null=1: no buffer",
    ),
    OpKind.HOST_RESET_BITMAP: OpSpec(
        "host_reset_bitmap", (), "user space: KVM_PAGE_ENC_BITMAP_RESET"
    ),
    OpKind.HOST_GET_LIST: OpSpec(
        "host_get_list",
        (_a("size", Argument.SIZE, 4096), _GFN, _a("pages", Argument.COUNT)),
        "user space: KVM_GET_SHARED_PAGES_LIST; with pages another vCPU reports them shared while "
        "the ioctl runs; the result is a negative errno or the number of regions",
    ),
    OpKind.HOST_SET_LIST: OpSpec(
        "host_set_list",
        (_GFN, _PAGES, _a("count", Argument.U64, 1), _a("null", Argument.FLAG)),
        "user space: KVM_SET_SHARED_PAGES_LIST of `count` regions of `pages` pages with as many "
        "between them; null=1: no buffer",
    ),
    OpKind.HOST_COMMIT_SLOT: OpSpec(
        "host_commit_slot", (_GFN, _PAGES), "user space: creates a memory slot (hot-plugged memory)"
    ),
    OpKind.HOST_RESET_VCPU: OpSpec("host_reset_vcpu", (), "the host resets a vCPU (INIT)"),
    OpKind.HOST_POISON_PAGE: OpSpec(
        "host_poison_page",
        (_GFN,),
        "the host cannot translate this gfn from now on (a poisoned page)",
        is_fault=True,
    ),
}
"""What the host's user space and hardware do; on a host without the ioctl the result is -ENOTTY."""

VMM_SPECS: Final[Mapping[OpKind, OpSpec]] = {
    OpKind.FAIL_CALL: OpSpec(
        "fail_call",
        (_a("after", Argument.SMALL), _a("errno", Argument.SMALL, 12)),
        "the VMM's call into its kernel fails with this errno and does nothing, after `after` "
        "calls that do what they should",
        is_fault=True,
    ),
    OpKind.GUEST_ACCESS: OpSpec(
        "guest_access",
        (_GFN, _a("private", Argument.FLAG)),
        "the guest touches a page with the C-bit `private`; 1: it exited with "
        "KVM_EXIT_MEMORY_FAULT and the VMM went on",
    ),
    OpKind.PIN_PAGE: OpSpec(
        "pin_page",
        (_GFN, _a("conversions", Argument.SMALL, 1)),
        "a page of a guest_memfd that converts in place has an extra reference until this many "
        "conversions to private were refused for it; 0: it has none any more",
        is_fault=True,
    ),
    OpKind.UNPLUG_SLOT: OpSpec(
        "unplug_slot", (_GFN, _PAGES), "user space: hot-unplugs the slot that the range meets"
    ),
}
"""What a VMM with guest_memfd meets; on a host without it the result is -ENOTTY."""

MIGRATION_SPECS: Final[Mapping[OpKind, OpSpec]] = {
    OpKind.MIGRATE_START: OpSpec(
        "migrate_start",
        (_PAGES, _a("firmware", Argument.FLAG)),
        "the host starts a live migration whose steps are about these pages (pages=0: all that the "
        "guest uses), all dirty; firmware=1: private pages go through the SEV firmware",
        has_page=True,
    ),
    OpKind.MIGRATE_HANDLER: OpSpec(
        "migrate_handler",
        (_PAGES,),
        "as migrate_start, but private pages go through migration handlers in mirror VMs of both "
        "sides",
        has_page=True,
    ),
    OpKind.HOST_DIRTY_FETCH: OpSpec(
        "host_dirty_fetch",
        (_a("clear", Argument.FLAG, 1),),
        "the dirty log into the snapshot, and with clear=1 out of the log; the result is the "
        "number of pages in the snapshot",
    ),
    OpKind.HOST_DIRTY_CLEAR: OpSpec(
        "host_dirty_clear", (), "the log of the pages in the snapshot is cleared; their number"
    ),
    OpKind.HOST_STATUS_COPY: OpSpec(
        "host_status_copy", (), "the host's record is copied; the number of shared frames in it"
    ),
    OpKind.HOST_SEND: OpSpec(
        "host_send",
        (_a("live", Argument.FLAG),),
        "the pages of the snapshot are sent and leave it, by the copied record or (live=1) by the "
        "record as it is now; their number",
    ),
    OpKind.MIGRATE_STOP: OpSpec(
        "migrate_stop",
        (),
        "the guest stops, all other pages, CPUs and host record follow, and it goes on at the "
        "destination",
    ),
}
"""A live migration, step by step; without one, or on a guest that has no second machine, the result
is -EINVAL or -ENOTTY."""

LINK_SPECS: Final[Mapping[OpKind, OpSpec]] = {
    OpKind.LINK_REPLAY: OpSpec(
        "link_replay",
        (_a("packet", Argument.SMALL), _a("moved", Argument.FLAG)),
        "on the way to the destination a firmware packet of this migration (number modulo all) "
        "arrives again, with moved=1 for this page; the result is 0, or -EIO if it is refused",
        has_page=True,
        is_fault=True,
    ),
    OpKind.LINK_REVERSE: OpSpec(
        "link_reverse",
        (_a("count", Argument.SMALL, 2),),
        "the next `count` firmware packets arrive in reverse order",
        is_fault=True,
    ),
}
"""Attacks on the wire of a migration; -EINVAL without a migration."""

MEMORY_SPECS: Final[Mapping[OpKind, OpSpec]] = {
    OpKind.EVICT: OpSpec(
        "evict",
        (_PAGES, _a("private", Argument.FLAG, 1)),
        "the cache lines of these pages with the C-bit `private` leave the CPU's cache, dirty ones "
        "to DRAM, as by eviction or CLFLUSH; the number of dirty ones; without `cache` in the "
        "header -ENOTTY",
        has_page=True,
    ),
    OpKind.HOST_READ: OpSpec(
        "host_read",
        (_a("offset", Argument.OFFSET),),
        "the VMM loads 8 bytes of the page through its own mapping (C=0)",
        has_page=True,
    ),
    OpKind.HOST_WRITE: OpSpec(
        "host_write",
        (
            _a("value", Argument.BYTE, 0xA5),
            _a("offset", Argument.OFFSET),
            _a("size", Argument.SIZE, 4096),
        ),
        "the VMM fills bytes of the page through its own mapping (C=0), to the page's end at most",
        has_page=True,
    ),
}
"""What happens to the bytes of guest memory without the guest's doing."""

SEV_SPECS: Final[Mapping[OpKind, OpSpec]] = {
    OpKind.SEV_IOCTL: OpSpec(
        "sev_ioctl",
        (
            _a("vm", Argument.SLOT),
            _a("command", Argument.SEV_COMMAND, 16),
            _a("size", Argument.SEV_LENGTH, 4096),
            _a("offset", Argument.SEV_OFFSET),
            _a("size2", Argument.SEV_LENGTH, 4096),
        ),
        "user space: KVM_MEMORY_ENCRYPT_OP on a VM of the firmware's host (0 runs, 1 is empty, 2 "
        "mirrors 0); `size` bytes at `offset` of its first page, `size2` of the other buffer; the "
        "result is 0, a negative errno, or the firmware's status",
    ),
    OpKind.SEV_REGION: OpSpec(
        "sev_region",
        (
            _a("vm", Argument.SLOT),
            _a("offset", Argument.U64),
            _a("size", Argument.U64, 4096),
            _a("unregister", Argument.FLAG),
        ),
        "user space: KVM_MEMORY_ENCRYPT_REG_REGION, or _UNREG_REGION, of guest memory",
    ),
}
"""What user space asks of KVM's SEV part; on a host without a modelled firmware: -ENOTTY."""

QEMU_SPECS: Final[Mapping[OpKind, OpSpec]] = {
    OpKind.QEMU_STATUS: OpSpec(
        "qemu_status",
        (
            _a("section", Argument.SLOT),
            _a("page", Argument.BYTE),
            _PAGES,
            _a("private", Argument.FLAG),
        ),
        "KVM records the status of pages from `page` of a section of memory on (section 15: no "
        "memory, gfn 2^32)",
    ),
    OpKind.QEMU_SYNC: OpSpec("qemu_sync", (), "QEMU brings its copy of the status up to date"),
    OpKind.QEMU_RESIZE: OpSpec(
        "qemu_resize", (_a("block", Argument.SLOT),), "QEMU resizes a RAM block (to the same size)"
    ),
    OpKind.QEMU_HANDOVER: OpSpec(
        "qemu_handover", (), "QEMU's status record goes through the stream to a destination"
    ),
    OpKind.QEMU_RESET: OpSpec("qemu_reset", (), "a system reset"),
    OpKind.QEMU_SEND: OpSpec(
        "qemu_send",
        (_a("step", Argument.SLOT),),
        "0: a page goes through the firmware; 1, 2, 3: the migration completes, fails, is "
        "cancelled (modulo 4)",
    ),
    OpKind.QEMU_RECORD: OpSpec(
        "qemu_record",
        (
            _a("record", Argument.SLOT),
            _a("first", Argument.U64),
            _a("second", Argument.U64),
            _a("third", Argument.U64),
            _a("filler", Argument.BYTE),
        ),
        "a record of the migration stream with these numbers arrives: 0 bitmap, 1 regions, 2 "
        "encrypted page, 3 blocks, 4 page, 5 raw words; the result is the number of records read",
    ),
}
"""The parts of a migrating QEMU; on a host without one: -ENOTTY."""
