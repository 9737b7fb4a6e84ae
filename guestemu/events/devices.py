# SPDX-License-Identifier: GPL-2.0-or-later
"""What emulated devices do to guest memory, and what a kernel says about its DMA mappings."""

from __future__ import annotations

from typing import ClassVar

from guestemu.events.base import Event


class DeviceAccess(Event, frozen=True, kw_only=True, tag="device-access"):
    """One DMA access of `device`: `size` bytes at `gpa`, the address as the driver wrote it.

    `part` names what the device was reading or writing (a queue, a descriptor, "data");
    `is_payload` separates data buffers, which a driver maps for one request, from rings and
    queues, which it allocates coherently.
    """

    device: str
    is_write: bool
    gpa: int
    size: int
    part: str
    is_payload: bool


class DeviceMessage(Event, frozen=True, kw_only=True, tag="device-message"):
    """An MSI-X message of `device`: it stores `data`, 32 bits, at `address`, as `entry` of its
    table says. `cpus` have the interrupt now, by APIC ID."""

    device: str
    entry: int
    address: int
    data: int
    cpus: tuple[int, ...]


class DmaMapping(Event, frozen=True, kw_only=True, tag="dma-mapping"):
    """One dma:* trace event of the kernel: `name` as in include/trace/events/dma.h, the DMA address
    without the C-bit, `size` in bytes."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"device"})

    name: str
    device: str
    gpa: int
    size: int


class DeviceViolation(Event, frozen=True, kw_only=True, tag="device-violation"):
    """A device access that a rule forbids: `rule` is the rule's name, `text` one line."""

    blank: ClassVar[frozenset[str]] = frozenset({"text"})

    rule: str
    device: str
    gpa: int
    size: int
    text: str
