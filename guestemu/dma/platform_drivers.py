# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest shares beside the rings of its devices: swiotlb, attestation pages, the atomic
pools' customers, drivers that allocate for each command (facts B8, B9, B11)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.dma.layout import Driver, Layout, Parameter, Values, Want
from guestemu.guest.dma.coherent import Origin
from guestemu.guest.dma.gfp import GFP_ATOMIC, GFP_KERNEL

_MIB: Final = 1 << 20
SWIOTLB_MIN: Final = 64 * _MIB
SWIOTLB_MAX: Final = 1024 * _MIB
_SLOT_SEGMENT: Final = 128 * 2048
_SEV_FW_BLOB: Final = 16384
_SNP_MESSAGE: Final = 4096


def swiotlb_bytes(ram: int) -> int:
    """Bytes of the bounce buffer of a SEV guest with `ram` bytes: 6 %, from 64 MiB to 1 GiB, in
    whole segments of 128 slots (`sev_setup_arch`, arch/x86/mm/mem_encrypt.c; B9)."""
    size = min(max(ram * 6 // 100, SWIOTLB_MIN), SWIOTLB_MAX)
    return -(-size // _SLOT_SEGMENT) * _SLOT_SEGMENT


def _swiotlb(values: Values) -> Layout:
    return Layout((Want(swiotlb_bytes(values["ram"] * _MIB), origin=Origin.BOOT),), ())


def _sev_guest(_values: Values) -> Layout:
    sizes = (_SNP_MESSAGE, _SNP_MESSAGE, _SEV_FW_BLOB)
    return Layout(tuple(Want(size, origin=Origin.PAGES) for size in sizes), ())


def _atomic(values: Values) -> Layout:
    return Layout((), (), (Want(values["size"], GFP_ATOMIC),) * values["count"])


def _legacy(values: Values) -> Layout:
    commands = (Want(values["size"], GFP_KERNEL),) * values["commands"]
    return Layout((Want(PAGE_SIZE),), (), (), commands)


PLATFORM_DRIVERS: Final[Mapping[str, Driver]] = {
    "swiotlb": Driver(
        "swiotlb",
        "the bounce buffer by RAM size, shared at boot (not on linux: guests, which have theirs)",
        {"ram": Parameter(1024, 1, 1 << 20, "MiB of RAM that the size is taken from")},
        _swiotlb,
    ),
    "sev-guest": Driver(
        "sev_guest",
        "attestation: request, response and certificates, shared without a memset (not on linux:)",
        {},
        _sev_guest,
    ),
    "atomic": Driver(
        "atomic",
        "buffers taken without sleeping, until the atomic pools grow",
        {
            "size": Parameter(4096, 1, 1 << 20, "bytes of a buffer"),
            "count": Parameter(64, 1, 1 << 20, "buffers"),
        },
        _atomic,
    ),
    "legacy": Driver(
        "legacy",
        "a mailbox page; with scenario=io a buffer allocated and freed for each command",
        {
            "size": Parameter(512, 1, 1 << 22, "bytes of a command's buffer"),
            "commands": Parameter(100, 1, 1 << 20, "commands of a round"),
        },
        _legacy,
    ),
}
"""Drivers by pattern name."""
