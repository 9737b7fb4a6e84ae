# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks: one module per oracle. `standard_checks` is the set that every run uses."""

from __future__ import annotations

from guestemu.checks.base import Check
from guestemu.checks.conversion import ConversionCheck, MappingCheck
from guestemu.checks.free import FreePagesCheck
from guestemu.checks.migration_control import MigrationControlCheck
from guestemu.checks.progress import ProgressCheck
from guestemu.checks.ready import ReadyCheck
from guestemu.checks.record import RecordCheck
from guestemu.checks.results import ResultCheck


def standard_checks() -> tuple[Check, ...]:
    """One of each, in the order in which their violations are reported."""
    return (
        ProgressCheck(),
        MappingCheck(),
        ConversionCheck(),
        ResultCheck(),
        RecordCheck(),
        MigrationControlCheck(),
        ReadyCheck(),
        FreePagesCheck(),
    )
