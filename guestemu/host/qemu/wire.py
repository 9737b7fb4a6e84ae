# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading big-endian numbers and byte strings from a stream that may be hostile or cut off."""

from __future__ import annotations

from typing import BinaryIO, Final

import msgspec

from guestemu.abi.errors import InputError

_U32: Final = 4
_U64: Final = 8
"""Bytes of a number."""


class StreamFault(msgspec.Struct, frozen=True):
    """Why a stream was refused: the byte `offset` of the offending field, its name, its `value`,
    the `limit` that it breaks (both 0 where there are no numbers), and the reason in words."""

    offset: int
    field: str
    value: int
    limit: int
    reason: str


class StreamError(InputError):
    """The migration stream was refused; `fault` has the particulars."""

    def __init__(self, fault: StreamFault) -> None:
        super().__init__(
            f"migration stream, offset {fault.offset:#x}, {fault.field}: {fault.reason}; send the"
            " stream again from an unbroken source"
        )
        self.fault = fault


class QemuWire:
    """A cursor over `source`. `offset` is the position in the whole stream, which may come in
    several sources. Never asks for more bytes than a caller's limit allows."""

    def __init__(self, source: BinaryIO, offset: int = 0) -> None:
        self._source = source
        self._ahead = b""
        self.offset = offset

    def refuse(
        self, field: str, reason: str, value: int = 0, limit: int = 0, back: int = 0
    ) -> StreamError:
        """The error for a field that began `back` bytes before the cursor."""
        return StreamError(StreamFault(self.offset - back, field, value, limit, reason))

    def at_end(self) -> bool:
        """Whether nothing follows."""
        if not self._ahead:
            self._ahead = self._source.read(1)
        return not self._ahead

    def take(self, size: int, field: str) -> bytes:
        """Exactly `size` bytes; the caller has bounded it. `StreamError` if the stream ends."""
        if not size:
            return b""
        if self._ahead:
            data = self._ahead + self._source.read(size - len(self._ahead))
            self._ahead = b""
        else:
            data = self._source.read(size)
        if len(data) < size:
            reason = f"the stream ends after {len(data)} of {size} bytes"
            raise self.refuse(field, reason, len(data), size)
        self.offset += size
        return data

    def u8(self, field: str) -> int:
        """One byte."""
        return self.take(1, field)[0]

    def u32(self, field: str) -> int:
        """be32."""
        return int.from_bytes(self.take(_U32, field), "big")

    def u64(self, field: str) -> int:
        """be64."""
        return int.from_bytes(self.take(_U64, field), "big")

    def name(self, field: str) -> str:
        """Length byte and name; bytes that are not UTF-8 become escapes."""
        return self.take(self.u8(f"{field} length"), field).decode(errors="backslashreplace")
