# SPDX-License-Identifier: GPL-2.0-or-later
"""DMA of a real kernel's own drivers, recorded while they run a workload.

The kernel runs in user space (guest/linux/userland) with its dma:* events switched on. Afterwards
its trace buffer is read through tracefs: the text is what any other tool would read on hardware.
The same events were counted while they happened, so the two can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.dma.report import WorkloadCounts
from guestemu.guest.linux.load import LOADER
from guestemu.guest.linux.userland.running import CommandFailed, RunningKernel
from guestemu.guest.linux.userland.session import Setting, Userland

TRACING: Final = "/sys/kernel/tracing"
_MAX_TRACE: Final = 4 << 20
_EVENT: Final = re.compile(rb": (dma_[a-z_]+): ")
_CLASSES: Final = {
    "dma_alloc": "dma_alloc_class",
    "dma_alloc_pages": "dma_alloc_class",
    "dma_free": "dma_free_class",
    "dma_free_pages": "dma_free_class",
    "dma_map_page": "dma_map",
    "dma_map_phys": "dma_map",
    "dma_map_resource": "dma_map",
    "dma_unmap_page": "dma_unmap",
    "dma_unmap_phys": "dma_unmap",
    "dma_unmap_resource": "dma_unmap",
}
"""Events by their class in include/trace/events/dma.h; others are a class of their own."""


class WorkloadTrace(msgspec.Struct, frozen=True):
    """The trace as ftrace text, and the counts."""

    text: bytes
    counts: WorkloadCounts


def record_workload(
    image: Path, setting: Setting, commands: Sequence[str], on_line: Callable[[str], None] | None
) -> WorkloadTrace:
    """Runs `commands` of PID 1 on the kernel in `image`.

    Raises `InputError` where it does not come back, and for a kernel without dma:* events.
    """
    running = Userland(LOADER, on_line).start(image, setting)
    if not running.mappings.is_known:
        raise InputError(
            f"{image.name} ({running.kernel.version}): this kernel has no dma:* trace events; "
            "take 6.12 or later"
        )
    try:
        results = tuple((command, running.command(command).value) for command in commands)
        text = _read_trace(running)
    except CommandFailed as failed:
        raise InputError(f"{image.name}: {failed}") from None
    finally:
        running.machine.close()
    names = "".join(
        f"# PCI 0000:00:{slot:02x}.0 {name}\n"
        for slot, name in enumerate(running.hardware.devices, 1)
    )
    written: dict[str, int] = {}
    for match in _EVENT.finditer(text):
        name = match[1].decode()
        name = _CLASSES.get(name, name)
        if name in running.mappings.counts:
            written[name] = written.get(name, 0) + 1
    return WorkloadTrace(
        names.encode() + text,
        WorkloadCounts(
            kernel=running.kernel.version,
            sev=setting.sev,
            events=dict(sorted(running.mappings.counts.items())),
            written=dict(sorted(written.items())),
            conversions=dict(sorted(running.callers.pages.items())),
            accesses=running.accesses,
            broken=len(running.rules.violations),
            results=results,
        ),
    )


def _read_trace(running: RunningKernel) -> bytes:
    running.command(f"mount tracefs {TRACING}")
    stopped = running.command(f"write {TRACING}/tracing_on 0").value
    read = running.command(f"read {TRACING}/trace {_MAX_TRACE} 0")
    if stopped < 0 or read.value < 0:
        raise InputError(f"the kernel's trace cannot be read: errno {-min(stopped, read.value)}")
    return read.data
