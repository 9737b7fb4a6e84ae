# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a kernel that is replaced by kexec has its records of shared pages wiped: C26.

Two vCPU contexts of our own guest: the old kernel's CPU 1 converts a page while CPU 0 tells the
host that all RAM is private, or CPU 1 is stopped first and the next kernel tells. Every order of
the steps is run. With a kernel image, a real kexec is also run. Facts A40, A41, A45, A46.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, U64_MASK
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED
from guestemu.abi.regions import Region
from guestemu.host.registry import load_host
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header
from guestemu.runner.testbed import Testbed, build_testbed
from guestemu.study.claims.claim import Claim, Lab
from guestemu.study.claims.kernels import BUDGET, MEMORY, image
from guestemu.study.claims.result import ClaimResult, ClaimWitness, Evidence, decide
from guestemu.study.claims.witness_text import program_witness

GUEST: Final = "snippet:6.1"
_HOLE: Final = 0x4000800
"""An e820 entry that starts in the middle of a page."""

_PAGE: Final = 3
_HALF_PAGE: Final = 0x800

_CONVERT: Final = (
    Op(OpKind.TOUCH_CBIT, (0,), page=_PAGE, vcpu=1),
    Op(OpKind.HYPERCALL, (KVM_HC_MAP_GPA_RANGE, 0, 1, 0, 0), page=_PAGE, has_page=True, vcpu=1),
)
"""CPU 1: the flip and the hypercall of a conversion to shared, as two steps."""

_RESET: Final = (Op(OpKind.INIT_PLATFORM, (0,), vcpu=0),)
"""CPU 0: all RAM is private, then MIGRATION_CONTROL = 1."""

_UNALIGNED_RESET: Final = Op(
    OpKind.HYPERCALL,
    (KVM_HC_MAP_GPA_RANGE, -_HALF_PAGE & U64_MASK, 4, MAP_GPA_RANGE_ENCRYPTED, 0),
    page=_PAGE,
    has_page=True,
)
"""What kvm_init_platform() sends for a RAM entry that starts half a page before the page."""


class Orders(msgspec.Struct, frozen=True):
    """Orders run, and those after which the host has the page as shared, though the next kernel,
    which maps everything private, never said so; with the first of them."""

    orders: int
    stale: int
    first: tuple[Op, ...]


def _merges(one: tuple[Op, ...], other: tuple[Op, ...]) -> Iterator[tuple[Op, ...]]:
    """Every way to merge the two sequences."""
    total = len(one) + len(other)
    for places in combinations(range(total), len(one)):
        ones, others = iter(one), iter(other)
        yield tuple(next(ones) if place in places else next(others) for place in range(total))


def _stops(ops: tuple[Op, ...]) -> Iterator[tuple[Op, ...]]:
    """CPU 1 stopped after each of its steps, then the reset of the next kernel."""
    for done in range(len(ops) + 1):
        yield ops[:done] + _RESET


def _count(bed: Testbed, orders: Iterator[tuple[Op, ...]]) -> Orders:
    gfn = bed.guest.gpa(Region.D, _PAGE) >> PAGE_SHIFT
    total = stale = 0
    first: tuple[Op, ...] = ()
    for ops in orders:
        bed.run(ops)
        total += 1
        if not bed.host.private_map()[gfn]:
            stale += 1
            first = first or ops
    return Orders(total, stale, first)


def reset_at_boot(lab: Lab, stops_others: bool = True) -> ClaimResult:
    """C26: the reset before the jump, and at the start of the new kernel. `stops_others` is the
    reason why the latter is safe; a test takes it away."""
    header = Header(guest=GUEST, vcpus=2)
    bed = build_testbed(header)
    before = _count(bed, _merges(_CONVERT, _RESET))
    after = _count(bed, _stops(_CONVERT) if stops_others else _merges(_CONVERT, _RESET))
    model_unaligned = _count(bed, iter([(*_CONVERT, _UNALIGNED_RESET)])).stale
    real, aligned, real_unaligned = _real_kexec(lab)
    unaligned = model_unaligned > 0 and (real_unaligned > 0 or not real)
    is_safer = before.stale > 0 and not after.stale
    return ClaimResult(
        verdict=decide(
            confirmed=is_safer and not (aligned or model_unaligned or real_unaligned),
            refuted=after.stale > 0 or aligned > 0,
            conditional=is_safer and not aligned and unaligned,
        ),
        condition=(
            "every RAM entry of the e820 map starts at a page; one that does not is refused by KVM "
            "and keeps the old kernel's record"
        ),
        evidence=(
            _orders_evidence("reset before the jump, CPU 1 still running", before),
            _orders_evidence("reset by the new kernel, CPU 1 stopped anywhere", after),
            Evidence(
                "reset by an e820 entry that starts inside a page",
                model_unaligned,
                "stale pages",
                "of 1; KVM answers -22",
            ),
            *real,
        ),
        guests=(GUEST, *lab.kernels),
        witnesses=(
            *((program_witness(header, before.first),) if before.first else ()),
            *(
                ClaimWitness(
                    f"256 shared pages, kexec, an e820 entry at {_HOLE:#x}",
                    f"guestemu kernel kexec --image {name.partition(':')[2]} --hole {_HOLE:#x}",
                )
                for name in lab.kernels[:1]
            ),
        ),
        remark="From the jump to the reset only MIGRATION_CONTROL = 0 keeps the host from using "
        "the old record."
        if real
        else "",
    )


def _orders_evidence(name: str, orders: Orders) -> Evidence:
    how = f"of {orders.orders}; host has a page as shared that the new kernel maps private"
    return Evidence(name, orders.stale, "orders with a stale record", how)


def _real_kexec(lab: Lab) -> tuple[tuple[Evidence, ...], int, int]:
    """Evidence, and stale pages with an e820 map of whole pages and with one that is not; nothing
    without a kernel."""
    from guestemu.guest.linux.load import LOADER, linux_config
    from guestemu.kernel.kexec import kexec

    evidence: list[Evidence] = []
    sums = {0: 0, _HOLE: 0}
    for name in lab.kernels:
        guest = LOADER.guest(image(name), linux_config(MEMORY, 39, "sev"), BUDGET)
        for hole in sums:
            report = kexec(guest, guest.kernel, load_host("map-gpa-range"), hole)
            sums[hole] += report.stale_pages
            what = f"e820 entry at {hole:#x}" if hole else "e820 entries of whole pages"
            evidence.append(
                Evidence(f"{name}: kexec, {what}", report.stale_pages, "stale pages", "at the end")
            )
            if not hole:
                jump = report.at_jump
                ready = "allowed" if jump.migration_ready else "not allowed"
                evidence.append(
                    Evidence(
                        f"{name}: at the jump",
                        jump.shared,
                        "pages shared by the old record",
                        f"migration {ready}",
                    )
                )
    return tuple(evidence), sums[0], sums[_HOLE]


CLAIMS: Final = (
    Claim(
        "C26",
        "Resetting the host's records at the start of the kexec'ed kernel, and not before the "
        "jump, avoids races with other CPUs.",
        "the comment in kvm_init_platform(), arch/x86/kernel/kvm.c",
        reset_at_boot,
    ),
)
