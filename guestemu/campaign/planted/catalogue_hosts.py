# SPDX-License-Identifier: GPL-2.0-or-later
"""Bugs of hosts: defects of the posted patch sets, and mutations of the merged interface.

A defect of a patch set is planted by repairing all of that host's other defects; in its repaired
twin this one is also repaired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from guestemu.campaign.planted.bug import Configuration, ZooBug, with_header
from guestemu.campaign.planted.checks import whole_range, with_poison
from guestemu.campaign.planted.hosts_merged import (
    AttributeBit0Host,
    HalfTruncatedHost,
    LatePrivilegeHost,
    PageLoopHost,
    PlainErrnoHost,
    TruncatedAnswerHost,
)
from guestemu.checks import standard_checks
from guestemu.checks.base import Check
from guestemu.host.base import Host
from guestemu.host.kvm.bitmap_v1 import BitmapV1Host
from guestemu.host.kvm.bitmap_v3 import BitmapV3Host
from guestemu.host.kvm.bitmap_v6 import BitmapV6Host
from guestemu.host.kvm.bitmap_v8 import BitmapV8Host
from guestemu.host.kvm.shared_list_v10 import SharedListV10Host
from guestemu.host.userspace.qemu_10_2 import Qemu102Host
from guestemu.host.userspace.qemu_v4 import QemuV4Host
from guestemu.program.program import Header

Checks = Callable[[Host], tuple[Check, ...]]


def _posted(
    bug_id: str,
    title: str,
    facts: str,
    where: str,
    host: type[Host],
    switch: str,
    target: str,
    check: str,
    checks: Checks = standard_checks,
    kernel: str = "",
) -> ZooBug:
    """A defect of `host` that `switch` repairs."""
    name = host.name + (f":{kernel}" if kernel else "")
    repaired = host.switches
    planted = tuple(known for known in repaired if known != switch)
    return ZooBug(
        bug_id,
        title,
        facts,
        where,
        target,
        check,
        Configuration(f"{name} with {switch}", _header(name, planted), checks=checks),
        Configuration(f"{name} repaired", _header(name, repaired), checks=checks),
    )


def _header(host: str, switches: Iterable[str]) -> Header:
    return with_header(host=host, switches=tuple(switches))


def _mutated(
    bug_id: str,
    title: str,
    facts: str,
    host: Callable[[], Host],
    check: str,
) -> ZooBug:
    """A change of the reference host."""
    name = "map-gpa-range"
    return ZooBug(
        bug_id,
        title,
        facts,
        "mutation of map-gpa-range",
        "hypercall",
        check,
        Configuration(f"{name} with {bug_id}", with_header(), host=host),
        Configuration(name, with_header()),
    )


_2019: Final = "host-2019"
_2020: Final = "host-2020"
_LIST: Final = "host-list"

HOST_BUGS: Final = (
    _mutated(
        "M20",
        "completing the exit reads CS of an encrypted guest: RAX is cut to 32 bits",
        "K3-i, CVE-2024-55881",
        TruncatedAnswerHost,
        "results",
    ),
    ZooBug(
        "M21",
        "the pending exit is recognised by the untruncated number: lost outside 64-bit code",
        "K3-i",
        "Linux 6.10 to 6.13",
        "hypercall",
        "record",
        Configuration("map-gpa-range:6.12", with_header(host="map-gpa-range:6.12")),
        Configuration("map-gpa-range:6.18", with_header(host="map-gpa-range:6.18")),
    ),
    _posted(
        "M22",
        "run->hypercall.ret is never written: the guest reads what the exit before left",
        "K3-g, D19",
        "QEMU patch set v4 on Linux 6.1",
        QemuV4Host,
        "stale-ret",
        "hypercall",
        "results",
    ),
    _posted(
        "M31",
        "gfn + npages may wrap: bits are set far outside the bitmap",
        "K1-c",
        "KVM patch set v1",
        BitmapV1Host,
        "wrap",
        _2019,
        "resources",
    ),
    _posted(
        "M32",
        "the reset of any vCPU frees the bitmap and keeps the pointer",
        "K1-d",
        "KVM patch set v3",
        BitmapV3Host,
        "vcpu-reset",
        _2019,
        "resources",
    ),
    _posted(
        "M33",
        "the exclusive end of the range is translated instead of its last page",
        "K1-e",
        "KVM patch set v6",
        BitmapV6Host,
        "end-frame",
        _2020,
        "results",
        with_poison,
    ),
    _posted(
        "M34",
        "a guest decides how much memory its host allocates",
        "K1-f, C24",
        "KVM patch set v6",
        BitmapV6Host,
        "growth",
        _2020,
        "resources",
        with_poison,
    ),
    _posted(
        "M35",
        "SET only clears bits, and scans from the wrong index",
        "K1-j",
        "KVM patch set v6",
        BitmapV6Host,
        "set-ioctl",
        _2020,
        "record",
        with_poison,
    ),
    _posted(
        "M36",
        "SET is right only for a start that is a multiple of 64",
        "K1-j",
        "KVM patch set v8",
        BitmapV8Host,
        "set-offset",
        _2020,
        "record",
        with_poison,
    ),
    _posted(
        "M37",
        "a range that ends above the slots is answered 0 and ignored",
        "K1-g",
        "KVM patch set v8",
        BitmapV8Host,
        "silent-range",
        _2020,
        "record",
        with_poison,
    ),
    _posted(
        "M38",
        "GET writes whole words of user memory, past the range",
        "K1-i",
        "KVM patch set v3",
        BitmapV3Host,
        "get-words",
        _2019,
        "record",
    ),
    _posted(
        "M39a",
        "add shrinks an element, remove cuts a page too many, spanning removals are ignored",
        "K2-b, K2-c, K2-f",
        "KVM patch set v10",
        SharedListV10Host,
        "list",
        _LIST,
        "record",
        with_poison,
    ),
    _posted(
        "M39b",
        "the change of the list's length is the hypercall's result",
        "K2-d",
        "KVM patch set v10",
        SharedListV10Host,
        "result",
        _LIST,
        "results",
        with_poison,
    ),
    _posted(
        "M40",
        "GET reads the count before it takes the lock: the buffer is too small",
        "K2-e",
        "KVM patch set v10",
        SharedListV10Host,
        "get-race",
        _LIST,
        "resources",
        with_poison,
    ),
    _posted(
        "M41",
        "SET appends to the list, its reset leaves freed regions linked",
        "K2-e",
        "KVM patch set v10",
        SharedListV10Host,
        "set-ioctl",
        _LIST,
        "resources",
        with_poison,
    ),
    _mutated(
        "M42",
        "bit 0 of the attributes is taken for encrypted instead of bit 4",
        "K1-a, K3-d",
        AttributeBit0Host,
        "record",
    ),
    _posted(
        "M43",
        "low bits of the GPA are dropped instead of refused",
        "K1-e",
        "KVM patch set v8",
        BitmapV8Host,
        "low-bits",
        _2020,
        "results",
        with_poison,
    ),
    _mutated(
        "M44",
        "-ENOSYS (38) where the ABI has -KVM_ENOSYS (1000)",
        "constant table, K3-c",
        PlainErrnoHost,
        "results",
    ),
    _posted(
        "M53",
        "any non-zero attributes word means encrypted",
        "D19",
        "QEMU patch set v4",
        QemuV4Host,
        "attributes-word",
        "hypercall",
        "record",
    ),
    _posted(
        "M54",
        "overlapping elements of the list stay, a removal finds one of them",
        "D20, D21",
        "QEMU patch set v4",
        QemuV4Host,
        "list",
        "hypercall",
        "record",
    ),
    _posted(
        "M57",
        "WRMSR of 0 does not bring the migration blocker back",
        "D24",
        "QEMU patch set v4",
        QemuV4Host,
        "msr-zero",
        "msr",
        "migration-control",
    ),
    _posted(
        "M58",
        "npages * 4096 wraps: one page is converted, the whole range is answered as done",
        "D27",
        "QEMU 10.2",
        Qemu102Host,
        "size-wrap",
        "hypercall",
        "record",
        whole_range,
    ),
    _mutated(
        "M72",
        "a walk page by page over 2^64 - 1 pages, which KVM accepts",
        "K3-e",
        PageLoopHost,
        "resources",
    ),
    _mutated(
        "M73",
        "outside 64-bit code RAX is truncated and the arguments are not",
        "K3-c 3",
        HalfTruncatedHost,
        "record",
    ),
    _mutated(
        "M74",
        "the arguments are tested before the CPL",
        "K3-c 4",
        LatePrivilegeHost,
        "results",
    ),
)
"""In the order of the fact sheet."""
