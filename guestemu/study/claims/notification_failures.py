# SPDX-License-Identifier: GPL-2.0-or-later
"""When the notification of a conversion fails, and what it says: C13, C21, C28.

C13 and C21 run on unmodified kernels: holes are made in their page tables, their host answers with
errors, their callback is exchanged for one that fails. C28 also runs on our own guests, which have
the larger leaves. Facts A17, A19, A26c, A30.
"""

from __future__ import annotations

from itertools import compress
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, U64_MASK, Gva, to_signed
from guestemu.abi.errors import GuestemuError
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.abi.regions import Region
from guestemu.abi.x86 import VECTOR_PF
from guestemu.guest.base import CallOutcome, GuestOops
from guestemu.machine.exits import BudgetExhausted, Terminated
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header
from guestemu.runner.testbed import build_testbed
from guestemu.study.claims.claim import Claim, Lab, Need
from guestemu.study.claims.kernels import CalledKernel
from guestemu.study.claims.result import ClaimResult, ClaimWitness, Evidence, decide
from guestemu.study.claims.witness_text import program_witness
from guestemu.study.outcomes.guests import has_kind
from guestemu.study.outcomes.matrix import KINDS

_PAGE: Final = 3
_BUDGET: Final = 200_000
_VALUE: Final = 0xA5
_WORD: Final = _VALUE * 0x0101_0101_0101_0101
_EINVAL: Final = 22


# C13 ------------------------------------------------------------------------------------------


class HoleRun(msgspec.Struct, frozen=True):
    """A conversion of pages around one without a mapping, then the caller's memset of that page.

    `returned` is the conversion's value (None: it did not return), `faulted` whether the memset
    page-faulted, `overwritten` whether it reached another page's memory.
    """

    returned: int | None
    is_endless: bool
    faulted: bool
    overwritten: bool


def run_hole(kernel: CalledKernel, hole: int, clear_all: bool) -> HoleRun:
    """Converts the three pages from D[`_PAGE`] on, number `hole` of which has no mapping: its entry
    is zero (`clear_all`) or keeps its frame without PRESENT."""
    guest = kernel.guest
    guest.reset()
    guest.set_budget(_BUDGET)
    first = guest.gva(Region.D, _PAGE)
    unmapped = Gva(first + hole * PAGE_SIZE)
    guest.edit_entry(unmapped, clear_all)
    converted = guest.set_memory_decrypted(first, 3)
    if converted.value is None:
        guest.reset()
        return HoleRun(None, isinstance(converted.end, BudgetExhausted), False, False)
    written = guest.memset(unmapped, _VALUE, PAGE_SIZE)
    neighbour = guest.load(Gva(unmapped - PAGE_SIZE)) if hole else CallOutcome(None)
    guest.reset()
    faulted = isinstance(written.end, GuestOops) and written.end.vector == VECTOR_PF
    return HoleRun(converted.value, False, faulted, neighbour.value == _WORD)


def page_fault_anyway(lab: Lab) -> ClaimResult:
    """C13: a hole behind the first page, a hole at the first page, an entry without PRESENT."""
    inside, first, absent = {}, {}, {}
    for name in lab.kernels:
        kernel = CalledKernel(name)
        inside[name] = run_hole(kernel, 1, True)
        first[name] = run_hole(kernel, 0, True)
        absent[name] = run_hole(kernel, 1, False)
    silent = all(
        run.returned == 0 and not run.faulted and run.overwritten for run in inside.values()
    )
    return ClaimResult(
        verdict=decide(
            confirmed=all(run.faulted for run in (*inside.values(), *first.values())),
            refuted=silent,
        ),
        evidence=tuple(
            Evidence(f"{name}: {what}", _hole_words(runs[name]), how=how)
            for name in lab.kernels
            for what, runs, how in (
                ("hole behind the first page", inside, "set_memory_decrypted(3 pages), memset"),
                ("hole at the first page", first, f"budget of {_BUDGET} basic blocks"),
                ("entry without PRESENT", absent, "set_memory_decrypted(3 pages), memset"),
            )
        ),
        guests=lab.kernels,
        witnesses=tuple(
            program_witness(
                Header(guest=name),
                (
                    Op(OpKind.UNMAP, page=_PAGE + 1),
                    Op(OpKind.SET_MEMORY_DECRYPTED, (3, 0), page=_PAGE),
                    Op(OpKind.WRITE, (_VALUE, 0, PAGE_SIZE), page=_PAGE + 1),
                    Op(OpKind.READ, (0,), page=_PAGE),
                ),
                "the write to the hole is read back from the page before it",
            )
            for name in lab.kernels[:1]
        ),
        remark=(
            "The change of the page tables fills the hole before the notifier looks. The statement "
            "holds for an entry that only lacks PRESENT."
            if silent and all(run.faulted for run in absent.values())
            else ""
        ),
    )


