# SPDX-License-Identifier: GPL-2.0-or-later
"""Splits a byte stream of any length and content into numbered lines, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

CHUNK_BYTES: Final = 1 << 18
MAX_LINE_BYTES: Final = 1 << 16


class ByteSource(Protocol):
    """The one method of a binary file that a reader needs."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, and none only at the end."""


def numbered_lines(source: ByteSource) -> Iterator[tuple[int, bytes]]:
    """Yields (line number from 1, line without its newline).

    A line of more than 64 KiB may come cut, but never to less than 64 KiB plus one byte, so a
    caller sees that it is too long; the rest of it is read and dropped. Errors: only what
    `source.read` raises.
    """
    number = 0
    tail = b""
    is_skipping = False
    while chunk := source.read(CHUNK_BYTES):
        lines = (tail + chunk).split(b"\n")
        tail = lines.pop()
        for line in lines:
            if is_skipping:
                is_skipping = False
                continue
            number += 1
            yield number, line
        if len(tail) > MAX_LINE_BYTES:
            if not is_skipping:
                number += 1
                yield number, tail[: MAX_LINE_BYTES + 1]
                is_skipping = True
            tail = b""
    if tail and not is_skipping:
        yield number + 1, tail
