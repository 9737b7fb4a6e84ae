# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of checks and the function that runs them on a host.

The checks call the host directly, without a machine. They assert what any sound host of its ABI
does and leave open what the generations decide differently (which error, whether a range beyond
RAM is refused or cut). The built-in hosts fail some as posted and none with every defect repaired.
A call of the host may take `LIMIT_S`, so a host that does not return fails the check that asked it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from guestemu.abi.errors import TimeUp
from guestemu.abi.hypercalls import KVM_HC_PAGE_ENC_STATUS_2019
from guestemu.conformance.hosts import conversions, msrs
from guestemu.conformance.hosts.probe import Abi, HostProbe
from guestemu.host.base import GuestFault, Host
from guestemu.host.kvm.historic import HistoricHost
from guestemu.machine.watchdog import Watchdog

Check = Callable[[HostProbe], Iterator[str]]
"""Runs on a freshly reset host; yields one line for each thing that is wrong."""

CHECKS: Final[Mapping[str, Check]] = {
    "fresh-vm": conversions.fresh_vm,
    "early-notice": conversions.early_notice,
    "single-ranges": conversions.single_ranges,
    "sequences": conversions.sequences,
    "size-hints": conversions.size_hints,
    "unaligned": conversions.unaligned,
    "wrapping": conversions.wrapping,
    "beyond-ram": conversions.beyond_ram,
    "refusals": conversions.refusals,
    "privilege": conversions.privilege,
    "other-numbers": conversions.other_numbers,
    "narrow-mode": conversions.narrow_mode,
    "any-input": conversions.any_input,
    "host-survives": conversions.host_survives,
    "repeatable": conversions.repeatable,
    "migration-control": msrs.migration_control,
    "reserved-bits": msrs.reserved_bits,
    "msr-privilege": msrs.msr_privilege,
    "unknown-msrs": msrs.unknown_msrs,
    "fault-orders": msrs.fault_orders,
}

LIMIT_S: Final = 5.0
"""Seconds of CPU time that one call of the host may take, with what a check does up to the next."""

_BEFORE_OPT_IN: Final = frozenset(
    {"fresh-vm", "early-notice", "migration-control", "reserved-bits", "msr-privilege"}
)
"""Checks of a guest that has not opted in; the others start with one that has (K1-m)."""


class HostFault(msgspec.Struct, frozen=True, gc=False):
    """One thing that is wrong with a host: the check's name and one line."""

    check: str
    message: str


def abi_of(host: Host) -> Abi:
    """The ABI to check `host` by: its own for a built-in historic one, else the merged ABI."""
    if not isinstance(host, HistoricHost):
        return Abi.MAP_GPA_RANGE
    if host.number == KVM_HC_PAGE_ENC_STATUS_2019:
        return Abi.PAGE_ENC_STATUS_2019
    return Abi.PAGE_ENC_STATUS


def check_host(host: Host, abi: Abi | None = None) -> list[HostFault]:
    """Runs every check on `host`; an empty list means that it conforms.

    `abi` defaults to `abi_of(host)`. An exception from the host, whatever it is, is a failure of
    the check that was running (only a fault for the guest inside an MSR exit is an answer).
    """
    chosen = abi or abi_of(host)
    failures = []
    with Watchdog(None, LIMIT_S) as bound:
        for name, check in CHECKS.items():
            bound.renew()
            try:
                probe = HostProbe(host, chosen, bound.renew)
                if name not in _BEFORE_OPT_IN:
                    probe.opt_in()
                failures += [HostFault(name, message) for message in check(probe)]
            except GuestFault as fault:
                text = f"a hypercall raised an exception in the guest: {fault}"
                failures.append(HostFault(name, text))
            except TimeUp as error:
                failures.append(HostFault(name, str(error)))
            except Exception as error:
                text = str(error) or type(error).__name__
                failures.append(HostFault(name, text.splitlines()[0]))
            bound.rest()
    return failures
