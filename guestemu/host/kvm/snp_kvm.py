# SPDX-License-Identifier: GPL-2.0-or-later
"""The host of an SNP guest, by KVM's version, with the defects of its page-state changes."""

from __future__ import annotations

from typing import ClassVar

from guestemu.abi.errors import InputError
from guestemu.abi.names import nearest
from guestemu.host.kvm.host import check_switches
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.machine.snp_psc import PSC_KERNELS, PscDefect

_DEFAULT = "7.3"


class SnpKvmHost(MapGpaRangeHost):
    """`snp-kvm:VERSION`, a name of `PSC_KERNELS`: as map-gpa-range for a guest under SNP.

    `switches` are values of `PscDefect`: present unless named.
    """

    name: ClassVar[str] = "snp-kvm"
    summary: ClassVar[str] = "an SNP guest's KVM by version, 6.11 to 7.3, under a bitmap"
    switches: ClassVar[tuple[str, ...]] = tuple(defect.value for defect in PscDefect)
    choices: ClassVar[tuple[str, ...]] = (_DEFAULT, *(n for n in PSC_KERNELS if n != _DEFAULT))

    def __init__(self, version: str | None = None, switches: tuple[str, ...] = ()) -> None:
        check_switches(self.name, self.switches, switches)
        super().__init__("7.2", ())
        self.psc_kernel = version or _DEFAULT
        if self.psc_kernel not in PSC_KERNELS:
            remedy = nearest(self.psc_kernel, PSC_KERNELS)
            raise InputError(f"host {self.name}: no KVM {version!r}; {remedy}")
        self.repaired = frozenset(switches)
