# SPDX-License-Identifier: GPL-2.0-or-later
"""One op as a line of text.

    set_memory_decrypted D[3] pages=2
    hypercall nr=12 a0=D[0]+0x0 a1=1 a2=0x10 a3=0 mode=compat32 cpl=3 insn=vmcall vcpu=1
    wrmsr msr=0x4b564d08 value=1

The verb, then the page operand of the kinds that have one, then `name=value` in any order. A value
left out has the default of `OpSpec`. A hypercall's page operand is part of `a0`; without one `a0`
is the absolute value of RBX. The writer gives every register of a register-level op, otherwise the
first argument and those that differ from their default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Final, TypeVar

from guestemu.abi.x86 import Mode
from guestemu.program.lexer import (
    Place,
    Word,
    format_decimal,
    format_hex,
    nearest,
    parse_number,
    shown,
)
from guestemu.program.ops import (
    NAMES,
    SPECS,
    Argument,
    Instruction,
    Op,
    OpKind,
    Region,
    canonical_op,
)
from guestemu.program.program import Header
from guestemu.program.validity import problem_of

_PAGE: Final = re.compile(r"(?P<region>[A-Z])\[(?P<page>[0-9a-fA-Fx]{1,20})\](?:\+(?P<offset>.+))?")
_DECIMAL: Final = frozenset(
    {
        Argument.HYPERCALL_NUMBER,
        Argument.COUNT,
        Argument.SIZE,
        Argument.SLOT,
        Argument.FLAG,
        Argument.SMALL,
    }
)
_MODES: Final = {mode.text: mode for mode in Mode}
_INSTRUCTIONS: Final = {instruction.name.lower(): instruction for instruction in Instruction}
_PAGE_ARGUMENT: Final = "a0"

_T = TypeVar("_T")


def _parse_page(text: str, place: Place) -> tuple[Region, int, str | None] | None:
    """Region, page index and the text after `+` of `REGION[PAGE]+OFFSET`; None if it is none."""
    match = _PAGE.fullmatch(text)
    if match is None:
        return None
    if match["region"] not in Region.__members__:
        raise place.error(
            f"no region {match['region']}; regions are {', '.join(Region.__members__)}"
        )
    page = parse_number(match["page"], place, "page index")
    return Region[match["region"]], page, match["offset"]


def _fields_of(words: list[Word], place: Place, known: frozenset[str]) -> dict[str, str]:
    """The `name=value` words by name."""
    fields: dict[str, str] = {}
    for word in words:
        name, equals, value = word.text.partition("=")
        if word.quoted or not equals:
            raise place.error(f"{shown(word.text)} is not name=value")
        if name not in known:
            raise place.error(f"this op has no {shown(name)}; {nearest(name, known)}")
        if name in fields:
            raise place.error(f"{name} is given twice; keep one")
        fields[name] = value
    return fields


def _choose(table: Mapping[str, _T], text: str, place: Place, what: str) -> _T:
    if text not in table:
        raise place.error(f"{what} {shown(text)}; use {', '.join(table)}")
    return table[text]


@cache
def _names_of(kind: OpKind) -> frozenset[str]:
    """Every name that `name=value` may have for `kind`."""
    spec = SPECS[kind]
    names = {argument.name for argument in spec.arguments} | {"vcpu"}
    if spec.has_mode:
        names |= {"mode", "cpl"}
    if kind is OpKind.HYPERCALL:
        names.add("insn")
    return frozenset(names)


def parse_op(words: list[Word], place: Place, header: Header) -> Op:
    """The op that a line's words say, valid under `header`. Raises `InputError`."""
    verb, rest = words[0], words[1:]
    if verb.quoted or verb.text not in NAMES:
        raise place.error(f"no op {shown(verb.text)}; {nearest(verb.text, NAMES)}")
    kind = NAMES[verb.text]
    spec = SPECS[kind]
    region, page, has_page = Region.D, 0, False
    if spec.has_page and kind is not OpKind.HYPERCALL:
        operand = _parse_page(rest[0].text, place) if rest and not rest[0].quoted else None
        if operand is None or operand[2] is not None:
            raise place.error(f"{spec.name} needs a page; write {spec.name} D[3] ...")
        region, page, _ = operand
        rest = rest[1:]
    fields = _fields_of(rest, place, _names_of(kind))
    if kind is OpKind.HYPERCALL:
        operand = _parse_page(fields.get(_PAGE_ARGUMENT, ""), place)
        if operand is not None:
            region, page, offset = operand
            has_page = True
            fields[_PAGE_ARGUMENT] = offset or "0"
    arguments = tuple(
        parse_number(fields[argument.name], place, argument.name)
        if argument.name in fields
        else argument.default
        for argument in spec.arguments
    )
    op = Op(
        kind=kind,
        arguments=arguments,
        region=region,
        page=page,
        has_page=has_page,
        vcpu=parse_number(fields.get("vcpu", "0"), place, "vcpu"),
        mode=_choose(_MODES, fields.get("mode", Mode.LONG64.text), place, "mode"),
        cpl=parse_number(fields.get("cpl", "0"), place, "cpl"),
        instruction=_choose(_INSTRUCTIONS, fields.get("insn", "vmmcall"), place, "insn"),
    )
    problem = problem_of(op, header)
    if problem is not None:
        raise place.error(problem)
    return op


def format_op(op: Op) -> str:
    """The line of `op`; `parse_op` reads it back to `canonical_op(op)`."""
    op = canonical_op(op)
    spec = SPECS[op.kind]
    page = f"{op.region.name}[{op.page}]"
    words = [spec.name]
    if spec.has_page and op.kind is not OpKind.HYPERCALL:
        words.append(page)
    for position, (argument, value) in enumerate(zip(spec.arguments, op.arguments, strict=True)):
        if position and not spec.has_mode and value == argument.default:
            continue
        text = (format_decimal if argument.sort in _DECIMAL else format_hex)(value)
        if op.has_page and argument.name == _PAGE_ARGUMENT:
            text = f"{page}+{value:#x}"
        words.append(f"{argument.name}={text}")
    if op.mode is not Mode.LONG64:
        words.append(f"mode={op.mode.text}")
    if op.cpl:
        words.append(f"cpl={op.cpl}")
    if op.instruction is not Instruction.VMMCALL:
        words.append(f"insn={op.instruction.name.lower()}")
    if op.vcpu:
        words.append(f"vcpu={op.vcpu}")
    return " ".join(words)
