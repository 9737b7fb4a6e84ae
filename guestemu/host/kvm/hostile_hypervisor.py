# SPDX-License-Identifier: GPL-2.0-or-later
"""A hypervisor that lies to its SNP guest or TD; user space below it is honest."""

from __future__ import annotations

from typing import ClassVar

from guestemu.abi.errors import InputError
from guestemu.abi.names import nearest
from guestemu.host.kvm.map_gpa_lies import MAP_GPA_LIES
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.host.kvm.tdx_map_gpa import TdxKvm
from guestemu.machine.psc_lies import LIES


class HostileHypervisorHost(MapGpaRangeHost):
    """`hostile-hypervisor:LIE`, a name of `psc_lies.LIES` (what KVM does at a page-state change) or
    of `MAP_GPA_LIES` (what a TD reads after MapGPA).

    Its record is the honest user space's: where the lie keeps it from hearing of a change, it is
    wrong, and no check holds it to that.
    """

    name: ClassVar[str] = "hostile-hypervisor"
    summary: ClassVar[str] = (
        "an SNP guest's or TD's hypervisor that lies about page states; NAME:LIE"
    )
    choices: ClassVar[tuple[str, ...]] = (*LIES, *MAP_GPA_LIES)
    contract: ClassVar[str] = ""
    contract_state: ClassVar[bool] = False
    records_conversions: ClassVar[bool] = False

    def __init__(self, lie: str | None = None, switches: tuple[str, ...] = ()) -> None:
        super().__init__("7.2", switches)
        self.lie = lie or self.choices[0]
        if self.lie not in self.choices:
            raise InputError(f"host {self.name}: no lie {lie!r}; {nearest(self.lie, self.choices)}")

    @property
    def tdx_kvm(self) -> TdxKvm:
        """KVM 7.2, which lies if the lie is about MapGPA."""
        return TdxKvm(name="7.2", lie=self.lie if self.lie in MAP_GPA_LIES else "")
