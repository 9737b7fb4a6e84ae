# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks that the zoo adds to the standard ones: properties that only a repaired guest or host has.

The standard checks leave open what the modelled kernels and patch sets do wrong by design (a failed
conversion, a user space that accepts less than the documentation). Here the repaired model is there
to compare with, so the stricter property can be demanded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, U32_MASK, U64_MASK, gpa_text
from guestemu.abi.errno import EAGAIN, EINVAL
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED
from guestemu.abi.regions import Region
from guestemu.checks import standard_checks
from guestemu.checks.base import CONVERSION_KINDS, Check, OpView, Violation
from guestemu.checks.cache import CacheCheck
from guestemu.checks.page_enc import PageEncResultCheck
from guestemu.checks.progress import ProgressCheck
from guestemu.checks.results import ResultCheck
from guestemu.host.base import Host
from guestemu.machine.memory_watch import FLAG_STALE
from guestemu.program.ops import OpKind

_REFUSALS: Final = frozenset({0, EINVAL, EAGAIN})
_LEAST_ERRNO: Final = U32_MASK - 4095


class AgreementCheck:
    """After every op, also one that failed: the host's status of each frame of the regions is the
    C-bit of the leaf that maps it (H.4 item 1 without "completed"; A19, M5, M6)."""

    name = "agreement"
    kinds: frozenset[OpKind] | None = CONVERSION_KINDS | {OpKind.TOUCH_CBIT}

    def __init__(self) -> None:
        self._mask = bitarray()

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        host = view.host.private_map()
        if not self._mask:
            self._mask = bitarray(len(host), endian="little")
            for region in (Region.D, Region.L, Region.G):
                placed = view.guest.regions.get(region)
                if placed is not None:
                    first = placed.gpa >> PAGE_SHIFT
                    self._mask[first : first + placed.pages] = 1
        wrong = (host ^ view.guest.leaf_map.private) & self._mask
        if not wrong.any():
            return ()
        frame = wrong.index(1)
        words = ("shared", "private")
        message = (
            f"{gpa_text(frame)} is {words[host[frame]]} for the host and "
            f"{words[view.guest.leaf_map.private[frame]]} in the page tables "
            f"({wrong.count()} frames differ)"
        )
        return (Violation(self.name, view.index, message, "A19, H.4 item 1"),)


class StoreViewCheck:
    """A store goes to the view of the page that its page-table entry names, not to the one that a
    stale translation names (A2 steps 5 and 7, M66)."""

    name = "store-view"
    kinds: frozenset[OpKind] | None = frozenset({OpKind.WRITE})

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        op = view.op
        if view.outcome.value is None or not op.arguments[2] or op.region is Region.V:
            return ()
        ram = view.guest.machine.ram
        gfn = view.guest.gpa(op.region, op.page) + op.arguments[1] >> PAGE_SHIFT
        is_private = bool(view.guest.leaf_map.private[gfn])
        if not ram.flags[gfn + (ram.frames if is_private else 0)] & FLAG_STALE:
            return ()
        message = (
            f"a store to {gpa_text(gfn)} did not reach the "
            f"{'private' if is_private else 'shared'} view that its entry names"
        )
        return (Violation(self.name, view.index, message, "A2, M66"),)


class WholeRangeCheck:
    """A notification answered 0 changed the status of all of its range that is RAM, a refused one
    nothing. For user spaces that may refuse what the reference accepts (D27, M58)."""

    name = "record"
    kinds: frozenset[OpKind] | None = frozenset({OpKind.HYPERCALL})

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        if view.injected[1]:
            return ()
        expected = view.host_before.copy()
        for record in view.exits:
            mask = U64_MASK if record.is_64bit else U32_MASK
            if record.nr & mask != KVM_HC_MAP_GPA_RANGE or record.ret != 0 or record.cpl:
                continue
            first = (record.args[0] & mask) >> PAGE_SHIFT
            end = min(first + (record.args[1] & mask), len(expected))
            if first < end:
                expected[first:end] = 1 if record.args[2] & MAP_GPA_RANGE_ENCRYPTED else 0
        status = view.host.private_map()
        if status == expected:
            return ()
        wrong = status ^ expected
        message = (
            f"an answered range left {wrong.count()} frames as they were, the first "
            f"at {gpa_text(wrong.index(1))}"
        )
        return (Violation(self.name, view.index, message, "D27, M58"),)


