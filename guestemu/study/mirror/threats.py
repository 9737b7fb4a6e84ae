# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks on a migration through handlers: programs, and where each has its attack.

Source: F9 (who may harm whom, Rutherford's worry), F10 (answers), F13 (what a VMM may write into
the mailbox), F15 (shared pages). After the attack the guest at the destination loads what it had
written; `FilledPage` says what that should be.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.host.mirror.mailbox import Function
from guestemu.host.mirror.proposals import Proposal
from guestemu.host.mirror.world import MemoryKind
from guestemu.program.ops import Op, OpKind
from guestemu.study.mirror.cases import Naming

FIRST: Final = 0x5A
SECOND: Final = 0xA5

_FLIPPED, _OTHER_SENDER, _NO_KEY = range(3)
_UNALIGNED: Final = 0x100008
_UNKNOWN: Final = 9
_LOW, _PLUGGED, _PEER = int(MemoryKind.LOW), int(MemoryKind.HOT_PLUGGED), int(MemoryKind.PEER)


class FilledPage(msgspec.Struct, frozen=True):
    """The byte that the guest filled a page with, which it should find at the destination."""

    place: int
    page: int
    value: int


class Threat(msgspec.Struct, frozen=True):
    """`actor` does what `name` says: `before` leads to it, `attack` is it, `loads` show what is
    lost. `other_build`: as in `PageCase`."""

    name: str
    actor: str
    before: tuple[Op, ...]
    attack: tuple[Op, ...]
    loads: tuple[FilledPage, ...] = ()
    other_build: bool = False


def _write(place: int, page: int, value: int, shared: int = 0) -> Op:
    return Op(OpKind.MIRROR_WRITE, (place, page, value, shared))


def _save(place: int, page: int) -> Op:
    return Op(OpKind.MIRROR_SAVE, (place, page))


def _restore(packet: int, place: int, page: int) -> Op:
    return Op(OpKind.MIRROR_RESTORE, (packet, place, page))


def _inject(kind: int) -> Op:
    return Op(OpKind.MIRROR_INJECT, (kind, _LOW, 1))


def _migrate(place: int, page: int) -> Op:
    return Op(OpKind.MIRROR_MIGRATE, (place, page))


def _tell(private: int) -> Op:
    return Op(OpKind.MIRROR_TELL, (_LOW, 1, private))


_ONE_MOVED: Final = (_write(_LOW, 1, FIRST), _migrate(_LOW, 1))
_FIRST_PAGE: Final = FilledPage(_LOW, 1, FIRST)

THREATS: Final = (
    Threat(
        "export of a shared page",
        "VMM",
        (_write(_LOW, 1, FIRST, 1), _save(_LOW, 1)),
        (_restore(0, _LOW, 1),),
        (_FIRST_PAGE,),
    ),
    Threat(
        "restore over the handler",
        "VMM",
        (_write(_PEER, 1, FIRST),),
        (_migrate(_PEER, 1),),
        other_build=True,
    ),
    Threat(
        "restore to another page",
        "VMM",
        (
            _write(_LOW, 1, FIRST),
            _write(_PLUGGED, 0, SECOND),
            _save(_LOW, 1),
        ),
        (_restore(0, _PLUGGED, 0),),
        (FilledPage(_PLUGGED, 0, SECOND),),
    ),
    Threat(
        "the same packet twice",
        "VMM",
        (*_ONE_MOVED, _write(_LOW, 1, SECOND), _migrate(_LOW, 1)),
        (_restore(0, _LOW, 1),),
        (FilledPage(_LOW, 1, SECOND),),
    ),
    Threat(
        "packets out of order",
        "VMM",
        (_write(_LOW, 1, FIRST), _save(_LOW, 1), _write(_LOW, 1, SECOND), _save(_LOW, 1)),
        (_restore(1, _LOW, 1), _restore(0, _LOW, 1)),
        (FilledPage(_LOW, 1, SECOND),),
    ),
    Threat("a changed packet", "network", _ONE_MOVED, (_inject(_FLIPPED),), (_FIRST_PAGE,)),
    Threat(
        "another sender", "owner's other VM", _ONE_MOVED, (_inject(_OTHER_SENDER),), (_FIRST_PAGE,)
    ),
    Threat("no key", "network", _ONE_MOVED, (_inject(_NO_KEY),), (_FIRST_PAGE,)),
    Threat(
        "an unknown command",
        "VMM",
        (),
        (Op(OpKind.MIRROR_COMMAND, (0, _UNKNOWN, 0)),),
    ),
    Threat(
        "save of an unaligned page",
        "VMM",
        (),
        (Op(OpKind.MIRROR_COMMAND, (0, int(Function.SAVE), _UNALIGNED)),),
    ),
    Threat(
        "private page told shared",
        "guest",
        (_write(_LOW, 1, FIRST), _tell(0)),
        (_migrate(_LOW, 1),),
        (_FIRST_PAGE,),
    ),
    Threat(
        "shared page told private",
        "guest",
        (_write(_LOW, 1, FIRST, 1), _tell(1)),
        (_migrate(_LOW, 1),),
        (_FIRST_PAGE,),
    ),
    Threat(
        "store into the handler's code",
        "guest",
        (_write(_LOW, 1, FIRST), Op(OpKind.MIRROR_POKE, (0, 0xCC))),
        (_migrate(_LOW, 1),),
        (_FIRST_PAGE,),
    ),
    Threat(
        "store into the handler's key",
        "guest",
        (_write(_LOW, 1, FIRST), Op(OpKind.MIRROR_POKE, (1, 0xCC))),
        (_migrate(_LOW, 1),),
        (_FIRST_PAGE,),
    ),
)

HANDLERS: Final = (
    Naming("bound", Proposal.RAM_ADDR),
    Naming("unbound", Proposal.RAM_ADDR, ("unbound",)),
    Naming(
        "prototype",
        Proposal.GPA,
        ("copy-form", "block-offset-skip", "unchecked-status", "no-guard", "block-gpa"),
    ),
)
"""Handlers that say which page a packet is and in which order; that do not; and the prototype's
(with the C-bit where the processor has it: else it does nothing at all)."""
