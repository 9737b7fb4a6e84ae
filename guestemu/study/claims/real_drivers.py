# SPDX-License-Identifier: GPL-2.0-or-later
"""What drivers of a real kernel do with shared memory, as evidence for C9 to C12.

A kernel is in user space as a SEV guest with NVMe and virtio devices; its own drivers have bound
them. They read and write, then NVMe is unbound and bound again. Buffers are the kernel's own dma:*
events (6.12 and later), conversions by their purpose (userland/callers.py).
"""

from __future__ import annotations

import functools
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa
from guestemu.abi.errors import InputError
from guestemu.events.base import Event
from guestemu.events.devices import DmaMapping
from guestemu.guest.linux.load import LOADER
from guestemu.guest.linux.userland.callers import BY_DRIVERS
from guestemu.guest.linux.userland.mappings import PREFIX
from guestemu.guest.linux.userland.running import RunningKernel
from guestemu.guest.linux.userland.session import Setting, Userland
from guestemu.study.claims.kernels import image

DEVICES: Final = ("nvme", "virtio-rng", "virtio-blk", "virtio-net")
_PCI: Final = "/sys/bus/pci/drivers/nvme"
_IO: Final = (
    "fill /dev/nvme0n1 65536 0",
    "read /dev/nvme0n1 65536 0",
    "read /dev/vda 4096 0",
    "read /dev/hwrng 512 0",
)
_ALLOC, _FREE, _MAP, _MAP_LIST = "dma_alloc_class", "dma_free_class", "dma_map", "dma_map_sg"


class DriverCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one kernel. `bound`: coherent buffers that are alive when all drivers have bound.
    `io_maps`, `io_buffers`: DMA mappings and coherent buffers made while they read and write.
    `freed`, `made`: coherent buffers of the unbinding and of the binding; `made_pages` their pages,
    `cleared` those that read as zero through the shared view when the driver gets them. `io_pages`,
    `pages`: pages converted during the I/O, and from rest_init() to its end, by what for."""

    kernel: str
    bound: int
    io_maps: int
    io_buffers: int
    freed: int
    made: int
    made_pages: int
    cleared: int
    io_pages: dict[str, int]
    pages: dict[str, int]

    @property
    def io_asked(self) -> int:
        """Pages that the drivers themselves had converted for I/O."""
        return sum(self.io_pages.get(purpose, 0) for purpose in BY_DRIVERS)


class _Watch:
    """Counts dma:* events from its making on."""

    def __init__(self, running: RunningKernel) -> None:
        self.mapped: dict[str, int] = {}
        self.made_pages = self.cleared = 0
        self._running = running
        running.listeners.append(self._hear)

    def end(self) -> None:
        self._running.listeners.remove(self._hear)

    def _hear(self, event: Event) -> None:
        if not isinstance(event, DmaMapping):
            return
        self.mapped[event.name] = self.mapped.get(event.name, 0) + 1
        if event.name == _ALLOC:
            first, last = event.gpa >> PAGE_SHIFT, event.gpa + event.size - 1 >> PAGE_SHIFT
            for gfn in range(first, last + 1):
                page = self._running.machine.ram.read(
                    Gpa(gfn << PAGE_SHIFT), PAGE_SIZE, private=False
                )
                self.made_pages += 1
                self.cleared += not any(page)


@functools.cache
def driver_run(kernel: str) -> DriverCounts | None:
    """The run of a kernel of `Lab.kernels`; None for one without dma:* events or without the
    drivers' modules."""
    if PREFIX + _ALLOC not in LOADER.kernel(image(kernel)).symbols:
        return None
    try:
        running = Userland(LOADER).start(image(kernel), Setting(devices=DEVICES))
    except InputError:
        return None
    try:
        return _run(kernel, running)
    finally:
        running.machine.close()


def _run(kernel: str, running: RunningKernel) -> DriverCounts:
    bound = sum(span.event == _ALLOC for span in running.mappings.live)
    before, io = dict(running.callers.pages), _Watch(running)
    for command in _IO:
        running.command(command)
    io.end()
    pages = dict(running.callers.pages)
    running.checkpoint()  # from here on each view holds what hardware would show
    again = _Watch(running)
    for file in ("unbind", "bind"):
        running.command(f"write {_PCI}/{file} 0000:00:01.0")
    running.command("sleep 100")
    running.command("read /dev/nvme0n1 512 0")
    again.end()
    return DriverCounts(
        kernel=kernel,
        bound=bound,
        io_maps=io.mapped.get(_MAP, 0) + io.mapped.get(_MAP_LIST, 0),
        io_buffers=io.mapped.get(_ALLOC, 0),
        freed=again.mapped.get(_FREE, 0),
        made=again.mapped.get(_ALLOC, 0),
        made_pages=again.made_pages,
        cleared=again.cleared,
        io_pages={
            name: count - before.get(name, 0)
            for name, count in pages.items()
            if count > before.get(name, 0)
        },
        pages=pages,
    )
