# SPDX-License-Identifier: GPL-2.0-or-later
"""Bugs of the exit handlers of five VMMs of 2026, as their sources have them (V1 to V10).

One switch of a handler is left as released and all others are repaired; the repaired twin has all
of them repaired. V2k is a change of our own, and so are GM10a to GM10f: no released VMM converts in
place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from guestemu.campaign.planted.bug import Configuration, ZooBug, with_header
from guestemu.campaign.planted.checks import refusals, without_answers
from guestemu.campaign.planted.hosts_in_place import (
    AgainHost,
    EagainDoneHost,
    LateUnmapHost,
    OffsetAsGpaHost,
    RestForgottenHost,
    StaysUnmappedHost,
)
from guestemu.campaign.planted.hosts_vmms import DiscardAllHost
from guestemu.checks import standard_checks
from guestemu.checks.base import Check
from guestemu.host.base import Host
from guestemu.host.userspace import converting
from guestemu.host.userspace.cloud_hypervisor import CloudHypervisorHost
from guestemu.host.userspace.converting import VmmHost
from guestemu.host.userspace.dragonball import DragonballHost
from guestemu.host.userspace.in_place import InPlaceHost
from guestemu.host.userspace.libkrun import LibkrunHost
from guestemu.host.userspace.openvmm import OpenVmmHost
from guestemu.host.userspace.qemu_11 import Qemu11Host

_HYPERCALL: Final = "hypercall"
_CALLS: Final = "kernel-calls"
_MEMORY: Final = "guest-memory"
_RECORD: Final = "record"
_OLD: Final = "6.1"
"""A KVM that does not clear `hypercall.ret` before an exit (K3-g)."""

_WRAP: Final = "pages * 4096 wraps: a part of the range is converted, success is reported"
_FIRST: Final = "a later error is reported and leaves the attributes changed"
_NO_DISCARD: Final = "the backing that is not used any more keeps its pages"


class _Switch(msgspec.Struct, frozen=True):
    """A bug: the switch that repairs it, where it shows, and by which check."""

    id: str
    host: type[VmmHost]
    switch: str
    title: str
    facts: str
    check: str
    target: str = _HYPERCALL
    kernel: str = ""


_SWITCHES: Final = (
    _Switch(
        "V1a",
        LibkrunHost,
        converting.STALE_RET,
        "run->hypercall.ret is not written: the guest reads the answer of an earlier exit",
        "V1, K3-g",
        "results",
        kernel=_OLD,
    ),
    _Switch(
        "V2a",
        LibkrunHost,
        converting.ATTRIBUTES_WORD,
        "any attribute bit means private",
        "V2",
        _RECORD,
    ),
    _Switch("V2b", LibkrunHost, converting.SIZE_WRAP, _WRAP, "V2, V7", _RECORD),
    _Switch("V2c", CloudHypervisorHost, converting.SIZE_WRAP, _WRAP, "V2, V7", _RECORD),
    _Switch("V2d", DragonballHost, converting.SIZE_WRAP, _WRAP, "V2, V7", _RECORD),
    _Switch("V2e", Qemu11Host, converting.SIZE_WRAP, _WRAP, "V2, V7", _RECORD),
    _Switch("V2f", CloudHypervisorHost, converting.NO_DISCARD, _NO_DISCARD, "V2, GM3", _MEMORY),
    _Switch("V2g", DragonballHost, converting.NO_DISCARD, _NO_DISCARD, "V2, GM3", _MEMORY),
    _Switch(
        "V2h", OpenVmmHost, converting.ATTRIBUTES_FIRST, _FIRST, "V2, V6", _RECORD, target=_CALLS
    ),
    _Switch(
        "V2i", LibkrunHost, converting.ATTRIBUTES_FIRST, _FIRST, "V2, V5", _RECORD, target=_CALLS
    ),
    _Switch(
        "V2j",
        CloudHypervisorHost,
        converting.PUNCH_LOGGED,
        "a failed punch is logged, and the guest told success",
        "V2",
        _MEMORY,
        target=_CALLS,
    ),
    _Switch("V3a", Qemu11Host, converting.ATTRIBUTES_FIRST, _FIRST, "V3", _RECORD),
    _Switch(
        "V3b",
        Qemu11Host,
        converting.LISTENER_FAILS,
        "a VFIO listener that fails leaves the attributes changed",
        "V2",
        _RECORD,
        target=_CALLS,
    ),
    _Switch(
        "V4a",
        CloudHypervisorHost,
        converting.FAULT_NO_PUNCH,
        "a memory fault sets the attributes and keeps the private page",
        "V4",
        _MEMORY,
        target=_CALLS,
    ),
    _Switch(
        "V6a",
        OpenVmmHost,
        converting.ANSWER_ONE,
        "refuses with 1, which KVM 7.2 does not accept for a page-state change or MapGPA",
        "V6, GM20",
        "refusal",
    ),
)


def _bug(switch: _Switch) -> ZooBug:
    host = switch.host
    name = host.name + (f":{switch.kernel}" if switch.kernel else "")
    planted = tuple(known for known in host.switches if known != switch.switch)
    checks: Callable[[Host], tuple[Check, ...]] = standard_checks
    suffix = ""
    if switch.check == "refusal":
        checks, suffix = refusals, " by refusals"
    elif host is OpenVmmHost:  # it refuses unknown attributes
        checks, suffix = without_answers, " by its record"
    repaired = Configuration(
        f"{name} repaired{suffix}", with_header(host=name, switches=host.switches), checks=checks
    )
    return ZooBug(
        id=switch.id,
        title=switch.title,
        facts=switch.facts,
        where=f"{host.name} of 2026",
        target=switch.target,
        check=switch.check,
        planted=Configuration(
            f"{name} with {switch.switch}", with_header(host=name, switches=planted), checks=checks
        ),
        repaired=repaired,
    )


def _discard_all() -> ZooBug:
    header = with_header(host=LibkrunHost.name, switches=LibkrunHost.switches)
    return ZooBug(
        id="V2k",
        title="madvise() of the whole slot: frames that stay shared lose their content",
        facts="V2, GM3",
        where="mutation of libkrun",
        target=_HYPERCALL,
        check=_MEMORY,
        planted=Configuration("libkrun that discards slots", header, host=DiscardAllHost),
        repaired=Configuration("libkrun repaired", header),
    )


_IN_PLACE: Final = (
    (RestForgottenHost, _RECORD, "after EAGAIN what lies behind the error offset is forgotten"),
    (AgainHost, _RECORD, "tries again from the start and takes a half converted range for the "
     "state before"),
    (EagainDoneHost, _RECORD, "EAGAIN is reported as success"),
    (StaysUnmappedHost, _MEMORY, "what left the device map for a conversion that failed stays out"),
    (LateUnmapHost, "results", "leaves the device map after the conversion, which therefore fails"),
    (OffsetAsGpaHost, _RECORD, "takes the error offset for a GPA"),
)  # fmt: skip


def _in_place() -> Iterator[ZooBug]:
    for letter, (host, check, title) in zip("abcdef", _IN_PLACE, strict=True):
        layout = "hole@16K+16K" if host is OffsetAsGpaHost else ""
        header = with_header(host=InPlaceHost.name, layout=layout)
        yield ZooBug(
            id=f"GM10{letter}",
            title=title,
            facts="GM10",
            where="mutation of in-place",
            target="in-place",
            check=check,
            planted=Configuration(f"in-place, {host.__name__}", header, host=host),
            repaired=Configuration("in-place, a hole" if layout else "in-place", header),
        )


VMM_BUGS: Final = (*map(_bug, _SWITCHES), _discard_all(), *_in_place())
