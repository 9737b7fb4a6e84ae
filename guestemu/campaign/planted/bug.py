# SPDX-License-Identifier: GPL-2.0-or-later
"""What a planted bug is: two configurations that differ in it, and the check that must tell them.

A configuration says how guest and host of a testbed are made. In the *planted* one the bug is
there, in the *repaired* one it is not, and nothing else differs; a campaign on either starts from
nothing and runs the same target.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

import msgspec

from guestemu.checks import standard_checks
from guestemu.checks.base import Check
from guestemu.guest.base import Guest
from guestemu.guest.registry import GuestSettings, load_guest
from guestemu.host.base import Host
from guestemu.program.program import Header
from guestemu.runner.testbed import Testbed, host_of, settings_of, slots_of

_LAST: Final = 1000

BUDGET: Final = 200_000
"""Basic blocks that one op may take: several times what the longest conversion needs."""


class Configuration(msgspec.Struct, frozen=True):
    """One guest on one host under some checks.

    `name` is for people. `header` names guest, host and switches; `guest`, `host` and `checks`,
    where given, make other ones than the header's; `prepare` changes the finished testbed. Equal
    names mean equal configurations.
    """

    name: str
    header: Header = Header(budget=BUDGET)
    guest: Callable[[GuestSettings], Guest] | None = None
    host: Callable[[], Host] | None = None
    checks: Callable[[Host], tuple[Check, ...]] = standard_checks
    prepare: Callable[[Testbed], None] | None = None

    def build(self) -> Testbed:
        """Boots it. Raises what `load_guest` and `load_host` raise."""
        header = self.header
        settings = settings_of(header)
        guest = load_guest(settings) if self.guest is None else self.guest(settings)
        host = host_of(header) if self.host is None else self.host()
        host.describe_vm(slots_of(header), header.vcpus)
        testbed = Testbed(guest, host, self.checks(host))
        if self.prepare is not None:
            self.prepare(testbed)
        return testbed


class ZooBug(msgspec.Struct, frozen=True):
    """One animal.

    `id` is the item of the facts (M31, V2, GM10), with a letter where one item has several bugs;
    `title` what is wrong in one line; `facts` the items that describe it; `where` the part (a patch
    set, a kernel, "mutation" for a change of our own); `target` a name in `targets.TARGETS`;
    `check` the name of the check that must catch it.
    """

    id: str
    title: str
    facts: str
    where: str
    target: str
    check: str
    planted: Configuration
    repaired: Configuration


def with_header(
    guest: str = "snippet:6.12",
    host: str = "map-gpa-range",
    switches: tuple[str, ...] = (),
    memory: int = 64,
    vcpus: int = 1,
    budget: int = BUDGET,
    layout: str = "",
) -> Header:
    """The header of a configuration of the zoo; `memory` in MiB, `budget` in basic blocks."""
    return Header(guest, host, switches, memory=memory, vcpus=vcpus, budget=budget, layout=layout)


@functools.cache
def sort_key(bug_id: str) -> tuple[int, str]:
    """M9 before M10, M39a before M39b, the VMMs' own (V2a, GM10a) behind all others."""
    digits = "".join(letter for letter in bug_id if letter.isdigit())
    return int(digits or 0) + _LAST * bug_id.startswith(("V", "GM")), bug_id
