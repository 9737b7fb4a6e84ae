# SPDX-License-Identifier: GPL-2.0-or-later
"""The ioctls of the never-merged generations do what their names say.

SET makes the record what user space gave, for the range and nothing else; RESET and a NULL buffer
make everything private; GET gives the record out and leaves user memory behind the range alone; the
reset of a vCPU and a new slot change nothing. Source: K1-d, K1-i to K1-k, K2-e, M32, M35, M36, M38.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from bitarray import bitarray

from guestemu.checks.base import PAGE_ENC_CONTRACTS, OpView, Oracle, Violation
from guestemu.checks.page_enc import record_violation
from guestemu.host.base import Host
from guestemu.program.ops import HOST_SPECS, OpKind

_WORD: Final = 64
_SHOWN: Final = 32
"""Bits of the GET buffer that the operation gives back."""


def _set_bitmap(arguments: tuple[int, ...], expected: bitarray) -> None:
    gfn, pages, bits, null = arguments
    if null:
        expected.setall(True)
        return
    word = bitarray(endian="little")
    word.frombytes(bits.to_bytes(8, "little"))
    count = max(0, min(pages, len(expected) - gfn))
    if count:
        expected[gfn : gfn + count] = (word * -(-count // _WORD))[:count]


def _set_list(arguments: tuple[int, ...], expected: bitarray) -> None:
    gfn, pages, count, null = arguments
    expected.setall(True)
    regions = 0 if null else count & 0xFFFF_FFFF
    for index in range(regions):
        start = gfn + 2 * pages * index
        if start >= len(expected):
            return
        expected[start : min(start + pages, len(expected))] = False


def _forget(arguments: tuple[int, ...], expected: bitarray) -> None:
    expected.setall(True)


def _nothing(arguments: tuple[int, ...], expected: bitarray) -> None:
    return


_EFFECTS: Final[Mapping[OpKind, Callable[[tuple[int, ...], bitarray], None]]] = {
    OpKind.HOST_GET_BITMAP: _nothing,
    OpKind.HOST_SET_BITMAP: _set_bitmap,
    OpKind.HOST_RESET_BITMAP: _forget,
    OpKind.HOST_SET_LIST: _set_list,
    OpKind.HOST_COMMIT_SLOT: _nothing,
    OpKind.HOST_RESET_VCPU: _nothing,
    OpKind.HOST_POISON_PAGE: _nothing,
}
"""What a successful operation does to the record; GET of the list is not here, for another vCPU may
change the record while it runs."""


class HostIoctlCheck(Oracle):
    """Judges host operations by the record before and after them. A refused one changes nothing."""

    name = "record"
    kinds: frozenset[OpKind] | None = None

    @classmethod
    def applies(cls, host: Host) -> bool:
        """Hosts of the patch sets."""
        return host.contract in PAGE_ENC_CONTRACTS

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        op = view.op
        effect = _EFFECTS.get(op.kind) if op.kind in HOST_SPECS else None
        value = view.outcome.value
        if effect is None or value is None:
            return ()
        expected = view.host_before.copy()
        if value >= 0:
            effect(op.arguments, expected)
            if op.kind is OpKind.HOST_GET_BITMAP:
                return self._judge_get(view, value)
        return record_violation(view, expected, "K1-d, K1-j, K2-e")

    def _judge_get(self, view: OpView, value: int) -> Iterable[Violation]:
        gfn, pages, filler = view.op.arguments
        private = view.host_before
        for index in range(_SHOWN):
            bit = value >> index & 1
            if index >= pages:
                wanted, what = filler >> index % 8 & 1, "behind the range was not left alone"
            elif gfn + index < len(private):
                wanted, what = private[gfn + index], "is not the record"
            else:
                continue  # beyond RAM only the host itself knows
            if bit != wanted:
                message = f"GET: bit {index} of the buffer {what}: {bit}, expected {wanted}"
                return (Violation(self.name, view.index, message, "K1-i, M38"),)
        return ()
