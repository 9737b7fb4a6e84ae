# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes traces: events as ftrace text, and a long random trace for tests and benchmarks."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Final

from guestemu.dma.events import Alloc, Event, Free, Mark
from guestemu.guest.dma.gfp import GFP_ATOMIC, GFP_KERNEL, GFP_NOIO

CHUNK_LINES: Final = 1000
_SIZES: Final = (16, 512, 2048, 4096, 4096, 4096, 6726, 8192, 16384, 65536, 91392)
_DRIVERS: Final = ("virtio_net", "nvme", "ahci", "e1000", "xhci_hcd")
_SLOT_SHIFT: Final = 17
_FIRST_ADDRESS: Final = 1 << 24


def event_line(event: Event) -> str:
    """One event as a line of /sys/kernel/tracing/trace, with its newline.

    Prints what `guestemu.dma.trace` reads back to an equal record, but for the line number and
    nanoseconds below a microsecond.
    """
    head = (
        f"{event.task:>16}-1       [{event.cpu:03}] ..... "
        f"{event.time_ns // 1_000_000_000:5}.{event.time_ns // 1000 % 1_000_000:06}: "
    )
    if isinstance(event, Mark):
        return f"{head}tracing_mark_write: MARK {event.name}\n"
    kind = "alloc" if isinstance(event, Alloc) else "free"
    is_null = event.has_failed if isinstance(event, Alloc) else event.is_null
    virtual = "0000000000000000" if is_null else f"{event.dma_addr ^ 0x5EED_0000:016x}"
    flags = f"flags={_joined(event.gfp) or 'none'} " if isinstance(event, Alloc) else ""
    return (
        f"{head}dma_{kind}{'_pages' if event.via_pages else ''}: {event.device} dir=BIDIRECTIONAL "
        f"dma_addr={event.dma_addr:x} size={event.size} virt_addr={virtual} {flags}"
        f"attrs={_joined(event.attrs)}\n"
    )


def trace_text(events: Iterable[Event]) -> Iterator[bytes]:
    """The events as chunks of ftrace text, with a `# PCI` line before a device's first event."""
    known: set[str] = set()
    lines: list[str] = []
    for event in events:
        if not isinstance(event, Mark) and event.device not in known:
            known.add(event.device)
            if event.driver:
                lines.append(f"# PCI {event.device} {event.driver} 0x0000 0x0000\n")
        lines.append(event_line(event))
        if len(lines) >= CHUNK_LINES:
            yield "".join(lines).encode()
            lines.clear()
    yield "".join(lines).encode()


def synthetic_events(count: int, seed: int = 0, live: int = 2000) -> Iterator[Event]:
    """`count` allocations and frees of driver-like sizes with about `live` buffers at a time.

    A mark `phase-N` stands before every hundred-thousandth event. Addresses are reused, no two live
    buffers overlap, every free is known. Equal arguments give equal events.
    """
    rng = random.Random(seed)
    spare = list(range(2 * live))
    used: list[tuple[int, int, int]] = []
    time_ns = 1_000_000_000
    line = 0
    for number in range(count):
        if number % 100_000 == 0:
            line += 1
            yield Mark(line, time_ns, 0, "init", f"phase-{number // 100_000}")
        line += 1
        time_ns += rng.randrange(1, 50) * 1000
        cpu = number & 1
        if used and rng.random() < len(used) / (2 * live):
            chosen = rng.randrange(len(used))
            used[chosen], used[-1] = used[-1], used[chosen]
            slot, size, owner = used.pop()
            spare.append(slot)
            yield Free(line, time_ns, cpu, "ip", *_owner(owner), _address(slot), size)
        else:
            slot = spare.pop()
            size, owner = rng.choice(_SIZES), rng.randrange(len(_DRIVERS))
            used.append((slot, size, owner))
            gfp = rng.choices((GFP_KERNEL, GFP_NOIO, GFP_ATOMIC), (90, 9, 1))[0]
            yield Alloc(line, time_ns, cpu, "insmod", *_owner(owner), _address(slot), size, gfp)


def _owner(index: int) -> tuple[str, str]:
    return f"0000:00:{index + 2:02x}.0", _DRIVERS[index]


def _address(slot: int) -> int:
    return _FIRST_ADDRESS + (slot << _SLOT_SHIFT)


def _joined(names: frozenset[str]) -> str:
    return "|".join(sorted(names))
