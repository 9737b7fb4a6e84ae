# SPDX-License-Identifier: GPL-2.0-or-later
"""What every host must do, as checks that `guestemu hosts --check` and the tests run."""

from guestemu.conformance.hosts.probe import Abi
from guestemu.conformance.hosts.suite import CHECKS, HostFault, check_host

__all__ = ["CHECKS", "Abi", "HostFault", "check_host"]