def _hole_words(run: HoleRun) -> str:
    if run.returned is None:
        return "the conversion never returns" if run.is_endless else "the conversion crashes"
    memset = "page-faults" if run.faulted else "does not fault"
    where = ", and overwrites the page before" if run.overwritten else ""
    return f"the conversion returns {run.returned}, memset {memset}{where}"


# C21 ------------------------------------------------------------------------------------------

_CALLBACK: Final = "amd_enc_status_change_finish"
"""What notifies the host in SEV guests, since 5.19."""


def _make_callback_fail(kernel: CalledKernel) -> None:
    """Points x86_platform.guest.enc_status_change_finish at a function that means failure: for
    kernels where it returns bool one that returns false, for the others one that returns -ENOSYS.
    A rollback takes it back."""
    image = kernel.guest.kernel
    prototype = image.btf.prototype(_CALLBACK)
    is_bool = prototype is not None and prototype.result_size == 1
    target = image.address("cc_platform_has" if is_bool else "sys_ni_syscall")
    slot = image.address("x86_platform") + image.btf.offset(
        "x86_platform_ops.guest.enc_status_change_finish"
    )
    vcpu = kernel.guest.machine.current
    if not vcpu.write_memory(Gva(slot), target.to_bytes(8, "little")):
        raise GuestemuError(f"{kernel.name}: x86_platform is not mapped")


def error_up_the_chain(lab: Lab) -> ClaimResult:
    """C21: what the caller of set_memory_decrypted() gets when the host refuses, when the callback
    that notifies fails, and when the page tables cannot be changed; as every guest kind that the
    kernel has. Kernels without such a callback say nothing about the claim.
    """
    refused, failed, unsplit = {}, {}, {}
    has_callback = [_CALLBACK in CalledKernel(name).guest.kernel.symbols for name in lab.kernels]
    kernels = tuple(compress(lab.kernels, has_callback))
    without = ", ".join(name for name in lab.kernels if name not in kernels)
    kinds = [(name, sev) for name in kernels for sev in KINDS if has_kind(name, sev)]
    for name, sev in kinds:
        answer = _EINVAL if sev == "tdx" else -_EINVAL & U64_MASK
        kernel = CalledKernel(name, answer=answer, sev=sev)
        guest = kernel.guest
        refused[name, sev] = guest.set_memory_decrypted(guest.gva(Region.D, _PAGE), 1)
        guest.reset()
        kernel.recorder.answer = 0
        guest.fail_split(0)
        unsplit[name, sev] = guest.set_memory_decrypted(guest.gva(Region.L, 0), 1)
        guest.reset()
        _make_callback_fail(kernel)
        failed[name, sev] = guest.set_memory_decrypted(guest.gva(Region.D, _PAGE), 1)
        guest.reset()
    reaches = all((run.value or 0) < 0 for run in failed.values())
    dropped = all(run.value == 0 for (_, sev), run in refused.items() if sev in {"sev", "es"})
    told = all((run.value or 0) < 0 for (_, sev), run in refused.items() if sev == "tdx")
    ends = all(run.value is None for (_, sev), run in refused.items() if sev == "snp")
    return ClaimResult(
        verdict=decide(
            confirmed=bool(kinds) and not any((run.value or 0) < 0 for run in failed.values()),
            refuted=bool(kinds) and reaches and not dropped,
            conditional=bool(kinds) and reaches and dropped and ends and told,
        ),
        condition=(
            "the error is the host's answer: AMD's callback drops it in a SEV or SEV-ES guest and "
            "the caller gets 0, an SNP guest ends itself and the caller gets nothing. A TD's "
            "callback passes it on; since 5.19 a failure of the callback itself reaches the "
            "caller, as does a failed change of the page tables"
        ),
        evidence=(
            *((Evidence("kernels without the callback, left out", without),) if without else ()),
            *(
                Evidence(f"{name} as {sev}: {what}", _return_words(runs[name, sev]), how=how)
                for name, sev in kinds
                for what, runs, how in (
                    ("the notifying callback fails", failed, "another enc_status_change_finish"),
                    ("no memory for a split", unsplit, "alloc_pages() returns NULL"),
                    ("the host refuses", refused, _refusal(sev)),
                )
            ),
        ),
        guests=kernels,
        witnesses=tuple(
            ClaimWitness(
                "the host refuses, the caller gets 0",
                "guestemu kernel call set_memory_decrypted page:0 1 "
                f"--answer -{_EINVAL} --image {name.partition(':')[2]}",
            )
            for name in kernels[:1]
        ),
    )


