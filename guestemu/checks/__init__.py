# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks: one module per oracle. `standard_checks` is the set that every run uses."""

from __future__ import annotations

from guestemu.checks.base import Check
from guestemu.checks.conversion import ConversionCheck, MappingCheck
from guestemu.checks.free import FreePagesCheck
from guestemu.checks.guest_memory import GuestMemoryCheck
from guestemu.checks.host_ioctls import HostIoctlCheck
from guestemu.checks.migration_control import MigrationControlCheck
from guestemu.checks.mirror import MirrorCheck
from guestemu.checks.page_enc import NUMBERS, PageEncRecordCheck, PageEncResultCheck
from guestemu.checks.progress import ProgressCheck
from guestemu.checks.qemu_status import QemuStatusCheck
from guestemu.checks.ready import ReadyCheck
from guestemu.checks.record import RecordCheck
from guestemu.checks.resources import ResourceCheck
from guestemu.checks.results import ResultCheck
from guestemu.checks.sev_firmware import SevFirmwareCheck
from guestemu.host.base import Host
from guestemu.host.firmware.operations import HasSevWorld
from guestemu.host.kvm.findings import ReportsFindings
from guestemu.host.kvm.guest_memory import HasGuestMemory
from guestemu.host.mirror.operations import HasMirrorWorld
from guestemu.host.qemu.operations import HasQemuWorld


def standard_checks(host: Host | None = None) -> tuple[Check, ...]:
    """One of each, in the order in which their violations are reported.

    For a given `host` without those that never apply to it (they would only take time).
    """
    checks: list[Check] = [ProgressCheck(), MappingCheck(), ConversionCheck()]
    if host is None or host.contract not in NUMBERS:
        checks += [ResultCheck(), RecordCheck(), MigrationControlCheck()]
    if host is None or host.contract in NUMBERS:
        checks += [PageEncResultCheck(), PageEncRecordCheck(), HostIoctlCheck()]
    if host is None or isinstance(host, ReportsFindings):
        checks.append(ResourceCheck())
    if host is None or isinstance(host, HasGuestMemory):
        checks.append(GuestMemoryCheck())
    if host is None or isinstance(host, HasSevWorld):
        checks.append(SevFirmwareCheck())
    if host is None or isinstance(host, HasQemuWorld):
        checks.append(QemuStatusCheck())
    if host is None or isinstance(host, HasMirrorWorld):
        checks.append(MirrorCheck())
    return (*checks, ReadyCheck(), FreePagesCheck())
