# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks: one module per oracle. `standard_checks` is the set that every run uses."""

from __future__ import annotations

from typing import Final

from guestemu.checks.base import Check, Oracle
from guestemu.checks.conversion import ConversionCheck, MappingCheck
from guestemu.checks.device import DeviceCheck
from guestemu.checks.free import FreePagesCheck
from guestemu.checks.guest_memory import GuestMemoryCheck
from guestemu.checks.host_ioctls import HostIoctlCheck
from guestemu.checks.migration_control import MigrationControlCheck
from guestemu.checks.mirror import MirrorCheck
from guestemu.checks.page_enc import PageEncRecordCheck, PageEncResultCheck
from guestemu.checks.page_states import PageStateCheck
from guestemu.checks.progress import ProgressCheck
from guestemu.checks.psc import PscCheck
from guestemu.checks.qemu_status import QemuStatusCheck
from guestemu.checks.ready import ReadyCheck
from guestemu.checks.record import RecordCheck
from guestemu.checks.resources import ResourceCheck
from guestemu.checks.results import ResultCheck
from guestemu.checks.sev_firmware import SevFirmwareCheck
from guestemu.checks.td import TdCheck
from guestemu.host.base import Host

_STANDARD: Final[list[type[Oracle]]] = [
    ProgressCheck,
    MappingCheck,
    ConversionCheck,
    ResultCheck,
    RecordCheck,
    MigrationControlCheck,
    TdCheck,
    PageEncResultCheck,
    PageEncRecordCheck,
    HostIoctlCheck,
    ResourceCheck,
    GuestMemoryCheck,
    SevFirmwareCheck,
    QemuStatusCheck,
    MirrorCheck,
    PageStateCheck,
    PscCheck,
    ReadyCheck,
    FreePagesCheck,
    DeviceCheck,
]
"""In the order in which their violations are reported."""


def register_check(kind: type[Oracle]) -> type[Oracle]:
    """Adds a check that another package defines to those of every run. A class decorator."""
    _STANDARD.append(kind)
    return kind


def standard_checks(host: Host | None = None) -> tuple[Check, ...]:
    """One of each; for a given `host` without those that never apply to it."""
    return tuple(kind() for kind in _STANDARD if host is None or kind.applies(host))
