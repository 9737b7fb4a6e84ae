# SPDX-License-Identifier: GPL-2.0-or-later
"""The binary form of a program's ops: what a fuzzer's bytes mean.

One op is a record of 48 bytes, little endian, so that a byte-level mutation stays inside one op
and cutting at record borders keeps the others intact:

| bytes | field |
| --- | --- |
| 0 | kind |
| 1 | bits 1:0 mode, 3:2 CPL, 4 VMCALL, 7:5 selector |
| 2 | bits 1:0 region, bit 7 "has a page operand" (HYPERCALL only) |
| 3 | vCPU |
| 4–7 | page index |
| 8–47 | five arguments of 8 bytes |

Decoding is total. The selector decides how the rest is read: 7 takes the arguments as they stand
(cut to the width of their sort); otherwise the low byte of each argument chooses from its palette
(`values.palette_of`), where usual values dominate and every edge appears. 4, 5 and 6 also put the
vCPU into 64-bit mode at CPL 0, because most random modes and CPLs only reach the first test of the
host (K3-c). A page index inside its region stands for itself, anything else chooses a hot page.
A kind that the target does not allow becomes one that it does. A tail shorter than a record is
ignored. Encoding prefers palettes and falls back to selector 7, and what was decoded from anything
encodes to bytes that decode to the same ops.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cache, lru_cache
from operator import and_, getitem
from typing import Final, NamedTuple

from guestemu.abi.x86 import Mode
from guestemu.program.ops import (
    ARGUMENT_MASKS,
    MAX_ARGUMENTS,
    REGIONS,
    SPECS,
    Instruction,
    Op,
    OpKind,
    Region,
    canonical_op,
)
from guestemu.program.program import Header
from guestemu.program.validity import GIANT_MEMORY, regions_of
from guestemu.program.values import Extra, page_palette, palette_of, with_extra

RECORD: Final = struct.Struct("<BBBBI5Q")
RECORD_SIZE: Final = RECORD.size
ALL_KINDS: Final = frozenset(OpKind)

_CHOICES: Final = struct.Struct("<BBBBI" + "B7x" * MAX_ARGUMENTS)
_ARGUMENTS: Final = struct.Struct(f"<{MAX_ARGUMENTS}Q")
_ARGUMENTS_OFFSET: Final = RECORD_SIZE - _ARGUMENTS.size
_PAGE_FLAG: Final = 0x80
_SELECT_PLAIN: Final = 4
_SELECT_RAW: Final = 7
_SELECTOR_SHIFT: Final = 5
_NO_EXTRA: Final[Extra] = {}


class Posture(NamedTuple):
    """What byte 1 of a record says."""

    mode: Mode
    cpl: int
    instruction: Instruction
    raw: bool


class PageOperand(NamedTuple):
    """What byte 2 of a record says about the page operand."""

    region: Region
    pages: int
    palette: tuple[int, ...]
    flag: bool


class RecordPlan(NamedTuple):
    """How to read the records of one kind."""

    kind: OpKind
    palettes: tuple[tuple[int, ...], ...]
    masks: tuple[int, ...]
    postures: tuple[Posture, ...]
    has_page: bool
    is_call: bool


def _posture(byte: int, has_mode: bool, is_call: bool) -> Posture:
    selector = byte >> _SELECTOR_SHIFT
    raw = selector == _SELECT_RAW
    if not has_mode or _SELECT_PLAIN <= selector < _SELECT_RAW:
        return Posture(Mode.LONG64, 0, Instruction.VMMCALL, raw)
    mode = Mode(byte & 3)
    cpl = 0 if mode is Mode.REAL16 else byte >> 2 & 3
    instruction = Instruction(byte >> 4 & 1) if is_call else Instruction.VMMCALL
    return Posture(mode, cpl, instruction, raw)


@cache
def _plan_of(kind: OpKind) -> RecordPlan:
    spec = SPECS[kind]
    is_call = kind is OpKind.HYPERCALL
    return RecordPlan(
        kind=kind,
        palettes=tuple(palette_of(kind, i) for i in range(len(spec.arguments))),
        masks=tuple(ARGUMENT_MASKS[argument.sort] for argument in spec.arguments),
        postures=tuple(_posture(byte, spec.has_mode, is_call) for byte in range(256)),
        has_page=spec.has_page,
        is_call=is_call,
    )


def _with_extra(plan: RecordPlan, extra: Extra) -> RecordPlan:
    if not extra:
        return plan
    palettes = zip(SPECS[plan.kind].arguments, plan.palettes, strict=True)
    return plan._replace(
        palettes=tuple(with_extra(palette, extra.get(arg.sort, ())) for arg, palette in palettes)
    )


class OpDecoder:
    """Turns bytes into ops for one target; building it costs more than a run, keep it.

    `vcpus` and `giant` (region G exists) come from the header, `kinds` are the ones the target
    allows, `extra` are values that the palettes of their sorts hold besides. `plans` and `places`
    say what each value of the kind and region byte means. Raises ValueError when `kinds` is empty.
    """

    __slots__ = ("extra", "places", "plans", "vcpus")

    def __init__(
        self,
        vcpus: int,
        giant: bool,
        kinds: frozenset[OpKind] = ALL_KINDS,
        extra: Extra = _NO_EXTRA,
    ) -> None:
        if not kinds:
            raise ValueError("a target needs at least one kind of op")
        regions = regions_of(GIANT_MEMORY if giant else 0)
        allowed = sorted(kinds)
        plans = {kind: _with_extra(_plan_of(kind), extra) for kind in allowed}
        self.plans = tuple(
            plans[OpKind(byte) if byte in kinds else allowed[byte % len(allowed)]]
            for byte in range(256)
        )
        self.extra = extra
        self.places = tuple(
            PageOperand(
                region, REGIONS[region].pages, page_palette(region), bool(byte & _PAGE_FLAG)
            )
            for byte in range(256)
            for region in (regions[(byte & 3) % len(regions)],)
        )
        self.vcpus = vcpus

    def decode(self, data: bytes | bytearray | memoryview) -> tuple[Op, ...]:
        """The ops of `data`: one per whole record, never an error."""
        ops: list[Op] = []
        plans, places, vcpus = self.plans, self.places, self.vcpus
        offset = _ARGUMENTS_OFFSET
        end = len(data) // RECORD_SIZE * RECORD_SIZE
        for kind_byte, posture_byte, region_byte, vcpu, page, *choices in _CHOICES.iter_unpack(
            data[:end]
        ):
            kind, palettes, masks, postures, has_page, is_call = plans[kind_byte]
            mode, cpl, instruction, raw = postures[posture_byte]
            if raw:
                arguments = tuple(map(and_, masks, _ARGUMENTS.unpack_from(data, offset)))
            else:
                arguments = tuple(map(getitem, palettes, choices))
            offset += RECORD_SIZE
            region, pages, palette, flag = places[region_byte]
            if not has_page or (is_call and not flag):
                region, page, flag = Region.D, 0, False
            elif page >= pages:
                page = palette[page & 0xFF]
            ops.append(
                Op(
                    kind,
                    arguments,
                    region,
                    page,
                    flag and is_call,
                    vcpu % vcpus,
                    mode,
                    cpl,
                    instruction,
                )
            )
        return tuple(ops)


_decoder = lru_cache(maxsize=64)(OpDecoder)


def decoder_for(header: Header, kinds: frozenset[OpKind] = ALL_KINDS) -> OpDecoder:
    """The (cached) decoder for programs with `header` on a target that allows `kinds`."""
    return _decoder(header.vcpus, header.memory >= GIANT_MEMORY, kinds)


def decode_ops(
    data: bytes | bytearray | memoryview,
    header: Header,
    kinds: frozenset[OpKind] = ALL_KINDS,
) -> tuple[Op, ...]:
    """The ops that `data` means under `header`. Total: any bytes decode, to canonical ops."""
    return decoder_for(header, kinds).decode(data)


@cache
def _choices_of(kind: OpKind) -> tuple[dict[int, int], ...]:
    """Per argument of `kind`, the byte that chooses each value of its palette."""
    return tuple(
        {value: byte for byte, value in reversed(list(enumerate(palette_of(kind, position))))}
        for position in range(len(SPECS[kind].arguments))
    )


def encode_op(op: Op) -> bytes:
    """The record of `op`, which keeps to the rules of `guestemu.program.validity`."""
    op = canonical_op(op)
    chosen = tuple(
        choices.get(value)
        for choices, value in zip(_choices_of(op.kind), op.arguments, strict=True)
    )
    indices = tuple(index for index in chosen if index is not None)
    raw = len(indices) < len(chosen)
    arguments = op.arguments if raw else indices
    posture = op.mode | op.cpl << 2 | op.instruction << 4
    if raw:
        posture |= _SELECT_RAW << _SELECTOR_SHIFT
    return RECORD.pack(
        op.kind,
        posture,
        op.region | (_PAGE_FLAG if op.has_page else 0),
        op.vcpu,
        op.page,
        *arguments,
        *(0,) * (MAX_ARGUMENTS - len(arguments)),
    )


def encode_ops(ops: Iterable[Op]) -> bytes:
    """The records of `ops`, one after the other."""
    return b"".join(map(encode_op, ops))
