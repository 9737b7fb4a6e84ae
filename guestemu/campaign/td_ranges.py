# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps programs of the targets `mapgpa` and `hostile-host:tdx` short to run.

ACCEPT is a call for each page, so an encryption of 4 MiB takes as long as a thousand small ones and
shows nothing that two chunks of a decryption do not. Answers are those that KVM gives a meaning of
their own (T27); any other ends the VM. So does an access by an alias that kept its private entry
(T12): accesses go by the direct map.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_MASK
from guestemu.abi.errno import EAGAIN, EINVAL
from guestemu.abi.tdx import MAP_GPA_CHUNK
from guestemu.campaign.ranges import limit_ops
from guestemu.program.ops import Op, OpKind, Region

_SMALL: Final = 12
"""Pages of an encryption, and of a decryption in 4 KiB leaves."""

_MOST_BYTES: Final = 2 * MAP_GPA_CHUNK
_MOST_ANSWERS: Final = 4
_MOST_EVENTS: Final = 8


def limit_td_op(op: Op) -> Op:
    """`op` with bounded lengths."""
    arguments = op.arguments
    if op.kind in {OpKind.SET_MEMORY_ENCRYPTED, OpKind.SET_MEMORY_DECRYPTED}:
        pages, offset = arguments
        is_large = op.kind is OpKind.SET_MEMORY_DECRYPTED and op.region is Region.L
        if pages > _SMALL and not is_large:
            arguments = (pages % _SMALL + 1, offset)
    elif op.kind is OpKind.MAP_GPA:
        size, offset, private = arguments
        most = _MOST_BYTES | size & PAGE_MASK
        if size > most:
            arguments = (size % _MOST_BYTES, offset, private)
    elif op.kind is OpKind.ANSWER:
        value, count = arguments
        arguments = (EAGAIN if value & 1 else EINVAL, (count - 1) % _MOST_ANSWERS + 1)
    elif op.kind is OpKind.PENDING_EVENT:
        arguments = (arguments[0] % _MOST_EVENTS,)
    elif op.kind is OpKind.FAIL_ACCEPT:
        arguments = (arguments[0] % _SMALL,)
    elif op.kind in {OpKind.READ, OpKind.WRITE} and op.region is Region.V:
        op = msgspec.structs.replace(op, region=Region.D)
    return op if arguments == op.arguments else msgspec.structs.replace(op, arguments=arguments)


def limit_td_ops(ops: tuple[Op, ...], lawful: bool) -> tuple[Op, ...]:
    """`limit_td_op` for every op of a program that keeps to `limit_ops`."""
    return tuple(limit_td_op(op) for op in limit_ops(ops, lawful))
