# SPDX-License-Identifier: GPL-2.0-or-later
"""Recognises a host that takes a register for its lower bits.

A truncation has no line that only wrong calls execute, and what it leads to is anything: another
range, an empty one, an accepted number. But answer and record are those of the same call with fewer
bits, which is computed here from the contract (K3-c) and compared.
"""

from __future__ import annotations

from typing import Final

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, U32_MASK, U64_MASK
from guestemu.abi.hypercalls import (
    KVM_EINVAL,
    KVM_ENOSYS,
    KVM_EPERM,
    MAP_GPA_RANGE_ENCRYPTED,
)
from guestemu.campaign.triage.rules import ACCEPTED, rule_of
from guestemu.checks.results import OWN_HYPERCALLS
from guestemu.events.exits import HypercallExit

_WRAP: Final = "wrap"
_ERRORS: Final = {"privilege": KVM_EPERM, "number": KVM_ENOSYS}
_COUNT: Final = "page count"
COUNT_WIDTHS: Final = range(8, 53)
"""Bits to which a page count may be cut."""

ADDRESS_WIDTHS: Final = range(31, 52)
"""The same of an address."""

_REGISTERS: Final = (
    ("number", (8,)),
    ("address", tuple(ADDRESS_WIDTHS)),
    (_COUNT, tuple(COUNT_WIDTHS)),
    ("attributes", (8,)),
)
"""In the order of RAX, RBX, RCX and RDX, with the widths that are worth trying: numbers that KVM
knows and the attribute that counts lie in the lower eight bits."""


def _follows(
    record: HypercallExit, before: bitarray, ret: int, after: bitarray, any_record: bool
) -> tuple[bool, bool]:
    """Whether the contract gives this answer and this record for `record`, and whether that is more
    than what a host does that ignores the call. With `any_record` the answer decides alone where
    the call is to be accepted: its record may be wrong for another reason."""
    if record.nr in OWN_HYPERCALLS and not record.cpl:
        return after == before and ret != -KVM_ENOSYS & U64_MASK, True
    rule = rule_of(record)
    mask = U64_MASK if record.is_64bit else U32_MASK
    if rule != ACCEPTED:
        is_error = ret == -_ERRORS.get(rule, KVM_EINVAL) & mask
        is_dropped = rule == "empty range" and ret == 0
        return after == before and (is_error or is_dropped), is_error
    if any_record:
        return ret == 0, after != before
    first = (record.args[0] & mask) >> PAGE_SHIFT
    end = min(first + (record.args[1] & mask), len(before))
    expected = before.copy()
    if first < end:
        expected[first:end] = bool(record.args[2] & MAP_GPA_RANGE_ENCRYPTED)
    return ret == 0 and after == expected, after != before


def _goes_to_the_end(words: list[int], ret: int | None, before: bitarray, after: bitarray) -> bool:
    """Whether a range that wraps was taken for one that ends behind RAM, as without a test."""
    expected = before.copy()
    expected[words[1] >> PAGE_SHIFT :] = bool(words[3] & MAP_GPA_RANGE_ENCRYPTED)
    return ret == 0 and after == expected


def lost_bits(record: HypercallExit, before: bitarray, after: bitarray) -> tuple[str, bool]:
    """The register whose upper bits the host did not look at, if that explains its answer and its
    record of a call (else empty), and whether a host that ignores the call would do another thing.
    Where it would not, or a missing test of a range that wraps also explains it, all registers
    that explain it, separated by commas.
    """
    ret = record.ret
    found: list[str] = []
    mask = U64_MASK if record.is_64bit else U32_MASK
    words = [value & mask for value in (record.nr, *record.args)]
    is_unbounded = rule_of(record) == _WRAP and _goes_to_the_end(words, ret, before, after)
    for position, (register, widths) in enumerate(_REGISTERS):
        tried: set[int] = set()
        for width in widths:
            few = words[position] & (1 << width) - 1
            same = min(few, len(before)) if register == _COUNT else few
            if ret is None or few == words[position] or same in tried:
                continue
            tried.add(same)
            words_cut = [*words]
            words_cut[position] = few
            nr, a0, a1, a2, a3 = words_cut
            other = HypercallExit(nr, (a0, a1, a2, a3), ret, 0, record.cpl, record.is_64bit)
            explains, is_seen = _follows(other, before, ret, after, register == "number")
            if explains and is_seen and not (is_unbounded and position):
                return register, True
            if explains and register not in found:
                found.append(register)
    return ",".join(found), False
