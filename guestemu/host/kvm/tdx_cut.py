# SPDX-License-Identifier: GPL-2.0-or-later
"""A host of TDs that migrates them whenever KVM has left a MapGPA between two chunks (T29)."""

from __future__ import annotations

from typing import ClassVar, Final

from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.host.kvm.tdx_map_gpa import TdxKvm

WANTS_TO_RUN: Final = "wants-to-run"


class TdxCutHost(MapGpaRangeHost):
    """The reference user space, which takes the vCPU's state after the first chunk of each MapGPA.

    The completion of the exit is then never run: the guest reads success and the rest of the range
    is unconverted. Repaired, KVM answers "retry" when user space does not want to run the vCPU.
    """

    name: ClassVar[str] = "tdx-cut"
    summary: ClassVar[str] = (
        "merged ABI for TDs, whose VMM takes the vCPU's state between two chunks of a MapGPA"
    )
    switches: ClassVar[tuple[str, ...]] = (WANTS_TO_RUN,)

    @property
    def tdx_kvm(self) -> TdxKvm:
        """KVM 7.3 with the migration in the middle."""
        return TdxKvm(name="7.3", is_cut=True, checks_wants_to_run=WANTS_TO_RUN in self.repaired)
