# SPDX-License-Identifier: GPL-2.0-or-later
"""The mailbox between VMM and migration handler: addresses, functions, results, header.

Places and functions are those of the 2021 prototype (F10, F13: GPA 0x820000, 0x2000 bytes; command
at +0, header of a page at +0x800 as a 32-bit length and bytes, the page at +0x1000). The header's
content is ours: the prototype has none (F12).
"""

from __future__ import annotations

import enum
import struct
from typing import Final

import msgspec

from guestemu.abi.addresses import Gpa

MAILBOX_GPA: Final = Gpa(0x820000)
MAILBOX_PAGES: Final = 2
HEADER_OFFSET: Final = 0x800
HEADER_MAX: Final = 1024
PAGE_OFFSET: Final = 0x1000

GO_OFFSET: Final = 24
RET_OFFSET: Final = 20
DONE_OFFSET: Final = 28

TIMEOUT_MS: Final = 100
"""How long QEMU waits for `done` (F13)."""

WINDOW_GVA: Final = 0xFFFF_FF80_0000_0000
"""Where the handler's page tables map mirror GPA 0 to 1 GiB with C=0 (F11)."""

_COMMAND: Final = struct.Struct("<QQIIII")
_HEADER: Final = struct.Struct("<IIQQQ16s")
HEADER_MAGIC: Final = 0x484D4547


class Function(enum.IntEnum):
    """What a command asks for (F10)."""

    INIT = 0
    SAVE = 1
    RESTORE = 2
    RESET = 3


class Ret(enum.IntEnum):
    """Result of a command: F10, and `ADDRESS`, which is ours: a page of the handler's own, or an
    address that is not page-aligned."""

    OK = 0
    INVALID_FUNCTION = -1
    AUTHENTICATION = -2
    ADDRESS = -3


class PageForm(enum.Enum):
    """How a page leaves the handler.

    `bound`: AES-128-GCM; sender, address and sequence number are authenticated and checked.
    `unbound`: AES-128-GCM without address and order: any packet fits any page, any number of times.
    `copy`: the prototype, no cryptography and no header (F12).
    """

    BOUND = "bound"
    UNBOUND = "unbound"
    COPY = "copy"


class PageHeader(msgspec.Struct, frozen=True):
    """What precedes a page in the bound and unbound forms, 48 bytes.

    The first 32 bytes are GCM's additional data. `form` is 1 for bound, 2 for unbound; `address` is
    0 when unbound. `sequence` has the sender's session in its high 32 bits and counts pages in the
    low ones. The IV is the low 32 bits of `sender` and then `sequence`, both little-endian.
    """

    form: int
    address: int
    sequence: int
    sender: int
    tag: bytes

    def pack(self) -> bytes:
        """The 48 bytes."""
        return _HEADER.pack(
            HEADER_MAGIC, self.form, self.address, self.sequence, self.sender, self.tag
        )

    @classmethod
    def unpack(cls, data: bytes) -> PageHeader | None:
        """The fields of 48 bytes with the right magic, else None."""
        if len(data) != _HEADER.size:
            return None
        magic, form, address, sequence, sender, tag = _HEADER.unpack(data)
        return cls(form, address, sequence, sender, tag) if magic == HEADER_MAGIC else None

    @property
    def iv(self) -> bytes:
        """The 12 bytes of GCM's IV."""
        return struct.pack("<IQ", self.sender & 0xFFFF_FFFF, self.sequence)


HEADER_SIZE: Final = _HEADER.size
AAD_SIZE: Final = 32


def pack_command(nr: int, address: int, prefetch: bool = False) -> bytes:
    """F10's structure with `go` and `done` clear."""
    return _COMMAND.pack(nr, address, int(prefetch), 0, 0, 0)
