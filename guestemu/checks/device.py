# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's driver beside a hostile device: accesses by the rules, no oops, no leak.

Each access of the device is judged when it happens (guest/linux/userland/rules.py); this check
hands on what was found, and what the kernel printed. Source: facts U20, U21.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Final

from guestemu.checks.base import OpView, Oracle, Violation
from guestemu.events.devices import DeviceViolation
from guestemu.program.ops import DEVICE_SPECS, OpKind

OOPS: Final = "device-oops"
_FACTS: Final = "U20, U21"


class DeviceCheck(Oracle):
    """No access of a device breaks a rule, whatever the device does: no page is used before the
    guest shared it, outside its bounce pool, or after its unmap. The kernel prints no WARN and no
    oops; an honest device's data arrive; read() returns nothing that the device did not store."""

    name = "device"
    kinds: frozenset[OpKind] | None = frozenset(DEVICE_SPECS)

    demands: ClassVar[Mapping[str, str]] = {
        OOPS: "The kernel prints no WARN and no oops, whatever the device does.",
        "device-data": "User space reads what the device stored.",
        "device-leak": "User space reads nothing that the device did not store.",
        "device-private-address": "The driver hands out shared addresses only.",
        "device-page-table": "A page that the device uses is shared in the kernel's page tables.",
        "device-host-status": "A page that the device uses is shared in the host's record.",
        "device-page-state": "A page that the device uses is shared by its page state.",
        "device-bounce-pool": (
            "The device reaches the bounce pool and coherent buffers, and no other page."
        ),
        "device-mapping": "The device reaches a buffer only until the driver unmaps it.",
    }
    explanations: ClassVar[Mapping[str, str]] = {
        OOPS: "A device that the guest need not trust brought the kernel to a WARN or an oops.",
        "device-data": "The device did as it was asked, and user space read something else.",
        "device-leak": "Memory of the kernel's reached user space as the device's data.",
        "device-private-address": "The device was given an address that it cannot reach: the data "
        "stay where they are, or the host must be let into private memory.",
        "device-page-table": "The kernel would read and write another view of the page than the "
        "device does.",
        "device-host-status": "The host has the page as private: the access faults there.",
        "device-page-state": "The page is the guest's by its page state: the access faults.",
        "device-bounce-pool": "A page that was not made for it was shown to the host.",
        "device-mapping": "The device reaches memory that the kernel uses for something else by "
        "now.",
    }

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        for _, event in view.emitted:
            if isinstance(event, DeviceViolation):
                yield Violation(event.rule, view.index, event.text, _FACTS)
        for warning in view.outcome.warnings:
            yield Violation(OOPS, view.index, f"the kernel printed: {warning}", _FACTS)
