# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of the status hypercall: what is recorded, what is refused, what a guest may not break."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from typing import Final

from guestemu.abi.addresses import U32_MASK, U64_MASK, gpa_text, gpas_text
from guestemu.abi.hypercalls import KVM_ENOSYS, KVM_EPERM
from guestemu.conformance.hosts.probe import FRAMES, Abi, HostProbe
from guestemu.host.base import GuestFault
from guestemu.host.kvm.findings import ReportsFindings

_EPERM: Final = -KVM_EPERM & U64_MASK
_ENOSYS: Final = -KVM_ENOSYS & U64_MASK
_RANGES: Final = ((0, 1), (1, 1), (7, 2), (63, 2), (64, 64), (100, 100), (255, 1), (0, FRAMES))
_BEYOND: Final = (
    (FRAMES - 1, 2),
    (FRAMES - 4, 1 << 20),
    (4, 1 << 52 | 1),
    (0, 1 << 40),
    (0, U64_MASK),
)
_SEQUENCES: Final = 400
_UNIVERSE: Final = 6


def fresh_vm(probe: HostProbe) -> Iterator[str]:
    """A new VM: one bit for each frame, little-endian, all private, migration not allowed."""
    bits = probe.map()
    if len(bits) != FRAMES:
        yield f"private_map has {len(bits)} bits for {FRAMES} frames"
    if not bits.all():
        yield f"{bits.count(0)} frames of a new VM are shared"
    if probe.host.migration_ready:
        yield "a new VM is ready for migration"


def early_notice(probe: HostProbe) -> Iterator[str]:
    """What the guest says before it opts in is recorded like everything else (A38, A39)."""
    result = probe.convert(3, 1, private=False)
    if result:
        yield f"before the opt-in: answered {result:#x}"
    if probe.shared() != {3}:
        yield f"before the opt-in: shared {_text(probe.shared())}, not {_text({3})}"


def single_ranges(probe: HostProbe) -> Iterator[str]:
    """To shared and back to private: exactly the range changes, and the answer is 0."""
    for gfn, pages in _RANGES:
        for private in (False, True):
            result = probe.convert(gfn, pages, private=private)
            wanted = set() if private else set(range(gfn, gfn + pages))
            what = f"{gpas_text(gfn, gfn + pages)} to {'private' if private else 'shared'}"
            if result:
                yield f"{what}: answered {result:#x}"
            if probe.shared() != wanted:
                yield f"{what}: then shared: {_text(probe.shared())}; expected: {_text(wanted)}"


def sequences(probe: HostProbe) -> Iterator[str]:
    """Random sequences of conversions agree with a plain set of pages."""
    chooser = random.Random(1)
    for _ in range(_SEQUENCES):
        probe.reset()
        wanted: set[int] = set()
        story = []
        for _ in range(chooser.randint(2, 6)):
            gfn = chooser.randrange(_UNIVERSE)
            pages = chooser.randint(1, _UNIVERSE - gfn)
            private = chooser.random() < 0.4
            probe.convert(gfn, pages, private=private)
            changed = range(gfn, gfn + pages)
            wanted = wanted.difference(changed) if private else wanted.union(changed)
            story.append(f"{'private' if private else 'shared'} {gpas_text(gfn, gfn + pages)}")
            if probe.shared() != wanted:
                yield f"{', '.join(story)}: shared {_text(probe.shared())}, not {_text(wanted)}"
                return


def size_hints(probe: HostProbe) -> Iterator[str]:
    """Merged ABI: bit 4 alone says private; the page-size hint and other bits do not."""
    if probe.abi is not Abi.MAP_GPA_RANGE:
        return
    for attributes in (0x1, 0x2, 0x20, 1 << 63, 0x11, 0x12, 0x30):
        probe.convert(8, 2, private=not attributes & 0x10)
        result = probe.call(probe.abi.number, 8 << 12, 1, attributes)
        is_private = bool(probe.map()[8])
        if result == 0 and is_private != bool(attributes & 0x10):
            yield f"attributes {attributes:#x} recorded as {'private' if is_private else 'shared'}"


def unaligned(probe: HostProbe) -> Iterator[str]:
    """A GPA inside a page is refused."""
    for gpa in (0x1001, 0x1800, 0x1FFF):
        if probe.call(probe.abi.number, gpa, 1, 0) == 0:
            yield f"gpa {gpa:#x} was accepted"


def wrapping(probe: HostProbe) -> Iterator[str]:
    """A range whose end wraps is refused and nothing happens."""
    for gfn, pages in ((2, U64_MASK), (1, U64_MASK), (FRAMES, U64_MASK - FRAMES + 1)):
        if probe.convert(gfn, pages, private=False) == 0:
            yield f"{gpa_text(gfn)} with {pages:#x} pages was accepted"
        yield from _unchanged(probe, f"{gpa_text(gfn)} with {pages:#x} pages")


