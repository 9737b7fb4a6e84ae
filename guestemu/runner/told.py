# SPDX-License-Identifier: GPL-2.0-or-later
"""A host hears what a guest said before the host was there."""

from __future__ import annotations

from collections.abc import Iterable

from guestemu.events.exits import HypercallExit
from guestemu.guest.base import BootExit
from guestemu.host.base import GuestFault, Host, Hypercall, VcpuAccess


def tell_exits(host: Host, exits: Iterable[BootExit], vcpu: VcpuAccess) -> None:
    """Tells `host`, fresh from `reset` or `restore`, the `exits` in their order, as `vcpu` made
    them; so its record is that of a host that was there."""
    for told in exits:
        try:
            if isinstance(told, HypercallExit):
                a0, a1, a2, a3 = told.args
                host.hypercall(Hypercall(told.nr, a0, a1, a2, a3, 0, True, vcpu))
            else:
                host.wrmsr(told.nr, told.args[0], vcpu)
        except GuestFault:
            continue  # a host without this MSR; the kernel's exception table goes on, too (A47)
