# SPDX-License-Identifier: GPL-2.0-or-later
"""What the ops of a hostile device do: order its changes, use it through the kernel's driver."""

from __future__ import annotations

from typing import Final

from guestemu.guest.base import CallOutcome
from guestemu.machine.devices.hostile import CONFIG, REGISTER, STORE
from guestemu.program.ops import Op, OpKind
from guestemu.runner.operations import OpContext, operation

_WHOLE: Final = 8
"""A load is at most this many bytes: all of it becomes the value."""


@operation(OpKind.DEVICE_STORE)
def device_store(scene: OpContext, op: Op) -> CallOutcome:
    """One of the device's next stores changes, or is lost."""
    after, offset, size, value = op.arguments
    return scene.guest.use_device(lambda device: device.order(STORE, after, offset, size, value))


@operation(OpKind.DEVICE_REGISTER)
def device_register(scene: OpContext, op: Op) -> CallOutcome:
    """One of the next loads from the device's registers changes."""
    after, value = op.arguments
    return scene.guest.use_device(lambda device: device.order(REGISTER, after, 0, _WHOLE, value))


@operation(OpKind.DEVICE_CONFIG)
def device_config(scene: OpContext, op: Op) -> CallOutcome:
    """One of the next loads from configuration space changes."""
    after, value = op.arguments
    return scene.guest.use_device(lambda device: device.order(CONFIG, after, 0, _WHOLE, value))


@operation(OpKind.DEVICE_INTERRUPT)
def device_interrupt(scene: OpContext, op: Op) -> CallOutcome:
    """An interrupt without a cause, or one that is lost."""
    after, lost = op.arguments
    return scene.guest.use_device(lambda device: device.order_interrupt(after, bool(lost)))


@operation(OpKind.DEVICE_POKE)
def device_poke(scene: OpContext, op: Op) -> CallOutcome:
    """The device stores into a page that it has touched."""
    page, offset, value = op.arguments
    return scene.guest.use_device(lambda device: device.poke(page, offset, value))


@operation(OpKind.DEVICE_READ)
def device_read(scene: OpContext, op: Op) -> CallOutcome:
    """read() of the device's file."""
    pages, sector = op.arguments
    return scene.guest.use_device(lambda device: device.read(pages, sector))


@operation(OpKind.DEVICE_WRITE)
def device_write(scene: OpContext, op: Op) -> CallOutcome:
    """write() to the device's file."""
    pages, sector = op.arguments
    return scene.guest.use_device(lambda device: device.write(pages, sector))


@operation(OpKind.DEVICE_REBIND)
def device_rebind(scene: OpContext, _op: Op) -> CallOutcome:
    """The driver is unbound and probes again."""
    return scene.guest.use_device(lambda device: device.rebind())


@operation(OpKind.DEVICE_UNBOUNCED)
def device_unbounced(scene: OpContext, _op: Op) -> CallOutcome:
    """The kernel forgets to bounce."""
    return scene.guest.use_device(lambda device: device.stop_bouncing())
