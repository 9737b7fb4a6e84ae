# SPDX-License-Identifier: GPL-2.0-or-later
"""The ioctls that user space had on the never-merged generations, as optional parts of a host.

A host has the ones whose Protocol it fits; calling another gives -ENOTTY, as a kernel without the
ioctl does. Results are 0 or more, or a negative errno. User memory never exceeds what the modelled
kernel would kmalloc for it, whatever sizes are asked for.

Source: K1-d, K1-g, K1-i to K1-k, K2-e, D34.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, Protocol, runtime_checkable

from guestemu.abi.addresses import PAGE_SHIFT, U64_MASK
from guestemu.abi.errno import ENOTTY
from guestemu.host.base import Host
from guestemu.host.kvm.findings import KMALLOC_MAX
from guestemu.host.kvm.page_enc_bitmap import bitmap_bytes
from guestemu.host.kvm.page_enc_ioctls import pack_argument

VALUE_BYTES: Final = 4
"""Bytes of the GET buffer that `get_bitmap` gives back."""

_ENTRY: Final = struct.Struct("<QQ")
_MAX_ENTRIES: Final = KMALLOC_MAX // _ENTRY.size


@runtime_checkable
class HasPageEncBitmap(Protocol):
    """KVM_GET_PAGE_ENC_BITMAP and KVM_SET_PAGE_ENC_BITMAP (K1-i, K1-j)."""

    def get_page_enc_bitmap(self, argument: bytes, buffer: bytearray | None) -> int:
        """Fills `buffer`; 0 or a negative errno."""

    def set_page_enc_bitmap(self, argument: bytes, buffer: bytearray | None) -> int:
        """Takes `buffer`; 0 or a negative errno."""


@runtime_checkable
class ResetsPageEncBitmap(Protocol):
    """KVM_PAGE_ENC_BITMAP_RESET (K1-k)."""

    def reset_page_enc_bitmap(self) -> int:
        """0 or a negative errno."""


@runtime_checkable
class HasSharedPagesList(Protocol):
    """KVM_GET_SHARED_PAGES_LIST and KVM_SET_SHARED_PAGES_LIST (K2-e), and the hypercall's
    handler for the vCPU that interferes with GET."""

    def get_shared_pages_list(
        self, buffer: bytearray | None, size: int, concurrent: Callable[[], None] | None = None
    ) -> tuple[int, int]:
        """(0 or a negative errno, regions written); `concurrent` runs at the unlocked moment."""

    def set_shared_pages_list(self, buffer: bytes | None, count: int) -> int:
        """0 or a negative errno."""

    def page_enc_status(self, gpa: int, pages: int, enc: int) -> int:
        """The hypercall of another vCPU."""


@runtime_checkable
class CommitsMemorySlots(Protocol):
    """The hook for a created memory slot (K1-g)."""

    def commit_memory_region(self, base_gfn: int, pages: int) -> None:
        """A slot [base_gfn, base_gfn + pages) was created."""


@runtime_checkable
class ResetsVcpus(Protocol):
    """The hook for the reset of a vCPU (K1-d)."""

    def reset_vcpu(self) -> None:
        """A vCPU was reset."""


@runtime_checkable
class TranslatesFrames(Protocol):
    """The handler translates gfns and can be refused one (K1-e 4 and 5)."""

    def poison_page(self, gfn: int) -> None:
        """Translating `gfn` fails from now on."""


def get_bitmap(host: Host, gfn: int, pages: int, filler: int) -> int:
    """KVM_GET_PAGE_ENC_BITMAP of [gfn, gfn + pages) into a buffer of `filler` bytes, whole words.

    The result is a negative errno or the buffer's first 32 bits, bit 0 for `gfn`, 1 = encrypted.
    """
    if not isinstance(host, HasPageEncBitmap):
        return -ENOTTY
    size = min(bitmap_bytes(pages), KMALLOC_MAX)
    buffer = bytearray([filler]) * max(size, VALUE_BYTES)
    result = host.get_page_enc_bitmap(pack_argument(gfn, pages), buffer)
    return result or int.from_bytes(buffer[:VALUE_BYTES], "little")


def set_bitmap(host: Host, gfn: int, pages: int, bits: int, null: int) -> int:
    """KVM_SET_PAGE_ENC_BITMAP of [gfn, gfn + pages) from a buffer that repeats the word `bits`."""
    if not isinstance(host, HasPageEncBitmap):
        return -ENOTTY
    words = min(bitmap_bytes(pages), KMALLOC_MAX) // 8
    buffer = None if null else bytearray(bits.to_bytes(8, "little") * words)
    return host.set_page_enc_bitmap(pack_argument(gfn, pages), buffer)


def reset_bitmap(host: Host) -> int:
    """KVM_PAGE_ENC_BITMAP_RESET."""
    return host.reset_page_enc_bitmap() if isinstance(host, ResetsPageEncBitmap) else -ENOTTY


def get_list(host: Host, size: int, gfn: int, pages: int) -> int:
    """KVM_GET_SHARED_PAGES_LIST with a buffer of `size` bytes; a negative errno or the number of
    regions. With `pages` another vCPU reports [gfn, gfn + pages) shared at the unlocked moment."""
    if not isinstance(host, HasSharedPagesList):
        return -ENOTTY

    def interfere() -> None:
        host.page_enc_status(gfn << PAGE_SHIFT & U64_MASK, pages, 0)

    buffer = bytearray(min(size, KMALLOC_MAX))
    result, count = host.get_shared_pages_list(buffer, size, interfere if pages else None)
    return result or count


def set_list(host: Host, gfn: int, pages: int, count: int, null: int) -> int:
    """KVM_SET_SHARED_PAGES_LIST of `count` regions: [gfn, gfn + pages), then each 2 * pages on.

    `count` is the argument's u64; the ioctl takes its low 32 bits as a signed int.
    """
    if not isinstance(host, HasSharedPagesList):
        return -ENOTTY
    count &= 0xFFFF_FFFF
    count -= (count >> 31) << 32
    if null:
        return host.set_shared_pages_list(None, count)
    entries = count if 0 <= count <= _MAX_ENTRIES else 0  # more is refused before it is read
    starts = (gfn + 2 * pages * index for index in range(entries))
    data = b"".join(_ENTRY.pack(start & U64_MASK, start + pages & U64_MASK) for start in starts)
    return host.set_shared_pages_list(data, count)


def commit_slot(host: Host, gfn: int, pages: int) -> int:
    """KVM_SET_USER_MEMORY_REGION creating a slot; only a host with the hook takes notice."""
    if isinstance(host, CommitsMemorySlots):
        host.commit_memory_region(gfn, pages)
    return 0


def reset_vcpu(host: Host) -> int:
    """INIT of a vCPU; only a host with the hook takes notice."""
    if isinstance(host, ResetsVcpus):
        host.reset_vcpu()
    return 0


def poison_page(host: Host, gfn: int) -> int:
    """The host's page behind `gfn` is poisoned; only a host that translates takes notice."""
    if isinstance(host, TranslatesFrames):
        host.poison_page(gfn)
    return 0
