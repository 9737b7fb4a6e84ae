# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's half of a TD's MapGPA: tdx_map_gpa() and its completion in arch/x86/kvm/vmx/tdx.c.

A range goes to user space in chunks of at most 2 MiB from its start, each as KVM_EXIT_HYPERCALL
number 12 (K4-b, T26). What user space answers with decides how the guest goes on (T27); an event
that is pending between two chunks ends the call with "retry" (T28).

Sources: Linux 7.2 and 7.3; what was before commit 3e2dec1ede0a is known from its removed lines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from guestemu.abi import tdx
from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, U64_MASK
from guestemu.abi.errno import EAGAIN, EINVAL
from guestemu.abi.hypercalls import MAP_GPA_RANGE_DECRYPTED, MAP_GPA_RANGE_ENCRYPTED
from guestemu.abi.tdx import MapGpaAnswer
from guestemu.host.kvm.map_gpa_lies import MAP_GPA_LIES
from guestemu.machine.exits import MapGpaRange, RunFailed, VcpuAccess
from guestemu.machine.view_bit import ViewBit

_CHUNK: Final = tdx.MAP_GPA_CHUNK
_DONE: Final = MapGpaAnswer(tdx.VMCALL_SUCCESS)


class TdxKvm(msgspec.Struct, frozen=True, kw_only=True):
    """One KVM with TDX, and what its VMM does when KVM_RUN fails.

    `knows_retry`: answers EAGAIN and EINVAL have meanings of their own and all others fail KVM_RUN
    (commit 3e2dec1ede0a, in 7.2); without it every answer but 0 is "invalid operand".
    `runs_again`: the VMM calls KVM_RUN again after its failure. The failure has used up the
    completion, so the guest reads success for the rest of the range (T29); else the VM stops.
    `is_cut`: the VMM takes the vCPU's state after the first chunk, as a migration does, and another
    host goes on with it; `checks_wants_to_run`: then KVM answers retry, as it should, instead of
    leaving R10 as it was, success (T29). `drops_bit`: R11 of a retry lacks the shared bit (no KVM
    does that). `address_bits`: MAXPHYADDR. `lie` names one of `MAP_GPA_LIES`, "" none.
    """

    name: str
    knows_retry: bool = True
    runs_again: bool = False
    is_cut: bool = False
    checks_wants_to_run: bool = False
    drops_bit: bool = False
    address_bits: int = 46
    lie: str = ""


KVM_6_16: Final = TdxKvm(name="6.16", knows_retry=False)
KVM_7_2: Final = TdxKvm(name="7.2")


def tdx_map_gpa(
    kvm: TdxKvm,
    gpa: int,
    size: int,
    bit: ViewBit,
    ask: Callable[[MapGpaRange], int],
    vcpu: VcpuAccess,
    has_event: Callable[[], bool] | None = None,
) -> MapGpaAnswer | RunFailed:
    """MapGPA of `size` bytes at `gpa`, which has the TD's shared `bit` for a range to be shared.

    `ask` is user space: the 64-bit `hypercall.ret` of an exit. `has_event` says between two chunks
    whether the vCPU has an event pending (never, by default). Returns R10 and R11, or the failure
    of KVM_RUN.
    """
    if kvm.lie:
        honest = msgspec.structs.replace(kvm, lie="")

        def convert(start: int, length: int) -> MapGpaAnswer | RunFailed:
            return tdx_map_gpa(honest, start, length, bit, ask, vcpu=vcpu, has_event=has_event)

        return MAP_GPA_LIES[kvm.lie].answer(gpa, size, bit, convert)
    refusal = _check(kvm, gpa, size, bit)
    if refusal:
        return MapGpaAnswer(refusal, gpa)
    view = gpa & bit.mask
    attributes = MAP_GPA_RANGE_ENCRYPTED if view == bit.private else MAP_GPA_RANGE_DECRYPTED
    at, end = gpa, gpa + size
    while True:
        chunk = end - at
        if chunk > _CHUNK:
            chunk = _CHUNK
        answer = ask(MapGpaRange(at ^ view, chunk >> PAGE_SHIFT, attributes, "mapgpa", vcpu))
        if answer & U64_MASK:
            return _refused(kvm, answer & U64_MASK, at)
        at += chunk
        if at >= end:
            return _DONE
        if kvm.is_cut and not kvm.checks_wants_to_run:
            return _DONE
        if kvm.is_cut or (has_event is not None and has_event()):
            return _retry(kvm, at, view)


def _retry(kvm: TdxKvm, at: int, view: int) -> MapGpaAnswer:
    return MapGpaAnswer(tdx.VMCALL_RETRY, at & ~view if kvm.drops_bit else at)


def _check(kvm: TdxKvm, gpa: int, size: int, bit: ViewBit) -> int:
    """The status that KVM gives before user space is asked, 0 to go on."""
    last = gpa + size - 1
    limit = 1 << kvm.address_bits
    if gpa + size > U64_MASK or size == 0:
        return tdx.VMCALL_INVALID_OPERAND
    if gpa & ~bit.mask >= limit or last & ~bit.mask >= limit or (gpa ^ last) & bit.mask:
        return tdx.VMCALL_INVALID_OPERAND
    return tdx.VMCALL_ALIGN_ERROR if (gpa | size) & PAGE_MASK else 0


def _refused(kvm: TdxKvm, answer: int, at: int) -> MapGpaAnswer | RunFailed:
    """What the guest reads after user space's answer other than 0 for the chunk at `at`."""
    if not kvm.knows_retry or answer == EINVAL:
        return MapGpaAnswer(tdx.VMCALL_INVALID_OPERAND, at)
    if answer == EAGAIN:
        return MapGpaAnswer(tdx.VMCALL_RETRY, at)
    if kvm.runs_again:
        return MapGpaAnswer(tdx.VMCALL_SUCCESS)
    return RunFailed(f"KVM_RUN returned -EINVAL: hypercall.ret {answer:#x} after MapGPA", 0)