def beyond_ram(probe: HostProbe) -> Iterator[str]:
    """A range that leaves RAM: refused as a whole, or its part in RAM is recorded."""
    for gfn, pages in _BEYOND:
        probe.reset()
        result = probe.convert(gfn, pages, private=False)
        wanted = set() if result else set(range(gfn, FRAMES))
        if probe.shared() != wanted:
            yield (
                f"{gpa_text(gfn)} with {pages:#x} pages: answered {result:#x}, "
                f"{len(probe.shared())} frames shared"
            )


def refusals(probe: HostProbe) -> Iterator[str]:
    """An answer other than 0 means that nothing changed; 0 pages change nothing."""
    probe.convert(4, 4, private=False)
    for gfn, pages, private in ((10, 2, False), (4, 4, True), (4, 0, True), (20, 0, False)):
        before = probe.map()
        result = probe.convert(gfn, pages, private=private)
        if (result or not pages) and probe.map() != before:
            yield f"{gpa_text(gfn)} with {pages} pages: answered {result:#x} but the record changed"


def privilege(probe: HostProbe) -> Iterator[str]:
    """Above CPL 0: -EPERM, whatever the arguments, and nothing changes."""
    for cpl, number in product((1, 2, 3), (probe.abi.number, 100)):
        result = probe.call(number, 0x1001, 0, 0, cpl=cpl)
        if result != _EPERM:
            yield f"CPL {cpl}, number {number}: answered {result:#x}, not -KVM_EPERM"
    if probe.call(probe.abi.number, 0x1000, 1, 0, cpl=3) == 0:
        yield "CPL 3 converted a page"
    yield from _unchanged(probe, "CPL 3")


def other_numbers(probe: HostProbe) -> Iterator[str]:
    """Unknown hypercalls: -ENOSYS, and nothing changes."""
    for number in (0, 2, 100, 1000, U64_MASK, 1 << 32 | probe.abi.number):
        result = probe.call(number, 0x1000, 1, 0)
        if result != _ENOSYS:
            yield f"number {number:#x}: answered {result:#x}, not -KVM_ENOSYS"
    yield from _unchanged(probe, "an unknown number")


def narrow_mode(probe: HostProbe) -> Iterator[str]:
    """Outside 64-bit code arguments and result are 32 bits wide."""
    high = 0xDEADBEEF << 32
    result = probe.call(high | probe.abi.number, high | 0x5000, high | 2, high, is_64bit=False)
    if result == 0 and probe.shared() != {5, 6}:
        yield f"32-bit code: junk in the upper halves gave shared {_text(probe.shared())}"
    result = probe.call(100, is_64bit=False)
    if result > U32_MASK:
        yield f"32-bit code: answered {result:#x}, wider than EAX"


def any_input(probe: HostProbe) -> Iterator[str]:
    """Edge values in every register: a 64-bit answer or an exception for the guest, never more."""
    edges = (0, 1, 0xFFF, 0x1000, 0xFF000, 1 << 31, 1 << 47, 1 << 52, 1 << 63, U64_MASK)
    counts = (0, 1, 1 << 31, 1 << 52, U64_MASK)
    for gpa, pages, status, is_64bit in product(edges, counts, (0, 0x10), (True, False)):
        try:
            result = probe.call(probe.abi.number, gpa, pages, status, is_64bit=is_64bit)
        except GuestFault:
            continue
        if not 0 <= result <= U64_MASK:
            yield f"gpa {gpa:#x}, {pages:#x} pages: answered {result}, not a 64-bit value"
    if len(probe.map()) != FRAMES:
        yield f"the record has {len(probe.map())} bits after it"
    if probe.host.state < 0:
        yield f"state is {probe.host.state}"


def host_survives(probe: HostProbe) -> Iterator[str]:
    """No input makes the host allocate without bound or corrupt memory (for hosts that tell)."""
    for gfn, pages in ((2, U64_MASK), (1 << 35, 1), (0, 1 << 38)):
        probe.convert(gfn, pages, private=False)
    if isinstance(probe.host, ReportsFindings):
        for finding in probe.host.findings:
            yield f"{finding.kind.value}: {finding.message}"


def repeatable(probe: HostProbe) -> Iterator[str]:
    """The same calls after a reset give the same answers and the same record."""

    def run() -> tuple[list[int], bytes]:
        probe.reset()
        answers = [probe.convert(gfn, pages, private=False) for gfn, pages in _RANGES[:4]]
        answers += [probe.convert(gfn, 1, private=True) for gfn in (1, 7, 70)]
        return answers, probe.map().tobytes()

    if run() != run():
        yield "two runs after a reset differ"
    probe.reset()
    yield from _unchanged(probe, "reset")


def _unchanged(probe: HostProbe, what: str) -> Iterator[str]:
    if probe.shared():
        yield f"{what}: {_text(probe.shared())} shared"


def _text(gfns: set[int]) -> str:
    """The frames as ranges of GPAs, at most eight of them."""
    runs: list[tuple[int, int]] = []
    for gfn in sorted(gfns):
        if runs and runs[-1][1] == gfn:
            runs[-1] = (runs[-1][0], gfn + 1)
        else:
            runs.append((gfn, gfn + 1))
    shown = [gpas_text(first, end) for first, end in runs[:8]]
    return ", ".join([*shown, "…"] if len(runs) > 8 else shown) or "none"
