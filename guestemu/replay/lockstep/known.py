# SPDX-License-Identifier: GPL-2.0-or-later
"""The known differences between hosts: which fact each divergence comes from.

A row is a way in which one host (`own`) deviates from another; its test looks at what the guest
did, so that a divergence without such a cause stays unexplained. The first row that applies, in
either direction, is the explanation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_MASK, U64_MASK
from guestemu.abi.hypercalls import KVM_HC_PAGE_ENC_STATUS_2019, MAP_GPA_RANGE_ENCRYPTED
from guestemu.abi.msrs import (
    KVM_MIGRATION_READY,
    MSR_KVM_MIGRATION_CONTROL,
    MSR_KVM_SEV_LIVE_MIG_EN_2020,
)
from guestemu.checks.results import OWN_HYPERCALLS
from guestemu.host.kvm.findings import HOST_MEMORY
from guestemu.host.kvm.page_enc_bitmap import bitmap_bytes
from guestemu.program.ops import HOST_SPECS, OpKind
from guestemu.replay.lockstep.side import PLUGIN, Side, StatusCall

ANSWER: Final = "answer"
END: Final = "end"
VALUE: Final = "value"
STATUS: Final = "status"
READY: Final = "ready"

_GROWING: Final = frozenset({"bitmap-v1", "bitmap-v2", "bitmap-v3", "bitmap-v6"})
_TRANSLATING: Final = frozenset({"bitmap-v6", "bitmap-v8", "shared-list-v10"})
_UNCHECKED: Final = frozenset({"cloud-hypervisor", "dragonball"})
_VMMS: Final = _UNCHECKED | {"qemu-11", "openvmm", "libkrun"}
_SILENT: Final = frozenset({"qemu-v4", "qemu-10.2"}) | _VMMS - {"openvmm"}
_BY_WORD: Final = frozenset({"qemu-v4", "libkrun"})
_OPENVMM_BITS: Final = 0xF3
_PLUG_OPS: Final = frozenset({OpKind.HOST_COMMIT_SLOT, OpKind.UNPLUG_SLOT, OpKind.GUEST_ACCESS})
_MSR: Final = frozenset({END, VALUE, READY})
_ASYNC_PF: Final = frozenset({MSR_KVM_SEV_LIVE_MIG_EN_2020, MSR_KVM_SEV_LIVE_MIG_EN_2020 + 1})


class Known(msgspec.Struct, frozen=True):
    """One row: `aspects` it can explain, the fact, a sentence, and the test of (own, other)."""

    key: str
    aspects: frozenset[str]
    fact: str
    sentence: str
    applies: Callable[[Side, Side], bool]


def _any(own: Side, test: Callable[[StatusCall], bool]) -> bool:
    return any(map(test, own.own_calls))


def _is(own: Side, name: str, switch: str) -> bool:
    """Whether own is host `name` with the defect of `switch` as posted."""
    return own.traits.name == name and own.traits.lacks(switch)


def _number(own: Side, other: Side) -> bool:
    numbers = {own.traits.number, other.traits.number}
    return len(numbers) == 2 and any(call.nr in numbers for call in own.calls())


def _is_odd_status(call: StatusCall) -> bool:
    return bool(call.status) and not call.status & MAP_GPA_RANGE_ENCRYPTED


def _enc_argument(own: Side, other: Side) -> bool:
    return own.traits.is_historic and not other.traits.is_historic and _any(own, _is_odd_status)


def _attributes_word(own: Side, _other: Side) -> bool:
    is_by_word = own.traits.name in _BY_WORD and own.traits.lacks("attributes-word")
    return is_by_word and _any(own, _is_odd_status)


def _low_bits(own: Side, _other: Side) -> bool:
    return (
        own.traits.is_historic
        and own.traits.lacks("low-bits")
        and _any(own, lambda call: bool(call.gpa & PAGE_MASK))
    )


def _no_pages(own: Side, other: Side) -> bool:
    return (
        own.traits.is_historic
        and not other.traits.is_historic
        and _any(own, lambda call: not call.pages)
    )


def _wraps(call: StatusCall) -> bool:
    return bool(call.pages) and call.end & U64_MASK <= call.first


def _wrap(own: Side, _other: Side) -> bool:
    return own.traits.name in {"bitmap-v1", "bitmap-v2"} and (
        own.traits.lacks("wrap") and _any(own, _wraps)
    )


def _no_memory(own: Side, _other: Side) -> bool:
    return own.traits.name in _GROWING and _any(
        own, lambda call: bitmap_bytes(call.end) > HOST_MEMORY
    )


def _beyond(own: Side) -> bool:
    return _any(own, lambda call: call.end > len(own.before))


def _growth_repaired(own: Side, _other: Side) -> bool:
    return "growth" in own.traits.repaired and _beyond(own)


def _silent_range(own: Side, _other: Side) -> bool:
    return _is(own, "bitmap-v8", "silent-range") and _beyond(own)


def _loud_range(own: Side, _other: Side) -> bool:
    return "silent-range" in own.traits.repaired and _beyond(own)


def _gate(own: Side, _other: Side) -> bool:
    return _is(own, "bitmap-v6", "gate") and not own.ready_before and bool(own.own_calls)


def _poisoned(own: Side, _other: Side) -> bool:
    return own.traits.name in _TRANSLATING and _any(
        own, lambda call: not own.poisoned.isdisjoint({call.first, call.end - 1, call.end})
    )


def _list_result(own: Side, _other: Side) -> bool:
    return _is(own, "shared-list-v10", "result") and _any(own, lambda call: call.ret in {1, -1})


def _meets_shared(own: Side) -> bool:
    """Whether a range of the operation touches or overlaps what was shared, before it or by it."""
    calls = own.own_calls
    if len(calls) > 1:
        return True
    return _any(own, lambda call: not own.before[max(0, call.first - 1) : call.end + 1].all())


def _kvm_list(own: Side, _other: Side) -> bool:
    return _is(own, "shared-list-v10", "list") and _meets_shared(own)


def _qemu_list(own: Side, _other: Side) -> bool:
    return _is(own, "qemu-v4", "list") and _meets_shared(own)


def _reaches_user_space(call: StatusCall) -> bool:
    """Whether merged KVM exits for the call (K3-c 5 and 6)."""
    return not call.gpa & PAGE_MASK and bool(call.pages) and not _wraps(call)


def _stale_ret(own: Side, other: Side) -> bool:
    kernel = own.traits.kernel
    return (
        own.traits.name in _SILENT
        and kernel is not None
        and not kernel.zeroes_ret
        and own.traits.lacks("stale-ret")
        and any(
            mine.nr == own.traits.number and mine.ret != theirs.ret and _reaches_user_space(mine)
            for mine, theirs in zip(own.calls(), other.calls(), strict=False)
        )
    )


def _lost_exit(own: Side, _other: Side) -> bool:
    kernel = own.traits.kernel
    return (
        kernel is not None
        and kernel.compares_untruncated_nr
        and _any(own, lambda call: call.is_truncated)
    )


def _qemu_refuses(own: Side, _other: Side) -> bool:
    return own.traits.name == "qemu-10.2" and (own.is_stopped or _any(own, lambda c: c.ret == -22))


def _qemu_size(own: Side, _other: Side) -> bool:
    return own.traits.name == "qemu-10.2" and _any(own, lambda call: call.pages >= 1 << 52)


def _asked(own: Side, other: Side) -> list[StatusCall]:
    """The calls of an operation; those of `other` where `own` stopped the VM at its exit."""
    return [*own.calls(), *(other.calls() if own.is_stopped else ())]


def _vmm_size(own: Side, other: Side) -> bool:
    is_unchecked = own.traits.name in _VMMS - {"openvmm"} and own.traits.lacks("size-wrap")
    return is_unchecked and any(call.pages >= 1 << 52 for call in _asked(own, other))


def _vmm_top(own: Side, other: Side) -> bool:
    is_unchecked = own.traits.name in _UNCHECKED
    return is_unchecked and any(call.end >= 1 << 52 for call in _asked(own, other))


def _vmm_place(own: Side, other: Side) -> bool:
    frames = len(own.before)
    calls = _asked(own, other)
    if own.traits.name == "libkrun":
        return any(call.first >= frames or call.end >= 1 << 52 for call in calls)
    is_strict = own.traits.name in {"openvmm", "qemu-11", "in-place"}
    return is_strict and any(call.end > frames for call in calls)


def _openvmm_bits(own: Side, _other: Side) -> bool:
    return own.traits.name == "openvmm" and _any(
        own, lambda call: bool(call.status & ~_OPENVMM_BITS or call.status & 0xE0)
    )


def _no_msr(own: Side, _other: Side) -> bool:
    return (
        own.traits.is_historic
        and not own.traits.opt_in_msrs
        and MSR_KVM_MIGRATION_CONTROL in own.msrs()
    )


def _unserved_msr(own: Side, _other: Side) -> bool:
    return not own.traits.serves_msr and MSR_KVM_MIGRATION_CONTROL in own.msrs()


def _blocker(own: Side, _other: Side) -> bool:
    return _is(own, "qemu-v4", "msr-zero") and MSR_KVM_MIGRATION_CONTROL in own.msrs()


def _set_only(own: Side, _other: Side) -> bool:
    return _is(own, "bitmap-v8", "msr-zero") and not own.traits.opt_in_msrs.isdisjoint(own.msrs())


def _write_only(own: Side, _other: Side) -> bool:
    return own.traits.name in {"bitmap-v8", "shared-list-v10"} and (
        own.traits.lacks("msr-read")
        and own.outcome.value is None
        and not own.traits.opt_in_msrs.isdisjoint(own.msrs())
    )


def _moved_msr(own: Side, other: Side) -> bool:
    return (
        own.traits.is_historic
        and MSR_KVM_SEV_LIVE_MIG_EN_2020 in own.traits.opt_in_msrs ^ other.traits.opt_in_msrs
        and MSR_KVM_SEV_LIVE_MIG_EN_2020 in own.msrs()
    )


def _young_msr(own: Side, _other: Side) -> bool:
    return own.traits.name in _GROWING | {"bitmap-v8"} and not _ASYNC_PF.isdisjoint(own.msrs())


def _any_value(own: Side, _other: Side) -> bool:
    return (
        own.traits.is_historic
        and bool(own.traits.opt_in_msrs)
        and any(
            index in own.traits.opt_in_msrs and (value & ~KVM_MIGRATION_READY)
            for index, value in own.msr_writes()
        )
    )


def _kept_value(own: Side, _other: Side) -> bool:
    return own.traits.name == "bitmap-v6" and not own.traits.opt_in_msrs.isdisjoint(own.msrs())


def _ioctl(own: Side, other: Side) -> bool:
    return own.op.kind in HOST_SPECS and (
        own.traits.name != other.traits.name or own.traits.repaired != other.traits.repaired
    )


def _parted_before(own: Side, other: Side) -> bool:
    return own.ready_before != other.ready_before and MSR_KVM_MIGRATION_CONTROL in own.msrs()


def _both(*aspects: str) -> frozenset[str]:
    return frozenset(aspects)


def _own_hypercall(own: Side, _other: Side) -> bool:
    return own.traits.name == PLUGIN and any(call.nr in OWN_HYPERCALLS for call in own.calls())


def _own_msr(own: Side, _other: Side) -> bool:
    return (
        own.op.kind in {OpKind.RDMSR, OpKind.WRMSR}
        and own.op.arguments[0] != MSR_KVM_MIGRATION_CONTROL
    )


def _own_vmcall(own: Side, other: Side) -> bool:
    return own.traits.name == PLUGIN and None in other.answers


def _is_open(side: Side, call: StatusCall) -> bool:
    """Whether a range that reaches user space leaves the RAM that has guest_memfd."""
    if call.nr != side.traits.number or not _reaches_user_space(call):
        return False
    holes = (*side.traits.open_frames, (len(side.before), U64_MASK))
    return any(call.first < end and first < call.end for first, end in holes)


def _open_range(own: Side, other: Side) -> bool:
    return own.traits.is_users and any(
        _is_open(own, call) and (call.ret != 0 or own.is_stopped) for call in _asked(own, other)
    )


def _hot_plug(own: Side, other: Side) -> bool:
    """Whether an operation of one of the VMMs is about memory that can be plugged."""
    if own.traits.name not in _VMMS or not own.traits.hot_plug:
        return False
    spans = [(call.first, call.end) for call in _asked(own, other)]
    if own.op.kind in _PLUG_OPS:
        spans.append((own.op.arguments[0], own.op.arguments[0] + 1))
    return any(
        first < high and low < end for low, high in own.traits.hot_plug for first, end in spans
    )


_BLOCKED: Final = Known(
    "blocked", _MSR, "D26, V1", "the VMM has no handler for MIGRATION_CONTROL", _unserved_msr
)
_OPEN_RANGE: Final = Known(
    "open-range", _both(END, ANSWER, STATUS), "K3-f",
    "user space decides about a range that leaves RAM, and this one refuses", _open_range,
)  # fmt: skip


KNOWN: Final = (
    Known("number", _both(ANSWER, STATUS), "K1-a, M61",
          f"the 2019 patch sets use number {KVM_HC_PAGE_ENC_STATUS_2019}, which is SCHED_YIELD "
          "elsewhere", _number),
    Known("lost-exit", _both(ANSWER, STATUS), "K3-i, M21",
          "Linux 6.10 to 6.13 compare the untruncated number and lose the exit of 32-bit code",
          _lost_exit),
    Known("gate", _both(ANSWER, STATUS), "K1-i, K1-m",
          "v6 refuses the hypercall until the guest wrote the opt-in MSR", _gate),
    Known("low-bits", _both(ANSWER, STATUS), "K1-e 3, M43",
          "the patch sets drop the low bits of the GPA, merged KVM refuses them", _low_bits),
    Known("no-pages", _both(ANSWER), "K1-e 2, K3-c 6",
          "no pages are success in the patch sets and -KVM_EINVAL in merged KVM", _no_pages),
    Known("wrap", _both(ANSWER, STATUS), "K1-c, M31",
          "v1 and v2 do not test gfn + npages for wrapping", _wrap),
    Known("no-memory", _both(ANSWER, STATUS), "K1-f, M44",
          "the bitmap for this range does not fit the host: -ENOMEM, which has no KVM_E name",
          _no_memory),
    Known("growth-repaired", _both(ANSWER, STATUS), "K1-f, C24",
          "with the growth repaired a range that reaches beyond RAM is refused", _growth_repaired),
    Known("silent-range", _both(STATUS), "K1-g, M37",
          "v8 does nothing for a range that ends above the last slot", _silent_range),
    Known("silent-range-repaired", _both(ANSWER, STATUS), "K1-g, M37",
          "with the silence repaired v8 refuses a range that ends above the last slot",
          _loud_range),
    Known("poisoned", _both(ANSWER, STATUS), "K1-e 4, K1-e 5, M33",
          "v6 to v10 translate both ends of the range, also the exclusive one", _poisoned),
    Known("vm-stopped", _both(END, ANSWER, STATUS), "D27",
          "QEMU 10.2 refuses a range that it cannot convert and stops the VM", _qemu_refuses),
    Known("size-wrap", _both(END, ANSWER, STATUS), "D27, M58",
          "QEMU 10.2 computes npages * 4096 in 64 bits", _qemu_size),
    Known("vmm-size", _both(END, ANSWER, STATUS), "V2, V7",
          "the VMM computes pages * 4096 in 64 bits: a product of 0 stops the VM, another converts "
          "the pages that are left", _vmm_size),
    Known("vmm-top", _both(END, ANSWER, STATUS), "V7, GM1",
          "KVM_SET_MEMORY_ATTRIBUTES refuses a range that ends at 2^64, on which the VMM stops",
          _vmm_top),
    Known("vmm-place", _both(END, ANSWER, STATUS), "V2, V3",
          "the VMM refuses a range that its slots with guest_memfd do not cover as it asks",
          _vmm_place),
    Known("vmm-bits", _both(ANSWER, STATUS), "V2",
          "OpenVMM refuses attribute bits that it does not know", _openvmm_bits),
    Known("list-result", _both(ANSWER), "K2-d, M39",
          "v10 answers the change of its list's length", _list_result),
    Known("stale-ret", _both(ANSWER), "K3-g, M22",
          "the VMM never writes run->hypercall.ret and this kernel does not clear it", _stale_ret),
    Known("attributes-word", _both(STATUS), "D19, M53",
          "the VMM takes any non-zero attributes word for encrypted, a size hint for instance",
          _attributes_word),
    Known("enc-argument", _both(STATUS, ANSWER), "M42",
          "the third argument is enc (any non-zero value) in the patch sets and attributes, bit 4, "
          "in merged KVM", _enc_argument),
    Known("kvm-list", _both(STATUS, ANSWER), "K2-b, K2-c, K2-f, M39",
          "v10's list functions shrink, cut one page too many and ignore spanning ranges",
          _kvm_list),
    Known("qemu-list", _both(STATUS), "D20, D21, M54",
          "QEMU v4's list keeps overlapping elements and removes only one of them", _qemu_list),
    Known("no-msr", _MSR, "K1-m", "the opt-in MSR came with v5; before it the MSR is unknown",
          _no_msr),
    _BLOCKED,
    Known("moved-msr", _MSR, "K1-m",
          "v5 to v8 were posted with the opt-in MSR at 0x4b564d06", _moved_msr),
    Known("young-msr", _MSR, "constant table",
          "0x4b564d06 and 0x4b564d07 came with Linux 5.8, after these postings", _young_msr),
    Known("any-value", _MSR, "K1-m, K5-f",
          "the patch sets take any value of the opt-in MSR, today reserved bits are refused",
          _any_value),
    Known("blocker", _MSR, "D24, M57",
          "in QEMU v4 exactly READY removes the blocker and nothing adds it again; any value is "
          "kept", _blocker),
    Known("set-only", _MSR, "K1-m, M57", "v8's MSR only ever sets its flag", _set_only),
    Known("write-only", _MSR, "K1-m", "v8 and v10 have no RDMSR of the opt-in MSR", _write_only),
    Known("kept-value", _MSR, "K1-m", "v6 keeps all bits of the opt-in MSR", _kept_value),
    Known("parted-before", _both(VALUE), "K1-m",
          "one host took the guest's consent in an earlier operation, the other did not",
          _parted_before),
    _OPEN_RANGE,
    Known("vmm-hot-plug", _both(END, ANSWER, VALUE, STATUS), "V2",
          "the VMMs differ in whether and how memory is plugged", _hot_plug),
    Known("ioctl", _both(VALUE, STATUS, READY), "K1-d, K1-g, K1-i to K1-k, K2-e",
          "the ioctls and hooks of the patch sets differ from one posting to the next", _ioctl),
)  # fmt: skip


KNOWN_OF_PLUGINS: Final = (
    _BLOCKED,
    _OPEN_RANGE,
    Known("own-hypercall", _both(ANSWER, VALUE), "K3-c",
          "KVM answers hypercalls of its own, which a user's host need not have", _own_hypercall),
    Known("own-msr", _both(END, VALUE), "C.5",
          "KVM has MSRs beside MIGRATION_CONTROL, which a user's host need not have", _own_msr),
    Known("own-vmcall", _both(END, ANSWER, STATUS, VALUE), "K3-c",
          "KVM writes VMMCALL over the guest's VMCALL first, and that can fault",
          _own_vmcall),
)  # fmt: skip
"""What a user's own host, which has only the contract to go by, leaves out of KVM's half."""


def _by_aspect(rows: tuple[Known, ...]) -> dict[str, tuple[Known, ...]]:
    aspects = {aspect for known in rows for aspect in known.aspects}
    return {
        aspect: tuple([known for known in rows if aspect in known.aspects]) for aspect in aspects
    }


_KNOWN: Final = _by_aspect(KNOWN)
_KNOWN_OF_PLUGINS: Final = _by_aspect(KNOWN_OF_PLUGINS)


def explain(aspect: str, one: Side, other: Side) -> Known | None:
    """The known difference behind a divergence in `aspect`, or None."""
    is_plugin = PLUGIN in {one.traits.name, other.traits.name}
    for known in (_KNOWN_OF_PLUGINS if is_plugin else _KNOWN).get(aspect, ()):
        if known.applies(one, other) or known.applies(other, one):
            return known
    return None
