# SPDX-License-Identifier: GPL-2.0-or-later
"""Emulated hardware beside CPU and RAM, one file for each device.

A device on the PCI bus is a class derived from `PciFunction` with an entry here
(`register_device`). It is made with the GPA of its BAR, its interrupt line and its DMA port. What
it needs of a kernel stands in its class: `MODULES` and `NODE`.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.names import nearest
from guestemu.machine.devices.nvme import NvmeController
from guestemu.machine.devices.pci import PciFunction
from guestemu.machine.devices.virtio_blk import VirtioBlk
from guestemu.machine.devices.virtio_console import VirtioConsole
from guestemu.machine.devices.virtio_net import VirtioNet
from guestemu.machine.devices.virtio_rng import VirtioRng
from guestemu.machine.devices.vmxnet3 import Vmxnet3

AnyFunction: TypeAlias = PciFunction[msgspec.Struct]
"""Whatever its state is."""

_DEVICES: Final[dict[str, type[AnyFunction]]] = {
    "nvme": NvmeController,
    "virtio-rng": VirtioRng,
    "virtio-blk": VirtioBlk,
    "virtio-net": VirtioNet,
    "virtio-console": VirtioConsole,
    "vmxnet3": Vmxnet3,
}


def register_device(name: str, make: type[AnyFunction]) -> None:
    """Adds a device, or replaces one; installed packages call it (parts.py)."""
    _DEVICES[name] = make


def device_names() -> tuple[str, ...]:
    """What `find_device` knows."""
    return tuple(_DEVICES)


def find_device(name: str) -> type[AnyFunction]:
    """The device `name`. Raises `InputError` for another name."""
    make = _DEVICES.get(name)
    if make is None:
        raise InputError(f"device {name}: {nearest(name, _DEVICES)}")
    return make
