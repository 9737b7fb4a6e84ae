# SPDX-License-Identifier: GPL-2.0-or-later
"""Findings: violations grouped by what is wrong, each with one minimal program.

A campaign meets the same defect thousands of times. Two steps fold these into one finding. The
*signature* of a violation (check, kind of the op, message without its numbers) is cheap and counts
repetitions. Where a signature is new, the program is minimised, and the *key* is made of check, op
kind and the shape of the minimal program, so that it is the same for every way that leads to the
defect, in every campaign. A signature met 2, 4, 8 and 16 times is minimised again, because two
defects may read alike.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

import msgspec

from guestemu.abi.x86 import Mode
from guestemu.checks.base import Violation
from guestemu.program.ops import SPECS, Instruction, Op
from guestemu.program.validity import takes_page

_NUMBER: Final = re.compile(r"-?\b(?:0x[0-9a-f]+|\d+)\b")
_ARGUMENTS: Final = re.compile(r"\((?:-?0x[0-9a-f]+(?:, )?)+\)")
_PLURAL: Final = re.compile(r"\bframes differ\b")
_ERRNO_LIMIT: Final = 4096
_KEY_DIGITS: Final = 8
_AGAIN: Final = frozenset({1, 2, 4, 8, 16})


class FindingCount(msgspec.Struct):
    """What a campaign knows of one finding besides its program; seconds since the start."""

    key: str
    check: str
    count: int
    first_seen_s: float


def _number_class(match: re.Match[str]) -> str:
    value = int(match[0], 0)
    for bits in (32, 64):
        error = (1 << bits) - value
        if 0 < error < _ERRNO_LIMIT:
            return f"-{error}"
    return match[0] if value < 0 or match[0] == "0" else "#"


def signature(violation: Violation, op: Op) -> str:
    """A violation without the numbers that vary between runs; error numbers and a plain 0 stay."""
    message = _PLURAL.sub("frame differs", _ARGUMENTS.sub("()", violation.message))
    return f"{violation.check} {op.kind.name} {_NUMBER.sub(_number_class, message)}"


def _argument_class(value: int, default: int) -> str:
    """Defaults, and sizes by their number of bytes."""
    return "d" if value == default else str(value.bit_length() + 7 >> 3)


def _op_shape(op: Op) -> str:
    spec = SPECS[op.kind]
    words = [spec.name]
    words += (
        _argument_class(value, argument.default)
        for argument, value in zip(spec.arguments, op.arguments, strict=True)
    )
    if op.mode is not Mode.LONG64:
        words.append(op.mode.name)
    if op.cpl:
        words.append("cpl")
    if op.instruction is not Instruction.VMMCALL:
        words.append(op.instruction.name)
    if takes_page(op):
        words.append(op.region.name)
    return " ".join(words)


def finding_key(violation: Violation, ops: tuple[Op, ...]) -> str:
    """The key of a violation of the minimal program `ops`: CHECK-OPKIND-HASH, a file name.

    The hash is of the program's shape: kinds of ops, which arguments differ from their defaults and
    how many bytes long they are, mode, privilege, region; not of values and page numbers.
    """
    shape = "; ".join(map(_op_shape, ops))
    digest = hashlib.sha256(shape.encode()).hexdigest()[:_KEY_DIGITS]
    return f"{violation.check}-{SPECS[ops[violation.op].kind].name}-{digest}"


class FindingBook:
    """Counts violations by signature and signatures by key."""

    def __init__(self) -> None:
        self.findings: dict[str, FindingCount] = {}
        self._met: dict[str, int] = {}
        self._keys: dict[str, str] = {}

    def meet(self, sign: str) -> bool:
        """Counts a violation with signature `sign`; whether its program should be minimised."""
        met = self._met[sign] = self._met.get(sign, 0) + 1
        key = self._keys.get(sign)
        if met in _AGAIN or key is None:
            return True
        self.findings[key].count += 1
        return False

    def settle(self, sign: str, key: str, check: str, seconds: float) -> bool:
        """Files one violation with signature `sign` under `key`; whether the key is new."""
        self._keys.setdefault(sign, key)
        found = self.findings.get(key)
        if found is None:
            self.findings[key] = FindingCount(key, check, 1, round(seconds, 3))
            return True
        found.count += 1
        return False
