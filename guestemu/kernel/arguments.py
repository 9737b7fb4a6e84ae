# SPDX-License-Identifier: GPL-2.0-or-later
"""Arguments of `guestemu kernel call`: numbers, and memory that the kernel itself allocates.

| text | value |
| --- | --- |
| 42, -1, 0x1000 | that number |
| page:ORDER | 1 << ORDER zeroed pages of the page allocator, by their direct-map address |
| vmalloc:SIZE | SIZE bytes of vmalloc() |
| device | a kmalloc'ed struct device with 64-bit DMA masks and a list of DMA pools |
| string:TEXT | TEXT and a NUL in a page |
| gpa:ADDRESS | where the direct map has that physical address |
| &SYMBOL | the address of a symbol |
| result:N | what call N of a sequence returned; the first is 1 |
| argument:N.M | argument M of call N |

Each but `device` and `string` takes +N (bytes) at its end.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, U64_MASK, Gva
from guestemu.abi.errors import InputError
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.prepare import GET_FREE_PAGES, GFP_KERNEL

_GFP_ZERO: Final = 0x100
_MAX_ORDER: Final = 10
_MAX_VMALLOC: Final = 1 << 30
_VMALLOC: Final = ("vmalloc", "vmalloc_noprof")
_KMALLOC: Final = ("__kmalloc", "__kmalloc_noprof")
_SUM: Final = re.compile(r"(.*?[^+])\+(\w+)")
_KINDS: Final = (
    "a number, page:ORDER, vmalloc:SIZE, device, string:TEXT, gpa:ADDRESS, &SYMBOL, result:N or "
    "argument:N.M"
)


class CallArgument(msgspec.Struct, frozen=True):
    """One argument: as it was written, and its 64-bit value."""

    text: str
    value: int

    def __str__(self) -> str:
        is_plain = self.text.lstrip("-")[:1].isdigit()
        return self.text if is_plain else f"{self.text}={self.value:#x}"


class Earlier(msgspec.Struct, frozen=True):
    """A call that was made before in the same guest: RAX, and its arguments."""

    value: int
    arguments: tuple[CallArgument, ...]


def parse_number(text: str, what: str) -> int:
    """A decimal or 0x number. Raises `InputError` that names `what`."""
    try:
        return int(text, 0)
    except ValueError:
        raise InputError(f"{what}: {text!r} is not a number; write 42 or 0x2a") from None


def resolve(text: str, guest: LinuxGuest, earlier: Sequence[Earlier] = ()) -> CallArgument:
    """The value of one argument; allocates in `guest` what it asks for. `earlier` are the calls
    before this one.

    Raises `InputError` for a text that means nothing or an allocation that fails.
    """
    if text.startswith("string:"):
        return CallArgument(text, _string(text.removeprefix("string:"), guest))
    if text == "device":
        return CallArgument(text, _device(guest))
    match = _SUM.fullmatch(text)
    base, extra = (match[1], parse_number(match[2], text)) if match else (text, 0)
    kind, colon, rest = base.partition(":")
    if colon and kind in {"result", "argument"}:
        return CallArgument(text, _earlier(base, rest, earlier) + extra & U64_MASK)
    return CallArgument(text, _base(base, guest) + extra & U64_MASK)


def _earlier(text: str, place: str, earlier: Sequence[Earlier]) -> int:
    """What an earlier call returned (N), or one of its arguments (N.M)."""
    call, dot, argument = place.partition(".")
    if bool(dot) is not text.startswith("argument:"):
        raise InputError(f"argument {text!r}: use result:N or argument:N.M")
    number = parse_number(call, text)
    if not 1 <= number <= len(earlier):
        raise InputError(f"argument {text}: there is no call {number} before this one")
    told = earlier[number - 1]
    if not dot:
        return told.value
    index = parse_number(argument, text)
    if not 1 <= index <= len(told.arguments):
        raise InputError(f"argument {text}: call {number} has {len(told.arguments)} arguments")
    return told.arguments[index - 1].value


def _base(text: str, guest: LinuxGuest) -> int:
    kind, colon, rest = text.partition(":")
    if text.startswith("&"):
        return guest.kernel.address(text[1:])
    if not colon:
        try:
            value = int(text, 0)
        except ValueError:
            raise InputError(f"argument {text!r}: use {_KINDS}") from None
        if not -(1 << 63) <= value <= U64_MASK:
            raise InputError(f"argument {text}: does not fit into 64 bits")
        return value & U64_MASK
    number = parse_number(rest, text)
    if kind == "page":
        if not 0 <= number <= _MAX_ORDER:
            raise InputError(f"argument {text}: the order is 0 to {_MAX_ORDER}")
        return guest.calls.must(GET_FREE_PAGES, GFP_KERNEL | _GFP_ZERO, number)
    if kind == "vmalloc":
        if not 0 < number <= _MAX_VMALLOC:
            raise InputError(f"argument {text}: the size is 1 to {_MAX_VMALLOC:#x} bytes")
        return guest.calls.must(_VMALLOC, number)
    if kind == "gpa":
        return int(guest.direct_map) + number
    raise InputError(f"argument {text!r}: use {_KINDS}")


def _string(text: str, guest: LinuxGuest) -> int:
    data = text.encode() + b"\0"
    if len(data) > PAGE_SIZE:
        raise InputError(f"argument string: {len(data)} bytes; at most {PAGE_SIZE - 1} fit")
    address = guest.calls.must(GET_FREE_PAGES, GFP_KERNEL | _GFP_ZERO, 0)
    guest.machine.current.write_memory(Gva(address), data)
    return address


def _device(guest: LinuxGuest) -> int:
    """dma_mask points to the device's own coherent_dma_mask, as platform devices do it.

    An entry behind the structure is in the list of its DMA pools: dma_pool_create() makes a file in
    sysfs for the first one of a device, and there is no sysfs yet.
    """
    btf = guest.kernel.btf
    size = btf.size("device") + 7 & ~7
    address = guest.calls.must(_KMALLOC, size + 16, GFP_KERNEL | _GFP_ZERO)
    head, entry = address + btf.offset("device.dma_pools"), address + size
    mask = address + btf.offset("device.coherent_dma_mask")
    vcpu = guest.machine.current
    vcpu.write_memory(Gva(head), struct.pack("<QQ", entry, entry))
    vcpu.write_memory(Gva(entry), struct.pack("<QQ", head, head))
    vcpu.write_memory(Gva(mask), U64_MASK.to_bytes(8, "little"))
    pointer = address + btf.offset("device.dma_mask")
    vcpu.write_memory(Gva(pointer), mask.to_bytes(8, "little"))
    return address