class PoisonAwareResultCheck:
    """`PageEncResultCheck`, but a range that begins or ends with a page that the host cannot
    translate may be refused (K1-e 4 and 5, M33)."""

    name = "results"
    kinds: frozenset[OpKind] | None = None

    def __init__(self) -> None:
        self._check = PageEncResultCheck()
        self._poisoned: set[int] = set()

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        if view.index == 0:
            self._poisoned.clear()
        if view.op.kind is OpKind.HOST_POISON_PAGE:
            self._poisoned.add(view.op.arguments[0])
        if any(self._may_refuse(record.args, record.is_64bit) for record in view.exits):
            return ()
        return self._check.after(view)

    def _may_refuse(self, args: tuple[int, ...], is_64bit: bool) -> bool:
        if not self._poisoned or len(args) < 2:
            return False
        mask = U64_MASK if is_64bit else U32_MASK
        first = (args[0] & mask) >> PAGE_SHIFT
        return first in self._poisoned or first + (args[1] & mask) - 1 in self._poisoned


class OtherCpuCheck:
    """Taking a processor other than the first off-line does not withdraw the guest's consent to be
    migrated (A44, M11)."""

    name = "other-cpu"
    kinds: frozenset[OpKind] | None = frozenset({OpKind.CPU_OFFLINE})

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        if not view.op.vcpu or not view.ready_before or view.host.migration_ready:
            return ()
        message = f"vCPU {view.op.vcpu} went off-line and migration is refused from now on"
        return (Violation(self.name, view.index, message, "A44, M11"),)


def with_other_cpus(host: Host) -> tuple[Check, ...]:
    """Progress and `OtherCpuCheck`."""
    return (ProgressCheck(), OtherCpuCheck())


def agreement_only(host: Host) -> tuple[Check, ...]:
    """Progress and `AgreementCheck`."""
    return (ProgressCheck(), AgreementCheck())


def with_agreement(host: Host) -> tuple[Check, ...]:
    """The standard checks and the strict ones about guests."""
    return (*standard_checks(host), AgreementCheck(), StoreViewCheck())


def with_cache(host: Host) -> tuple[Check, ...]:
    """The standard checks and that of machines with incoherent caches."""
    return (*standard_checks(host), CacheCheck())


def with_poison(host: Host) -> tuple[Check, ...]:
    """The standard checks, with refusals of poisoned pages allowed."""
    return tuple(
        PoisonAwareResultCheck() if isinstance(check, PageEncResultCheck) else check
        for check in standard_checks(host)
    )


class RefusalCheck:
    """User space answers with 0, EINVAL or EAGAIN, or a negative errno: KVM takes no other answer
    to an exit that it made of a page-state change or MapGPA (GM20, Linux 7.2)."""

    name = "refusal"
    kinds: frozenset[OpKind] | None = frozenset({OpKind.HYPERCALL})

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class. Ordered answers are the program's, and KVM's own refusals negative."""
        if view.injected[1]:
            return ()
        for record in view.exits:
            is_kvms = not record.is_hypercall or record.cpl or record.nr != KVM_HC_MAP_GPA_RANGE
            ret = record.ret
            if is_kvms or ret is None or ret in _REFUSALS or ret & U32_MASK > _LEAST_ERRNO:
                continue
            message = f"hypercall was answered {ret:#x}"
            return (Violation(self.name, view.index, message, "V6, GM20"),)
        return ()


def without_answers(host: Host) -> tuple[Check, ...]:
    """The standard checks but that of answers, for a user space that refuses more than KVM does."""
    return tuple(check for check in standard_checks(host) if not isinstance(check, ResultCheck))


def refusals(host: Host) -> tuple[Check, ...]:
    """Progress and `RefusalCheck`."""
    return (ProgressCheck(), RefusalCheck())


def whole_range(host: Host) -> tuple[Check, ...]:
    """Progress and `WholeRangeCheck`."""
    return (ProgressCheck(), WholeRangeCheck())
