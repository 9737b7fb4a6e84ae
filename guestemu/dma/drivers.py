# SPDX-License-Identifier: GPL-2.0-or-later
"""What drivers ask of dma_alloc_coherent, by formula (facts B7, B8, section B.2).

Sizes are in bytes, as the driver asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.dma.layout import Driver, Layout, Parameter, Values, Want
from guestemu.dma.platform_drivers import PLATFORM_DRIVERS
from guestemu.guest.dma.gfp import GFP_ATOMIC, GFP_KERNEL, GFP_NOIO, GFP_NOWAIT

_VRING: Final = frozenset({"GFP_KERNEL", "__GFP_ZERO"})
_VRING_LARGE: Final = _VRING | {"__GFP_NOWARN"}
_VIRTIO_NET_CONTROL_QUEUE: Final = 64
_VIRTIO_ALIGN: Final = 64
_VIRTIO_LEGACY_ALIGN: Final = 4096
_DESCRIPTOR_BYTES: Final = 16


def vring_bytes(descriptors: int, align: int) -> int:
    """Bytes of a split virtqueue of n descriptors (vring_size, include/uapi/linux/virtio_ring.h).

    Descriptor table and available ring, aligned, then the used ring.
    """
    available = 16 * descriptors + 2 * (3 + descriptors)
    return (available + align - 1) // align * align + 6 + 8 * descriptors


def dma_pool_pages(blocks: int, block_bytes: int) -> int:
    """Pool pages that `blocks` blocks take in a dma_pool, of max(block, page) bytes each (B7)."""
    return -(-blocks // (dma_pool_page_bytes(block_bytes) // block_bytes))


def dma_pool_page_bytes(block_bytes: int) -> int:
    """Bytes of one allocation of a dma_pool of such blocks."""
    return max(block_bytes, PAGE_SIZE)


def _vring(descriptors: int, is_legacy: bool) -> Want:
    size = vring_bytes(descriptors, _VIRTIO_LEGACY_ALIGN if is_legacy else _VIRTIO_ALIGN)
    return Want(size, _VRING_LARGE if size > PAGE_SIZE else _VRING)


def _virtio_net(values: Values) -> Layout:
    is_legacy = bool(values["legacy"])
    queues = (_vring(values["size"], is_legacy),) * (2 * values["queues"])
    return Layout((), (*queues, _vring(_VIRTIO_NET_CONTROL_QUEUE, is_legacy)))


def _virtio_blk(values: Values) -> Layout:
    return Layout((), (_vring(values["size"], bool(values["legacy"])),) * values["queues"])


def _virtio_scsi(values: Values) -> Layout:
    queue = _vring(values["size"], bool(values["legacy"]))
    return Layout((), (queue,) * (2 + values["queues"]))


def _nvme(values: Values) -> Layout:
    depth, queues = values["depth"], values["queues"]
    doorbells = Want(8 * (queues + 1))
    prp = (Want(dma_pool_page_bytes(4096), GFP_ATOMIC),) * values["prp"]
    io_queue = (Want(16 * depth), Want(64 * depth))
    return Layout((Want(16 * 32), Want(64 * 32), doorbells, doorbells), io_queue * queues, prp)


def _e1000(values: Values) -> Layout:
    ring = values["descriptors"] * _DESCRIPTOR_BYTES
    aligned = -(-ring // PAGE_SIZE) * PAGE_SIZE
    return Layout((), (Want(aligned), Want(aligned)))


def _ahci(values: Values) -> Layout:
    commands = 32
    per_port = 32 * commands + commands * (128 + 168 * 16) + 256
    return Layout((Want(per_port),) * values["ports"], ())


def _xhci(values: Values) -> Layout:
    bound = (Want(8 * 257), Want(4096), Want(4096), Want(16))
    contexts = (Want(4096, GFP_NOIO),) * values["contexts"]
    return Layout(bound, contexts + (Want(4096, GFP_NOWAIT),) * values["segments"])


def _dma_pool(values: Values) -> Layout:
    page = Want(
        dma_pool_page_bytes(values["block"]), GFP_ATOMIC if values["atomic"] else GFP_KERNEL
    )
    return Layout((), (page,) * dma_pool_pages(values["blocks"], values["block"]))


_QUEUES: Final = Parameter(2, 1, 256, "queues")
_RING: Final = Parameter(256, 2, 32768, "descriptors of a virtqueue")
_LEGACY: Final = Parameter(0, 0, 1, "1: legacy ring, aligned to 4096")
_VIRTIO: Final = {"size": _RING, "legacy": _LEGACY}

DRIVERS: Final[Mapping[str, Driver]] = {
    "virtio-net": Driver(
        "virtio_net",
        "receive and transmit queue per pair, one control queue",
        {"queues": Parameter(1, 1, 256, "queue pairs"), **_VIRTIO},
        _virtio_net,
        "size",
    ),
    "virtio-blk": Driver(
        "virtio_blk", "request queues", {"queues": _QUEUES, **_VIRTIO}, _virtio_blk, "size"
    ),
    "virtio-scsi": Driver(
        "virtio_scsi",
        "control, event and request queues",
        {"queues": _QUEUES, **_VIRTIO},
        _virtio_scsi,
        "size",
    ),
    "nvme": Driver(
        "nvme",
        "admin queue, doorbell buffers, I/O queues, PRP pool pages taken in atomic context",
        {
            "queues": _QUEUES,
            "depth": Parameter(1024, 2, 65536, "entries of an I/O queue"),
            "prp": Parameter(1, 0, 65536, "PRP pool pages"),
        },
        _nvme,
        "depth",
    ),
    "e1000": Driver(
        "e1000",
        "one transmit and one receive ring",
        {"descriptors": Parameter(256, 48, 4096, "descriptors of a ring")},
        _e1000,
        "descriptors",
    ),
    "ahci": Driver(
        "ahci",
        "command list, tables and FIS area of each port",
        {"ports": Parameter(6, 1, 32, "ports")},
        _ahci,
    ),
    "xhci": Driver(
        "xhci_hcd",
        "context array, event ring, device contexts and segments",
        {
            "contexts": Parameter(6, 0, 4096, "context pages of devices"),
            "segments": Parameter(1, 0, 4096, "ring segments taken without sleeping"),
        },
        _xhci,
    ),
    "dma-pool": Driver(
        "dma_pool",
        "pages of a dma_pool that hands out blocks",
        {
            "block": Parameter(256, 4, 1 << 20, "bytes of a block"),
            "blocks": Parameter(64, 1, 1 << 20, "blocks handed out"),
            "atomic": Parameter(0, 0, 1, "1: taken in atomic context"),
        },
        _dma_pool,
    ),
    **PLATFORM_DRIVERS,
}
"""Drivers by pattern name."""
