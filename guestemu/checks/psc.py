# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM keeps to a hostile guest's page-state request: it stays within its own memory, user space is
asked for no frame that is in no entry, and its EAGAIN is not an error for the guest (N10, N12,
N13). A vCPU is in the guest with a VMSA page only (N26, N58)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Final

from guestemu.abi.addresses import PAGE_SHIFT, gpa_text
from guestemu.abi.errno import EAGAIN
from guestemu.abi.ghcb import PSC_ERROR_GENERIC
from guestemu.checks.base import OpView, Oracle, Violation
from guestemu.events.exits import MapGpaRangeExit
from guestemu.guest.base import Guest
from guestemu.guest.linux.es import SevEs
from guestemu.guest.linux.snp import Snp
from guestemu.machine.rmp import OWN_ASID, Rmp
from guestemu.program.ops import OpKind

OUT_OF_BOUNDS = "psc-bounds"
UNASKED = "psc-unasked"
NO_RETRY = "psc-retry"
NO_VMSA = "vmsa-in-use"
_REQUESTS: Final = frozenset({OpKind.PSC, OpKind.PSC_MIXED})
_OF_VMSAS: Final = frozenset({OpKind.RMPADJUST, OpKind.AP_CREATION})


def sev_of(guest: Guest) -> SevEs | None:
    """KVM and the hardware below an SNP guest; None for every other guest."""
    sev: SevEs | None = getattr(guest, "snp", None)  # asked for each operation: no protocol
    return sev


class PscCheck(Oracle):
    """KVM stays within the guest's request: in memory, and in the frames that it has changed."""

    name = "psc"
    kinds: frozenset[OpKind] | None = _REQUESTS | _OF_VMSAS

    demands: ClassVar[Mapping[str, str]] = {
        OUT_OF_BOUNDS: (
            "KVM reads and writes the guest's request within the buffer that it copied."
        ),
        NO_RETRY: "KVM tells the guest to ask again where user space answered EAGAIN.",
        UNASKED: "A page-state change changes the frames of its entries and no other.",
        NO_VMSA: "While a vCPU is in the guest, the frame that it runs from stays its VMSA.",
    }
    explanations: ClassVar[Mapping[str, str]] = {
        OUT_OF_BOUNDS: "A guest reads and writes the host kernel's heap.",
        NO_RETRY: "User space is to be asked again; a guest ends itself on the error.",
        UNASKED: "A frame changes its state, and the guest believes that another one did.",
        NO_VMSA: "Whoever writes the frame has the registers of a running vCPU.",
    }

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        sev = sev_of(view.guest)
        if sev is None or sev.snp is None:
            return
        yield from self._vmsas(view, sev.snp.rmp)
        if view.op.kind in _REQUESTS:
            yield from self._request(view, sev, sev.snp)

    def _vmsas(self, view: OpView, rmp: Rmp) -> Iterable[Violation]:
        for sfn in rmp.frames_in_use():
            entry = rmp.entry(sfn)
            if not (entry.vmsa and entry.validated and entry.asid == OWN_ASID):
                message = f"a vCPU runs from system frame {sfn:#x}, which is no VMSA"
                yield Violation(NO_VMSA, view.index, message, "N58")

    def _request(self, view: OpView, sev: SevEs, snp: Snp) -> Iterable[Violation]:
        outside = snp.psc.out_of_bounds
        if outside:
            access = outside[0]
            what = "wrote" if access.is_write else "read"
            message = f"KVM {what} at {access.offset:#x}, behind its copy of the buffer"
            yield Violation(OUT_OF_BOUNDS, view.index, message, "N12")
            outside.clear()
        answers = [record.ret for record in view.exits if isinstance(record, MapGpaRangeExit)]
        if answers and answers[-1] == EAGAIN and view.outcome.value == PSC_ERROR_GENERIC:
            message = "user space answered EAGAIN, and the guest is told of a failure"
            yield Violation(NO_RETRY, view.index, message, "N10")
        for record in view.exits:
            if not isinstance(record, MapGpaRangeExit):
                continue
            first, pages = record.args[0] >> PAGE_SHIFT, record.args[1]
            for gfn in (first, first + pages - 1):
                if not any(entry.gfn <= gfn < entry.gfn + entry.pages for entry in sev.asked):
                    message = (
                        f"KVM asked user space to convert {gpa_text(gfn)}, which no entry of the "
                        "PSC request names"
                    )
                    yield Violation(UNASKED, view.index, message, "N13")
                    return
