# SPDX-License-Identifier: GPL-2.0-or-later
"""Bugs of SNP guests and of the KVM below them: page states that a hostile other side can abuse."""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.campaign.planted.bug import Configuration, ZooBug, with_header
from guestemu.campaign.planted.guests import variant_guest
from guestemu.guest.base import Guest
from guestemu.guest.registry import GuestSettings, load_guest
from guestemu.machine.snp_psc import PscDefect
from guestemu.program.program import SevKind

_SNP: Final = msgspec.structs.replace(with_header(budget=6_000), sev=SevKind.SEV_SNP)
_REPAIRED: Final = tuple(defect.value for defect in PscDefect)


def _guest(settings: GuestSettings) -> Guest:
    return load_guest(settings)


_HOSTILE: Final = msgspec.structs.replace(_SNP, host="hostile-hypervisor:far")
_CLEAN: Final = Configuration("SNP guest of 6.12 to 7.3, lied to", _HOSTILE, guest=_guest)


def _kvm(version: str, defect: str = "") -> Configuration:
    switches = tuple(name for name in _REPAIRED if name != defect)
    header = msgspec.structs.replace(_SNP, host=f"snp-kvm:{version}", switches=switches)
    return Configuration(f"snp-kvm:{version} {defect or 'repaired'}", header)


def _kvm_bug(bug_id: str, title: str, where: str, check: str, planted: Configuration) -> ZooBug:
    return ZooBug(
        id=bug_id,
        title=title,
        facts=bug_id,
        where=where,
        target="psc",
        check=check,
        planted=planted,
        repaired=_kvm("7.3"),
    )


def _guest_bug(bug_id: str, title: str, facts: str) -> ZooBug:
    name = f"SNP guest with {bug_id}"
    return ZooBug(
        id=bug_id,
        title=title,
        facts=facts,
        where="mutation",
        target="hostile-host",
        check="page-states",
        planted=Configuration(name, _HOSTILE, guest=variant_guest(bug_id.lower())),
        repaired=_CLEAN,
    )


SNP_BUGS: Final = (
    _kvm_bug(
        "N10",
        "KVM reports user space's EAGAIN as a failure, and the guest ends itself",
        "KVM up to 7.3",
        "psc-retry",
        _kvm("7.3", PscDefect.EAGAIN_IS_FATAL.value),
    ),
    _kvm_bug(
        "N12",
        "the guest names the length of its buffer: KVM reads and writes past its copy",
        "KVM 6.11 to May 2026",
        "psc-bounds",
        _kvm("6.11"),
    ),
    _kvm_bug(
        "N13",
        "after a half-done 2 MiB entry KVM changes another frame than it reports as done",
        "KVM up to 7.3",
        "psc-unasked",
        _kvm("7.3", PscDefect.HALF_DONE_BATCH.value),
    ),
    _guest_bug("N17", "pages are shared without PVALIDATE(clear)", "N17, N55"),
    _guest_bug("N19", "PVALIDATE that changed nothing is taken for success", "N19, N55"),
    _guest_bug("N23", "the handler of #VC 0x404 validates the page", "N23, N51, N55"),
    _guest_bug("N42", "pages are validated by the shared copy of the request", "N42, N49"),
)
