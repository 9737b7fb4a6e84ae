# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_HC_PAGE_ENC_STATUS held to what its patch sets wanted: the answers and the record.

Written from the facts without calling any host model. What the postings decide differently on
purpose stays open: a range that reaches beyond RAM may be recorded as far as there is RAM (0), or
refused (-EINVAL, -ENOMEM). Their accidents are violations: dropped low bits (M43), no wrap test
(M31), list counts as results (K2-d), a range answered 0 and not recorded (K1-g, K2-c).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, U32_MASK, U64_MASK, gpa_text, to_signed
from guestemu.abi.errno import EINVAL, ENOMEM
from guestemu.abi.hypercalls import KVM_EPERM, KVM_HC_PAGE_ENC_STATUS, KVM_HC_PAGE_ENC_STATUS_2019
from guestemu.checks.base import OpView, Oracle, Violation
from guestemu.events.exits import AnsweredExit
from guestemu.host.base import Host
from guestemu.program.ops import OpKind

NUMBERS: Final[Mapping[str, int]] = {
    "page-enc-status": KVM_HC_PAGE_ENC_STATUS,
    "page-enc-status-2019": KVM_HC_PAGE_ENC_STATUS_2019,
}
"""The contracts (`Host.contract`) judged here, with the hypercall's number."""

_OK: Final = frozenset({0})
_REFUSED: Final = frozenset({-EINVAL})
_BEYOND: Final = frozenset({0, -EINVAL, -ENOMEM})
_ACCEPTED: Final = frozenset({0, 1, -1})
"""Results after which the range counts as recorded: v10 answers 1 and -1 for success (K2-d)."""


def _call_of(record: AnsweredExit, number: int) -> tuple[int, int, int] | None:
    """GPA, pages and enc of a status hypercall in the width of the caller's mode."""
    mask = U64_MASK if record.is_64bit else U32_MASK
    if not record.is_hypercall or record.nr & mask != number or record.ret is None:
        return None
    return record.args[0] & mask, record.args[1] & mask, record.args[2] & mask


def _result_of(record: AnsweredExit) -> int:
    return to_signed(record.ret or 0, 64 if record.is_64bit else 32)


def _allowed(record: AnsweredExit, call: tuple[int, int, int], frames: int) -> frozenset[int]:
    """The results that the patch sets meant `call` to have, with `frames` frames of RAM."""
    gpa, pages, _ = call
    gfn = gpa >> PAGE_SHIFT
    if record.cpl:
        return frozenset({-KVM_EPERM})
    if not pages:
        return _OK | _REFUSED if gpa & PAGE_MASK else _OK
    if gpa & PAGE_MASK or gfn + pages > U64_MASK:
        return _REFUSED
    return _OK if gfn + pages <= frames else _BEYOND


class PageEncResultCheck(Oracle):
    """The answer of every status hypercall is one that the patch sets meant to give."""

    name = "results"
    kinds: frozenset[OpKind] | None = None

    @classmethod
    def applies(cls, host: Host) -> bool:
        """Hosts of the patch sets."""
        return host.contract in NUMBERS

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        number = NUMBERS.get(view.host.contract)
        if number is None:
            return ()
        frames = len(view.host_before)
        for record in view.exits:
            call = _call_of(record, number)
            if call is None:
                continue
            allowed = _allowed(record, call, frames)
            if _result_of(record) not in allowed:
                wanted = " or ".join(map(str, sorted(allowed, reverse=True)))
                message = (
                    f"status hypercall {number} of gpa {call[0]:#x}, {call[1]:#x} pages, enc "
                    f"{call[2]:#x} was answered {_result_of(record)}, expected {wanted}"
                )
                return (Violation(self.name, view.index, message, "K1-a to K1-e, K2-d"),)
        return ()


class PageEncRecordCheck(Oracle):
    """What was answered as done is in the record, and nothing else is (conversions: `status`)."""

    name = "record"
    kinds: frozenset[OpKind] | None = None

    @classmethod
    def applies(cls, host: Host) -> bool:
        """Hosts of the patch sets."""
        return host.contract in NUMBERS

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        number = NUMBERS.get(view.host.contract)
        if number is None or view.frames is not None or not view.exits:
            return ()
        expected = view.host_before.copy()
        for record in view.exits:
            _apply(record, number, expected)
        return record_violation(view, expected, "K1-b, K2-a")


def _apply(record: AnsweredExit, number: int, expected: bitarray) -> None:
    """What an answered status hypercall changes in a map of RAM."""
    call = _call_of(record, number)
    if call is None or record.cpl or _result_of(record) not in _ACCEPTED:
        return
    gpa, pages, enc = call
    first = gpa >> PAGE_SHIFT
    end = min(first + pages, len(expected))
    expected[first:end] = enc != 0


def record_violation(view: OpView, expected: bitarray, fact: str) -> Iterable[Violation]:
    """A `record` violation if the host's map is not `expected`."""
    status = view.host.private_map()
    if status == expected:
        return ()
    difference = status ^ expected
    frame, total = difference.index(1), difference.count()
    was, wanted = ("private" if bits[frame] else "shared" for bits in (status, expected))
    message = (
        f"host: {gpa_text(frame)} is recorded as {was}, expected {wanted} "
        f"({total} frame{'s differ' if total > 1 else ' differs'})"
    )
    return (Violation("record", view.index, message, fact),)
