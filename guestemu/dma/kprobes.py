# SPDX-License-Identifier: GPL-2.0-or-later
"""Allocations and frees from kprobes on dma_alloc_attrs() and dma_free_attrs().

Kernels before 6.12 have no dma:* trace events, but both functions take all that is needed
(kernel/dma/mapping.c). The bus address is known only when dma_alloc_attrs() returns, so an
allocation is two lines, the call and its return, which are joined here per task; the returned
kernel address stands for the bus address, and the free names the same. Fields are found by name:
`dev`, `size`, `gfp`, `attrs` of the call, `addr` of the return and of the free. docs/dma.md has the
probe definitions.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

MAX_PENDING: Final = 1 << 16
_WHERE: Final = re.compile(rb"\(([^)]{1,400})\)(.*)", re.DOTALL)
_FIELD: Final = re.compile(rb'(\w{1,40})=("[^"]{0,200}"|\S{0,200})')
_NUMBER: Final = re.compile(rb"0x[0-9a-fA-F]{1,16}|[0-9]{1,20}")
_ALLOC: Final = b"dma_alloc_attrs"
_FREE: Final = b"dma_free_attrs"


class ProbedCall(msgspec.Struct, frozen=True, gc=False):
    """A call of dma_alloc_attrs() or dma_free_attrs(): device, bytes, printed flags and attributes,
    kernel address (0 when an allocation gave NULL or NULL was freed)."""

    is_alloc: bool
    device: bytes
    size: int
    gfp: bytes
    attrs: bytes
    address: int


class Unusable(Exception):
    """A probe line without a call; the text says why."""


def is_probe(event: bytes, body: bytes) -> bool:
    """Whether an event is a probe on one of the two functions, whatever the probe is called."""
    text = event + body[:200]
    return body.startswith(b"(") and (_ALLOC in text or _FREE in text)


class KprobePairs:
    """Joins the calls of dma_alloc_attrs() with their returns, the innermost first per task."""

    def __init__(self) -> None:
        self._pending: dict[bytes, list[ProbedCall]] = {}
        self._count = 0

    @property
    def pending(self) -> int:
        """Calls whose return has not been seen."""
        return self._count

    def see(self, task: bytes, event: bytes, body: bytes) -> ProbedCall | None:
        """One probe line of the task `task` (name and PID). Raises `Unusable`.

        None for a call of dma_alloc_attrs(), which counts when it returns.
        """
        match = _WHERE.fullmatch(body)
        if match is None:
            raise Unusable("a probe without its place in parentheses")
        where, rest = match.groups()
        fields = dict(_FIELD.findall(rest))
        if b"<-" in where:
            return self._return(task, fields)
        if _FREE in event or _FREE in where:
            device, size = _device(fields), _number(fields, b"size")
            return ProbedCall(
                False, device, size, b"", fields.get(b"attrs", b""), _number(fields, b"addr")
            )
        if self._count >= MAX_PENDING:
            raise Unusable("too many calls of dma_alloc_attrs without a return")
        call = ProbedCall(
            True,
            _device(fields),
            _number(fields, b"size"),
            fields.get(b"gfp", b""),
            fields.get(b"attrs", b""),
            0,
        )
        if not call.gfp:
            raise Unusable("a call of dma_alloc_attrs without gfp=")
        self._pending.setdefault(task, []).append(call)
        self._count += 1
        return None

    def _return(self, task: bytes, fields: dict[bytes, bytes]) -> ProbedCall:
        calls = self._pending.get(task)
        if not calls:
            raise Unusable("a return of dma_alloc_attrs without its call")
        call = calls.pop()
        self._count -= 1
        if not calls:
            del self._pending[task]
        return msgspec.structs.replace(call, address=_number(fields, b"addr"))


def _device(fields: dict[bytes, bytes]) -> bytes:
    device = fields.get(b"dev", b"").strip(b'"')
    if not device or device == b"(fault)":
        raise Unusable("a probe without dev=; see docs/dma.md for the probe definitions")
    return device


def _number(fields: dict[bytes, bytes], name: bytes) -> int:
    text = fields.get(name, b"")
    if _NUMBER.fullmatch(text) is None:
        raise Unusable(f"a probe without a number in {name.decode()}=")
    return int(text, 0) if text.startswith(b"0x") else int(text)
