# SPDX-License-Identifier: GPL-2.0-or-later
"""What a violation looks like once everything incidental is taken away.

A hypercall of the merged contract that goes wrong is named by the rule of the contract that was to
decide it (K3-c), not by what happened instead: a host that takes an unknown number for a known one
may answer and record anything. Where the call was to be accepted, the symptom says whether the
answer is wrong or the record. Everything else is the message of the check without its numbers and
without the direction of a conversion.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Sequence
from typing import Final

import msgspec
from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, U32_MASK, U64_MASK
from guestemu.abi.hypercalls import MAP_GPA_RANGE_ENCRYPTED
from guestemu.campaign.triage.lost_bits import lost_bits
from guestemu.campaign.triage.rules import ACCEPTED, rule_of
from guestemu.checks.base import OpView, Violation
from guestemu.checks.results import CONTRACT, Reference, is_open
from guestemu.events.base import kind_of
from guestemu.events.exits import AnsweredExit, HypercallExit, WrmsrExit
from guestemu.program.ops import OpKind
from guestemu.runner.testbed import HOST_FAILED

MIXED: Final = "mixed"
_BITS: Final = "hypercall: upper bits of the "
RECORD: Final = "hypercall: record"
_ALL: Final = "all"

_NUMBER: Final = re.compile(r"-?\b(?:0x[0-9a-f]+|\d+)\b")
_ARGUMENTS: Final = re.compile(r"\((?:-?0x[0-9a-f]+(?:, )?)+\)")
_PLURAL: Final = re.compile(r"\bframes differ\b")
_GPA: Final = re.compile(r"((?<=first )at )?(?<!base )\bGPA (?=0x[0-9a-f]+\b(?!, where there))")
"""A page as messages name it. Symptoms say "frame", as messages once did: findings keep their
keys."""
_FRAMES: Final = re.compile(r" \(\d+ frames\)")
_STATUS: Final = re.compile(r"\b(?:private|shared)\b")
_OFFSET: Final = re.compile(r"\+0x[0-9a-f]+")
_PLACE_IN_LOOP: Final = re.compile(r"\brunning at \S+, (?=looping in )")
_FAILURE: Final = re.compile(
    r"(\S.*?):(\d+): (\S+) (raised \w+|returned|did not return|aborted|ended \w+)"
)
_ERRNO_LIMIT: Final = 4096
_MANY: Final = 3
_HELD: Final = frozenset({"results", "record"})


class Symptom(msgspec.Struct, frozen=True):
    """`name` distinguishes defects; `effect` is the extent, which one defect may have several of.
    `register` may have lost its upper bits, which a longer range would show."""

    name: str
    effect: str = ""
    register: str = ""


def _number_class(match: re.Match[str]) -> str:
    value = int(match[0], 16 if "x" in match[0] else 10)
    for bits in (32, 64):
        error = (1 << bits) - value
        if 0 < error < _ERRNO_LIMIT:
            return f"-{error}"
    return match[0] if value < 0 or match[0] == "0" else "#"


def plain_message(violation: Violation) -> str:
    """The message without the numbers that vary; error numbers and a plain 0 stay. Of a loop its
    function stays, not the place where the budget ran out."""
    message = _GPA.sub(lambda found: "" if found[1] else "frame ", violation.message)
    message = _PLACE_IN_LOOP.sub("", _OFFSET.sub("", _FRAMES.sub("", message)))
    message = _PLURAL.sub("frame differs", _ARGUMENTS.sub("()", message))
    return _NUMBER.sub(_number_class, message)


def failure_of(message: str) -> str:
    """How and where a host failed, without the words of an exception: the method, and for an
    exception or the end of the process the line counted from the head of its function, without
    blank lines and comments."""
    match = _FAILURE.match(message)
    if match is None:
        return f"{HOST_FAILED}: {_NUMBER.sub(_number_class, message)}"
    path, line, method, how = match.groups()
    has_line = how.startswith(("raised", "aborted", "ended"))
    place = f" +{_line_in_function(path, int(line))}" if has_line else ""
    return f"{HOST_FAILED}: {method} {how}{place}"


def _line_in_function(path: str, line: int) -> int:
    lines = linecache.getlines(path)[: line - 1]
    count = 1
    for text in reversed(lines):
        words = text.split()
        if words and words[0] == "def":
            return count
        count += bool(words) and not words[0].startswith("#")
    return line


def _range_of(record: AnsweredExit, frames: int) -> tuple[int, int]:
    mask = U64_MASK if record.is_64bit else U32_MASK
    first = (record.args[0] & mask) >> PAGE_SHIFT
    return min(first, frames), min(first + (record.args[1] & mask), frames)


def _record_symptom(view: OpView, record: AnsweredExit) -> Symptom:
    """Which part of the range the record has wrong: all, its end, its start, its middle, others."""
    after = view.host.private_map()
    first, end = _range_of(record, len(after))
    expected = view.host_before.copy()
    if record.ret == 0:
        expected[first:end] = bool(record.args[2] & MAP_GPA_RANGE_ENCRYPTED)
    wrong = after ^ expected
    for start, stop in view.host.open_frames:
        wrong[start:stop] = 0
    inside = wrong[first:end]
    total, within = wrong.count(), inside.count()
    if within < total:
        part = "outside" if not within else "inside and outside"
    elif within == len(inside):
        part = _ALL
    elif inside[-1:] == bitarray("1"):
        part = "the end"
    elif inside[:1] == bitarray("1"):
        part = "the start"
    else:
        part = "the middle"
    return Symptom(RECORD, f"{part} of the range, {min(total, _MANY)}")


def of_bits(register: str) -> Symptom:
    """The symptom of a register that was cut."""
    return Symptom(f"{_BITS}{register}")


def _contract_symptom(
    view: OpView, violation: Violation, record: AnsweredExit, rule: str
) -> Symptom:
    if rule != ACCEPTED:
        return Symptom(f"hypercall: {rule}", f"{violation.check} {plain_message(violation)}")
    if violation.check == "results":
        return Symptom("hypercall: answer", plain_message(violation))
    return _record_symptom(view, record)


def symptom_of(view: OpView, violation: Violation, looks_at_bits: bool = True) -> Symptom:
    """The symptom of a violation seen after the operation of `view`. Without `looks_at_bits` none
    of a register that was cut."""
    op, exits = view.op, view.exits
    is_one_call = op.kind is OpKind.HYPERCALL and len(exits) == 1
    if is_one_call and violation.check in _HELD and view.host.contract == CONTRACT:
        record = exits[0]
        rule = rule_of(record)
        if view.injected[1]:
            rule = f"{rule}, answer ordered"
        if looks_at_bits and isinstance(record, HypercallExit) and not view.injected[1]:
            register, is_seen = lost_bits(record, view.host_before, view.host.private_map())
            if is_seen:
                return of_bits(register)
            if register:
                plain = _contract_symptom(view, violation, record, rule)
                return msgspec.structs.replace(plain, register=register)
        return _contract_symptom(view, violation, record, rule)
    if violation.check == HOST_FAILED:
        return Symptom(failure_of(violation.message))
    message = plain_message(violation)
    if violation.check.startswith("lockstep"):
        return Symptom(violation.check, message)
    if violation.check == "migration-control":
        message = _NUMBER.sub("#", message)
    return Symptom(f"{violation.check}: {_STATUS.sub('S', message)}")


def is_of_bits(name: str) -> bool:
    """Whether the name of a symptom says that a register was cut."""
    return name.startswith(_BITS)


def is_of_whole_range(symptom: Symptom) -> bool:
    """Whether a host recorded the wrong status for all of a range, and for nothing else."""
    return symptom.name == RECORD and symptom.effect.startswith(_ALL)


def situation_of(exits: Sequence[AnsweredExit]) -> str:
    """The rule that decides an operation's exits, if it is one for all of them, or `MIXED`."""
    found = {
        rule_of(record) if isinstance(record, HypercallExit) else kind_of(record)
        for record in exits
    }
    return found.pop() if len(found) == 1 else MIXED


