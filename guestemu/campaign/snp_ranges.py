# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps programs of the targets `psc` and `hostile-host` short to run and few of a kind.

PVALIDATE is an instruction for each 4 KiB page, also of a 2 MiB entry, because KVM up to 7.3 backs
guests with 4 KiB: a conversion of region L takes as long as five hundred small ones. A whole 2 MiB
page stays possible, for the entries of that size. RMPADJUST and AP creation have 64-bit arguments
of which a few bits have a meaning: each further length of one is new to a campaign's counters, and
thousands of such programs would be mutated in place of others.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PMD_SIZE
from guestemu.abi.ghcb import AP_DESTROY, RMPADJUST_VMSA
from guestemu.campaign.ranges import limit_ops
from guestemu.program.ops import Op, OpKind, Region

_SMALL: Final = 12
"""Pages of a conversion; the victim of a lie is the eighth behind the first."""

_PMD_PAGES: Final = PMD_SIZE >> PAGE_SHIFT
_SETS: Final = frozenset({OpKind.SET_MEMORY_ENCRYPTED, OpKind.SET_MEMORY_DECRYPTED})


_ATTRIBUTES: Final = RMPADJUST_VMSA << 1
_REQUESTS: Final = AP_DESTROY + 2
_VCPUS: Final = 5
"""The known requests, the vCPUs of KVM's VM (machine/ap_creation.py), and one more of each."""


def limit_vmsa_op(op: Op) -> Op:
    """`op` without the bits of RMPADJUST's attributes, the requests and the vCPUs that are all
    alike."""
    arguments = op.arguments
    if op.kind is OpKind.RMPADJUST:
        arguments = (arguments[0] % _ATTRIBUTES,)
    elif op.kind is OpKind.AP_CREATION:
        request, apic, features = arguments
        arguments = (request % _REQUESTS, apic % _VCPUS, features)
    return op if arguments == op.arguments else msgspec.structs.replace(op, arguments=arguments)


def limit_psc_ops(ops: tuple[Op, ...], _lawful: bool) -> tuple[Op, ...]:
    """`limit_vmsa_op` for every op."""
    return tuple(map(limit_vmsa_op, ops))


def _limit(op: Op) -> Op:
    if op.kind not in _SETS:
        return limit_vmsa_op(op)
    pages, offset = op.arguments
    is_whole = op.region is Region.L and pages == _PMD_PAGES and not op.page % _PMD_PAGES
    if pages <= _SMALL or is_whole:
        return op
    return msgspec.structs.replace(op, arguments=(pages % _SMALL + 1, offset))


def limit_snp_ops(ops: tuple[Op, ...], lawful: bool) -> tuple[Op, ...]:
    """The ops of a program that keeps to `limit_ops`, with short conversions."""
    return tuple(_limit(op) for op in limit_ops(ops, lawful))
