# SPDX-License-Identifier: GPL-2.0-or-later
"""The ops of a kernel in user space whose device is hostile: what the device changes, and what the
kernel's own driver is asked for. A guest without devices answers -ENOSYS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from guestemu.program.kinds import Argument, OpKind, OpSpec, with_results
from guestemu.program.kinds import argument as _a

_CHANGE: Final = (
    _a("after", Argument.SMALL),
    _a("offset", Argument.OFFSET),
    _a("size", Argument.SLOT, 4),
    _a("value", Argument.U64),
)
_PLACE: Final = (_a("pages", Argument.SLOT), _a("sector", Argument.SMALL))

DEVICE_CHANGE_SPECS: Final[Mapping[OpKind, OpSpec]] = {
    OpKind.DEVICE_STORE: OpSpec(
        "device_store",
        _CHANGE,
        "of the device's store into memory after the next `after`, `size` bytes at `offset` become "
        "`value`; with size=0 the store is lost",
        is_fault=True,
    ),
    OpKind.DEVICE_REGISTER: OpSpec(
        "device_register",
        (_a("after", Argument.SMALL), _a("value", Argument.U64)),
        "the load from the device's registers after the next `after` returns `value`",
        is_fault=True,
    ),
    OpKind.DEVICE_CONFIG: OpSpec(
        "device_config",
        (_a("after", Argument.SMALL), _a("value", Argument.U64)),
        "the load from the device's PCI configuration space after the next `after` returns `value`",
        is_fault=True,
    ),
    OpKind.DEVICE_INTERRUPT: OpSpec(
        "device_interrupt",
        (_a("after", Argument.SMALL), _a("lost", Argument.FLAG)),
        "an interrupt without a cause at the device's store after the next `after`; with lost=1 "
        "the device's own interrupt after the next `after` is lost",
        is_fault=True,
    ),
    OpKind.DEVICE_POKE: OpSpec(
        "device_poke",
        (_a("page", Argument.SMALL), _a("offset", Argument.OFFSET), _a("value", Argument.U64)),
        "the device stores 8 bytes into the page that it touched first, second, ... (page=0, 1, "
        "...), at `offset`: a ring, a queue or a buffer",
        is_fault=True,
    ),
}
"""What a hostile device does."""

DEVICE_USE_SPECS: Final[Mapping[OpKind, OpSpec]] = with_results(
    {
        OpKind.DEVICE_READ: OpSpec(
            "device_read",
            _PLACE,
            "PID 1 reads `pages` pages (0: one sector) of the device's file through the kernel's "
            "driver; the result is read()'s, -ETIME where the driver waits for what was lost",
        ),
        OpKind.DEVICE_WRITE: OpSpec(
            "device_write",
            _PLACE,
            "PID 1 writes a pattern to the device's file, then fsync(); the result is as for "
            "device_read",
        ),
        OpKind.DEVICE_REBIND: OpSpec(
            "device_rebind",
            (),
            "the driver is unbound from the device and probes it again",
        ),
    }
)
"""What the driver is asked for."""

DEVICE_FAULT_SPECS: Final[Mapping[OpKind, OpSpec]] = {
    OpKind.DEVICE_UNBOUNCED: OpSpec(
        "device_unbounced",
        (),
        "the kernel forgets to bounce: io_tlb_mem.force_bounce becomes 0 in its memory",
        is_fault=True,
    ),
}
"""A defect of the kernel's, made by hand."""

DEVICE_SPECS: Final[Mapping[OpKind, OpSpec]] = {
    **DEVICE_CHANGE_SPECS,
    **DEVICE_USE_SPECS,
    **DEVICE_FAULT_SPECS,
}
