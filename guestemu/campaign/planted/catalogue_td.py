# SPDX-License-Identifier: GPL-2.0-or-later
"""Bugs of TDX guests and of the KVM below them, planted in code that follows Linux 6.12 to 7.3."""

from __future__ import annotations

from typing import ClassVar, Final

import msgspec

from guestemu.campaign.planted.bug import Configuration, ZooBug, with_header
from guestemu.campaign.planted.guests import variant_guest
from guestemu.checks.td import TWICE
from guestemu.guest.base import Guest
from guestemu.guest.registry import GuestSettings, load_guest
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.host.kvm.tdx_cut import WANTS_TO_RUN
from guestemu.host.kvm.tdx_map_gpa import TdxKvm
from guestemu.program.program import SevKind

_HEADER: Final = msgspec.structs.replace(with_header(), sev=SevKind.TDX)
_HOSTILE: Final = msgspec.structs.replace(_HEADER, host="hostile-hypervisor:far")
_TARGET: Final = "mapgpa"


def _td(settings: GuestSettings) -> Guest:
    return load_guest(settings)


_CLEAN: Final = Configuration("TD of 6.12 to 7.3", _HEADER, guest=_td)


class _PlainRetryHost(MapGpaRangeHost):
    """Its KVM returns the next GPA of a retry without the shared bit."""

    name: ClassVar[str] = "tdx-plain-retry"

    @property
    def tdx_kvm(self) -> TdxKvm:
        """See the class."""
        return TdxKvm(name="mutation", drops_bit=True)


def _guest_bug(bug_id: str, title: str, facts: str, check: str) -> ZooBug:
    planted = Configuration(f"TD with {bug_id}", _HEADER, guest=variant_guest(bug_id.lower()))
    return ZooBug(
        id=bug_id,
        title=title,
        facts=facts,
        where="mutation",
        target=_TARGET,
        check=check,
        planted=planted,
        repaired=_CLEAN,
    )


def _cut(switches: tuple[str, ...]) -> Configuration:
    header = msgspec.structs.replace(_HEADER, host="tdx-cut", switches=switches)
    return Configuration(f"tdx-cut {' '.join(switches) or 'as it is'}", header)


TD_BUGS: Final = (
    _guest_bug("T14", "each page is accepted twice", "T14, T20", "td"),
    ZooBug(
        id="T14b",
        title="each page is accepted twice, and the VMM replaces it in between",
        facts="T14",
        where="mutation",
        target="hostile-td",
        check=TWICE,
        planted=Configuration("TD with T14, attacked", _HOSTILE, guest=variant_guest("t14")),
        repaired=Configuration("TD of 6.12 to 7.3, attacked", _HOSTILE, guest=_td),
    ),
    _guest_bug("T16", "entries are private before the pages are accepted", "T16, T17", "td"),
    _guest_bug("T17a", "a retry of MapGPA counts as success", "T17, T18", "status"),
    _guest_bug("T17b", "retries with progress count as stalls", "T17, T28", "td"),
    _guest_bug("T18", "MapGPA covers the first 2 MiB of a range only", "T17, T18", "status"),
    ZooBug(
        id="T28",
        title="KVM returns the next GPA of a retry without the shared bit",
        facts="T17, T28",
        where="mutation",
        target=_TARGET,
        check="td",
        planted=Configuration("TD over tdx-plain-retry", _HEADER, host=_PlainRetryHost),
        repaired=_CLEAN,
    ),
    ZooBug(
        id="T29",
        title="a migration between two chunks makes the guest read success for the rest",
        facts="T29",
        where="KVM up to 7.3",
        target=_TARGET,
        check="status",
        planted=_cut(()),
        repaired=_cut((WANTS_TO_RUN,)),
    ),
)
