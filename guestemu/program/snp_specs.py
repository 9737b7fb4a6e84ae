# SPDX-License-Identifier: GPL-2.0-or-later
"""The ops of an SNP guest's page states: requests made by hand, a hostile hypervisor's acts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from guestemu.abi.ghcb import AP_CREATE, RMPADJUST_VMSA, SEV_FEATURE_SNP_ACTIVE
from guestemu.program.kinds import Argument, Gives, OpKind, OpSpec
from guestemu.program.kinds import argument as _a

_AFTER: Final = _a("after", Argument.INSTRUCTIONS)

SNP_SPECS: Final[Mapping[OpKind, OpSpec]] = {
    OpKind.PSC: OpSpec(
        "psc",
        (
            _a("entries", Argument.SMALL, 1),
            _a("entry", Argument.U64, 2 << 52),
            _a("header", Argument.U64),
            _a("scratch", Argument.U64),
            _a("length", Argument.U64, 2032),
        ),
        "an SNP guest's page-state request made by hand: entries of the frames from the page on "
        "with the bits of entry, a header with the bits of header inverted, the buffer at its "
        "place in the GHCB plus scratch, length in SW_EXITINFO2; gives SW_EXITINFO2",
        has_page=True,
        gives=Gives.DATA,
    ),
    OpKind.PSC_MIXED: OpSpec(
        "psc_mixed",
        (
            _a("entries", Argument.SMALL, 2),
            _a("first", Argument.PSC_ENTRY, 2 << 52),
            _a("rest", Argument.PSC_ENTRY, 2 << 52),
            _a("header", Argument.U64),
        ),
        "as psc, with the bits of first in the first entry and those of rest in the others",
        has_page=True,
        gives=Gives.DATA,
    ),
    OpKind.RMPADJUST: OpSpec(
        "rmpadjust",
        (_a("attributes", Argument.U64, RMPADJUST_VMSA | 1),),
        "an SNP guest's RMPADJUST of the page by hand: attributes as in RDX (target VMPL in [7:0], "
        "its rights in [15:8], VMSA in [16]); gives EAX",
        has_page=True,
        gives=Gives.DATA,
    ),
    OpKind.AP_CREATION: OpSpec(
        "ap_creation",
        (
            _a("request", Argument.SMALL, AP_CREATE),
            _a("apic", Argument.VECTOR, 1),
            _a("features", Argument.U64, SEV_FEATURE_SNP_ACTIVE),
        ),
        "an SNP guest's AP creation event by hand, with the page as the vCPU's VMSA: request 0 "
        "create at INIT, 1 create, 2 destroy, of vCPU apic, with SEV_FEATURES in RAX; gives "
        "SW_EXITINFO2",
        has_page=True,
        gives=Gives.DATA,
    ),
    OpKind.HYPERVISOR_LIE: OpSpec(
        "hypervisor_lie",
        (_a("lie", Argument.SMALL),),
        "from now on an SNP guest's hypervisor lies: number lie of `guestemu hosts "
        "hostile-hypervisor`; a TD's lies at MapGPA: 0 undone, 1 half, 2 refused, 3 status, 4 "
        "stall, 5 end, 6 before, 7 other-view, 8 unaligned, 9 skip",
        is_fault=True,
    ),
    OpKind.HYPERVISOR_INJECT: OpSpec(
        "hypervisor_inject",
        (_a("vector", Argument.VECTOR, 29), _a("code", Argument.EXIT_CODE, 0x404), _AFTER),
        "an SNP guest's hypervisor injects an event before the instruction that follows the next "
        "`after`: an exception (29 is #VC) with error code `code` where it has one, or an "
        "interrupt; a TD's an interrupt or the NMI",
        is_fault=True,
    ),
    OpKind.HYPERVISOR_PAGE: OpSpec(
        "hypervisor_page",
        (_a("attack", Argument.SLOT), _AFTER),
        "the same with an attack on the page: 0 take-back, 1 assign-again, 2 assign-second, 3 "
        "remap, 4 restore, 5 swap, 6 alias, 7 other-guest; of a TD's page: 0 remove, 1 replace, 2 "
        "block, 3 unblock",
        has_page=True,
        is_fault=True,
    ),
    OpKind.HYPERVISOR_WAIT: OpSpec(
        "hypervisor_wait",
        (_a("events", Argument.SMALL, 1),),
        "the next act of the two above counts its `after` from the `events`th event on that the "
        "machine reports from now: PVALIDATE, a GHCB request, a page-state change; of a TD MapGPA, "
        "ACCEPT, an access that a page state refused",
        is_fault=True,
    ),
}
"""In a guest without SNP the requests are -ENOSYS, and a hypervisor's acts do nothing, except in a
TD."""
