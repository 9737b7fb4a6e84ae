# SPDX-License-Identifier: GPL-2.0-or-later
"""The ioctls that user space had on the never-merged generations, as optional parts of a host.

A host has the ones whose Protocol it fits (`ioctls_of`). Results are 0 or more, or a negative
errno. User memory never exceeds what the modelled kernel would kmalloc for it, whatever sizes are
asked for.

Source: K1-d, K1-g, K1-i to K1-k, K2-e, D34.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Protocol, runtime_checkable

from guestemu.abi.addresses import PAGE_SHIFT, U64_MASK
from guestemu.host.kvm.findings import KMALLOC_MAX
from guestemu.host.kvm.page_enc_bitmap import bitmap_bytes
from guestemu.host.kvm.page_enc_ioctls import pack_argument
from guestemu.program.ops import OpKind

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


def get_bitmap(host: HasPageEncBitmap, gfn: int, pages: int, filler: int) -> int:
    """KVM_GET_PAGE_ENC_BITMAP of [gfn, gfn + pages) into a buffer of `filler` bytes, whole words.

    The result is a negative errno or the buffer's first 32 bits, bit 0 for `gfn`, 1 = encrypted.
    """
    size = min(bitmap_bytes(pages), KMALLOC_MAX)
    buffer = bytearray([filler]) * max(size, VALUE_BYTES)
    result = host.get_page_enc_bitmap(pack_argument(gfn, pages), buffer)
    return result or int.from_bytes(buffer[:VALUE_BYTES], "little")


def set_bitmap(host: HasPageEncBitmap, gfn: int, pages: int, bits: int, null: int) -> int:
    """KVM_SET_PAGE_ENC_BITMAP of [gfn, gfn + pages) from a buffer that repeats the word `bits`."""
    words = min(bitmap_bytes(pages), KMALLOC_MAX) // 8
    buffer = None if null else bytearray(bits.to_bytes(8, "little") * words)
    return host.set_page_enc_bitmap(pack_argument(gfn, pages), buffer)


def get_list(host: HasSharedPagesList, size: int, gfn: int, pages: int) -> int:
    """KVM_GET_SHARED_PAGES_LIST with a buffer of `size` bytes; a negative errno or the number of
    regions. With `pages` another vCPU reports [gfn, gfn + pages) shared at the unlocked moment."""

    def interfere() -> None:
        host.page_enc_status(gfn << PAGE_SHIFT & U64_MASK, pages, 0)

    buffer = bytearray(min(size, KMALLOC_MAX))
    result, count = host.get_shared_pages_list(buffer, size, interfere if pages else None)
    return result or count


def set_list(host: HasSharedPagesList, gfn: int, pages: int, count: int, null: int) -> int:
    """KVM_SET_SHARED_PAGES_LIST of `count` regions: [gfn, gfn + pages), then each 2 * pages on.

    `count` is the argument's u64; the ioctl takes its low 32 bits as a signed int.
    """
    count &= 0xFFFF_FFFF
    count -= (count >> 31) << 32
    if null:
        return host.set_shared_pages_list(None, count)
    entries = count if 0 <= count <= _MAX_ENTRIES else 0  # more is refused before it is read
    starts = (gfn + 2 * pages * index for index in range(entries))
    data = b"".join(_ENTRY.pack(start & U64_MASK, start + pages & U64_MASK) for start in starts)
    return host.set_shared_pages_list(data, count)


def _commit_slot(host: object, gfn: int, pages: int) -> int:
    """KVM_SET_USER_MEMORY_REGION creating a slot; only a host with the hook takes notice."""
    if isinstance(host, CommitsMemorySlots):
        host.commit_memory_region(gfn, pages)
    return 0


def _reset_vcpu(host: object) -> int:
    """INIT of a vCPU; only a host with the hook takes notice."""
    if isinstance(host, ResetsVcpus):
        host.reset_vcpu()
    return 0


def _poison_page(host: object, gfn: int) -> int:
    """The host's page behind `gfn` is poisoned; only a host that translates takes notice."""
    if isinstance(host, TranslatesFrames):
        host.poison_page(gfn)
    return 0


def ioctls_of(host: object) -> Mapping[OpKind, Callable[..., int]]:
    """The operations of this module that `host` has, by kind; each takes the op's arguments."""
    found: dict[OpKind, Callable[..., int]] = {
        OpKind.HOST_COMMIT_SLOT: partial(_commit_slot, host),
        OpKind.HOST_RESET_VCPU: partial(_reset_vcpu, host),
        OpKind.HOST_POISON_PAGE: partial(_poison_page, host),
    }
    if isinstance(host, HasPageEncBitmap):
        found[OpKind.HOST_GET_BITMAP] = partial(get_bitmap, host)
        found[OpKind.HOST_SET_BITMAP] = partial(set_bitmap, host)
    if isinstance(host, ResetsPageEncBitmap):
        found[OpKind.HOST_RESET_BITMAP] = host.reset_page_enc_bitmap
    if isinstance(host, HasSharedPagesList):
        found[OpKind.HOST_GET_LIST] = partial(get_list, host)
        found[OpKind.HOST_SET_LIST] = partial(set_list, host)
    return found
