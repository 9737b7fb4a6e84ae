# SPDX-License-Identifier: GPL-2.0-or-later
"""Bugs of the SEV firmware and of KVM's ioctls over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from guestemu.campaign.planted.bug import Configuration, ZooBug, with_header
from guestemu.campaign.planted.hosts_firmware import (
    LateStateWorld,
    LaxLengthWorld,
    NarrowMirrorWorld,
    OneBlockWorld,
    SwappedEndsWorld,
    WarningWorld,
    WideMirrorWorld,
    defective_host,
    firmware_host,
)
from guestemu.host.firmware.host import SevFirmwareHost
from guestemu.host.firmware.kvm_vm import SevDefect

_HEADER: Final = with_header(host="sev-firmware")
_REPAIRED: Final = Configuration("sev-firmware", _HEADER)


def _firmware(
    bug_id: str, title: str, facts: str, where: str, host: Callable[[], SevFirmwareHost]
) -> ZooBug:
    planted = Configuration(f"sev-firmware with {bug_id}", _HEADER, host=host)
    return ZooBug(bug_id, title, facts, where, "firmware", "sev-firmware", planted, _REPAIRED)


FIRMWARE_BUGS: Final = (
    _firmware(
        "M13",
        "guest_len plus offset wraps at 32 bits before the page-cross test",
        "E23",
        "KVM before f94f053aa3a5",
        defective_host(SevDefect.LENGTH_OVERFLOW),
    ),
    _firmware(
        "M14",
        "RECEIVE_START leaks the firmware's handle where no ASID could be bound",
        "E24, CVE-2021-47389",
        "KVM before 5.15",
        defective_host(SevDefect.MISSING_DECOMMISSION),
    ),
    _firmware(
        "M15",
        "SEND_UPDATE_DATA copies old kernel memory out, past the packet",
        "E23",
        "KVM before d22d2474e395",
        defective_host(SevDefect.UNINITIALISED_TAIL),
    ),
    _firmware(
        "M16",
        "RECEIVE_UPDATE_DATA pins for read: the firmware writes the shared zero page",
        "E25",
        "KVM before 'Pin guest memory for write'",
        defective_host(SevDefect.READ_ONLY_PIN),
    ),
    _firmware(
        "M25",
        "user space triggers a WARN with the size of a region",
        "E28",
        "KVM before 2026",
        firmware_host(WarningWorld),
    ),
    _firmware(
        "M26",
        "DBG_DECRYPT of a short unaligned range copies one block of two",
        "E18",
        "KVM before 8d6297a3e73e",
        firmware_host(OneBlockWorld),
    ),
    _firmware(
        "M28a",
        "a mirror VM may send its owner away",
        "E20, F1",
        "mutation of KVM 7.1",
        firmware_host(WideMirrorWorld),
    ),
    _firmware(
        "M28b",
        "a mirror VM may issue no command at all",
        "E20",
        "KVM before 'Allow some commands for mirror VM'",
        firmware_host(NarrowMirrorWorld),
    ),
    _firmware(
        "M69a",
        "SEND_CANCEL leads to SENT and SEND_FINISH to RUNNING",
        "E1",
        "mutation of the firmware",
        firmware_host(SwappedEndsWorld),
    ),
    _firmware(
        "M69b",
        "SEND_UPDATE_DATA tests the lengths before the state",
        "E6",
        "mutation of the firmware",
        firmware_host(LateStateWorld),
    ),
    _firmware(
        "M70",
        "RECEIVE_UPDATE_DATA accepts guest_len other than trans_len",
        "E9",
        "mutation of the firmware",
        firmware_host(LaxLengthWorld),
    ),
)
"""In the order of the fact sheet."""