def _leaves_ram(view: OpView, record: AnsweredExit) -> bool:
    """Whether user space decides about a call, as its range is not in RAM."""
    frames = len(view.host_before)
    reference = Reference(0, 0, frames, view.host.open_frames)
    return rule_of(record) == ACCEPTED and reference.answer(record) is None


def is_convincing(view: OpView) -> bool:
    """Whether an operation without violation shows that the host's code for it works.

    A conversion to the status that a page has, or a read of a value that is 0 anyway, is right by
    accident, what the contract leaves open is never wrong (also a refusal by user space), and
    beyond RAM the record is not visible; such a run clears no code of suspicion.
    """
    changed = view.host_before ^ view.host.private_map()
    is_same = view.ready_before == view.host.migration_ready
    is_held = view.host.contract == CONTRACT
    for record in view.exits:
        is_call = is_held and isinstance(record, HypercallExit)
        if is_call and (is_open(record) or (record.ret and _leaves_ram(view, record))):
            return False
        if isinstance(record, HypercallExit) and record.ret == 0:
            first, end = _range_of(record, len(changed) + 1)
            if first == end or end > len(changed) or not changed[first:end].all():
                return False
        elif record.ret is not None and (
            is_same if isinstance(record, WrmsrExit) else not record.ret
        ):
            return False
    return True