def _refusal(sev: str) -> str:
    """What user space answers; KVM takes no negative number after a TD's MapGPA (T27)."""
    return f"user space answers {_EINVAL if sev == 'tdx' else -_EINVAL}"


def _return_words(outcome: CallOutcome) -> str:
    end = outcome.end
    if isinstance(end, Terminated):
        return f"the guest ends itself (set {end.reason_set}, reason {end.reason_code})"
    returned = "does not return" if outcome.value is None else f"returns {outcome.value}"
    return f"{returned}, WARN" if outcome.warnings else returned


# C28 ------------------------------------------------------------------------------------------

_SNIPPETS: Final = ("snippet:5.17", "snippet:6.1", "snippet:6.12")
_HINT_BITS: Final = 0xF
_LARGE: Final = 512
_LEAVES: Final = ((Region.D, 1), (Region.L, _LARGE))


class Sized(msgspec.Struct, frozen=True):
    """A notification of a whole leaf: its pages and its page-size hint (0: 4 KiB, 1: 2 MiB)."""

    pages: int
    hint: int


def _notified(guest: str, region: Region, pages: int) -> tuple[Sized, ...]:
    """The hypercalls of a conversion of `pages` pages from the start of `region`."""
    bed = build_testbed(Header(guest=guest))
    op = Op(OpKind.SET_MEMORY_DECRYPTED, (pages, 0), region=region)
    result = bed.run((op,)).results[0]
    bed.guest.close()
    return tuple(
        Sized(to_signed(exit_.args[1], 64), exit_.args[2] & _HINT_BITS)
        for exit_ in result.exits
        if exit_.nr == KVM_HC_MAP_GPA_RANGE
    )


def size_hint(lab: Lab, guests: tuple[str, ...] = _SNIPPETS) -> ClaimResult:
    """C28: the hint for a 4 KiB and for a 2 MiB leaf, on our guests and on real kernels."""
    seen: dict[tuple[str, int], tuple[Sized, ...]] = {}
    tested = (*guests, *lab.kernels)
    for guest in tested:
        for region, pages in _LEAVES:
            seen[guest, pages] = _notified(guest, region, pages)
    large = [call for (_, pages), calls in seen.items() if pages == _LARGE for call in calls]
    is_whole = bool(large) and all(call.pages == _LARGE for call in large)
    return ClaimResult(
        verdict=decide(
            confirmed=is_whole and all(call.hint == 1 for call in large),
            refuted=is_whole and all(call.hint == 0 for call in large),
        ),
        evidence=tuple(
            Evidence(
                f"{guest}: leaf of {'2 MiB' if pages == _LARGE else '4 KiB'}",
                ", ".join(f"{call.pages} pages, hint {call.hint}" for call in calls) or "nothing",
                how="hypercalls of set_memory_decrypted() of the whole leaf",
            )
            for (guest, pages), calls in seen.items()
        ),
        guests=tested,
        witnesses=(
            program_witness(
                Header(guest=tested[-1]),
                (Op(OpKind.SET_MEMORY_DECRYPTED, (_LARGE, 0), region=Region.L),),
                "one hypercall, pages=512, attributes 0: the hint says 4 KiB",
            ),
        ),
        remark="The number of pages carries the size." if is_whole else "",
    )


CLAIMS: Final = (
    Claim(
        "C13",
        "If the notifier's lookup fails, something is very wrong, and the kernel will page-fault "
        "anyway when it initialises the page; a special policy is needless.",
        "Steve Rutherford, 17 May 2021: 'you are already on a one-way train towards a Kernel oops'",
        page_fault_anyway,
        Need.KERNEL,
    ),
    Claim(
        "C21",
        "The error cannot be propagated up the call chain directly.",
        "Ashish Kalra, 14 May 2021; Borislav Petkov wanted just that",
        error_up_the_chain,
        Need.KERNEL,
    ),
    Claim(
        "C28",
        "The page-size hint of the attributes tells the host the size of the mapping.",
        "Documentation/virt/kvm/x86/hypercalls.rst",
        size_hint,
    ),
)
