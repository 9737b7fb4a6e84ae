# SPDX-License-Identifier: GPL-2.0-or-later
"""Random programs: what a guest kernel really does, mixed with edges.

Half of a program is *flows*, short sequences that the modelled kernels make (a buffer is converted,
used, converted back and freed; a page flips to and fro; ranges overlap; an injected failure hits a
conversion), because defects of this field need two or three related ops. The other half is single
ops whose arguments come from `values`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, PMD_SIZE
from guestemu.abi.ghcb import AP_DESTROY
from guestemu.abi.hypercalls import (
    KVM_EOPNOTSUPP,
    KVM_HC_MAP_GPA_RANGE,
    MAP_GPA_RANGE_DECRYPTED,
    MAP_GPA_RANGE_ENCRYPTED,
)
from guestemu.abi.msrs import KVM_MIGRATION_READY, MSR_KVM_MIGRATION_CONTROL
from guestemu.abi.x86 import Mode
from guestemu.program.binary import ALL_KINDS
from guestemu.program.ops import (
    ARGUMENT_MASKS,
    REGIONS,
    SPECS,
    Argument,
    Instruction,
    Op,
    OpKind,
    Region,
    canonical_op,
)
from guestemu.program.program import Header
from guestemu.program.validity import regions_of
from guestemu.program.values import (
    BOUNDARIES,
    CALL_COUNTS,
    HOT_PAGES,
    LATER_EDGES,
    USUAL,
    palette_of,
)

_PMD_PAGES: Final = PMD_SIZE // PAGE_SIZE
_U64_BITS: Final = 64
_FINAL: Final = frozenset({OpKind.STOP_CONVERSION, OpKind.CPU_OFFLINE})
"""Kinds after which little happens; drawn less often."""

_DEFAULT_LENGTH: Final = 12
_FLOW_SHARE: Final = 0.5
_INIT_SHARE: Final = 0.75
_MODES: Final = (Mode.LONG64, Mode.LONG64, Mode.LONG64, *Mode)
_INSTRUCTIONS: Final = (Instruction.VMMCALL, Instruction.VMMCALL, *Instruction)

Flow = Callable[[random.Random, Header], list[Op]]


@lru_cache(64)
def _regions(memory: int) -> tuple[Region, ...]:
    return (Region.D, Region.D, *regions_of(memory))


@lru_cache(64)
def _in_order(kinds: frozenset[OpKind]) -> tuple[OpKind, ...]:
    return tuple(sorted(kinds))


def _draw_region(rng: random.Random, header: Header) -> Region:
    return rng.choice(_regions(header.memory))


def draw_page(rng: random.Random, region: Region) -> int:
    """A page index of `region`, mostly one of its hot pages."""
    if rng.random() < 0.8:
        return rng.choice(HOT_PAGES[region])
    return rng.randrange(REGIONS[region].pages)


def draw_argument(rng: random.Random, kind: OpKind, position: int) -> int:
    """A value for argument `position` of `kind`: usual (60 %), an edge (30 %) or any bits.

    The kernel's own functions loop over their pages, so they get the edges that take milliseconds
    (A20) only now and then, and no random bits.
    """
    sort = SPECS[kind].arguments[position].sort
    dice = rng.random()
    if dice < 0.6:
        return rng.choice(palette_of(kind, position))
    if sort is Argument.COUNT and not SPECS[kind].has_mode:
        return rng.choice(BOUNDARIES[sort] if dice < 0.63 else CALL_COUNTS)
    if dice < 0.9:
        return rng.choice(BOUNDARIES[sort])
    return rng.getrandbits(rng.randint(1, _U64_BITS)) & ARGUMENT_MASKS[sort]


def generate_op(rng: random.Random, header: Header, kinds: frozenset[OpKind] = ALL_KINDS) -> Op:
    """One op of one of `kinds`, valid under `header`."""
    kind = rng.choice(_in_order(kinds))
    if kind in _FINAL and rng.random() < 0.8:
        kind = rng.choice(_in_order(kinds))
    region = _draw_region(rng, header)
    mode = rng.choice(_MODES)
    plain_cpl = mode is Mode.REAL16 or rng.random() < 0.75
    return canonical_op(
        Op(
            kind=kind,
            arguments=tuple(
                draw_argument(rng, kind, position) for position in range(len(SPECS[kind].arguments))
            ),
            region=region,
            page=draw_page(rng, region),
            has_page=rng.random() < 0.7,
            vcpu=rng.randrange(header.vcpus),
            mode=mode,
            cpl=0 if plain_cpl else rng.randint(1, 3),
            instruction=rng.choice(_INSTRUCTIONS),
        )
    )


def _convert(region: Region, page: int, pages: int, private: bool) -> Op:
    kind = OpKind.SET_MEMORY_ENCRYPTED if private else OpKind.SET_MEMORY_DECRYPTED
    return canonical_op(Op(kind, (pages,), region, page))


def _touch(kind: OpKind, region: Region, page: int) -> Op:
    return canonical_op(Op(kind, (), region, page))


def _draw_range(rng: random.Random, header: Header) -> tuple[Region, int, int]:
    """A region and a page range inside it, of a length that means something."""
    region = _draw_region(rng, header)
    page = draw_page(rng, region)
    room = REGIONS[region].pages - page
    pages = rng.choice((1, 1, 2, 3, *CALL_COUNTS))
    return region, page, min(max(pages, 1), room)


def _shared_buffer(rng: random.Random, header: Header) -> list[Op]:
    """A driver's buffer: shared, used, private again, used again."""
    region, page, pages = _draw_range(rng, header)
    inside = page + rng.randrange(pages)
    return [
        _convert(region, page, pages, private=False),
        _touch(OpKind.WRITE, region, inside),
        _touch(OpKind.READ, region, inside),
        _convert(region, page, pages, private=True),
        _touch(OpKind.WRITE, region, inside),
        _touch(OpKind.READ, region, inside),
    ]


def _flip_flop(rng: random.Random, header: Header) -> list[Op]:
    """One range to and fro, as kvmclock and test modules do."""
    region, page, pages = _draw_range(rng, header)
    return [
        _convert(region, page, pages, private=bool(turn & 1)) for turn in range(rng.randint(2, 6))
    ]


def _overlap(rng: random.Random, header: Header) -> list[Op]:
    """A range shared, then a part of it private: what interval lists split and merge on."""
    region, page, pages = _draw_range(rng, header)
    start = page + rng.randrange(pages)
    part = rng.randint(1, page + pages - start)
    ops = [
        _convert(region, page, pages, private=False),
        _convert(region, start, part, private=True),
    ]
    return [*ops, _convert(region, page, pages, private=rng.random() < 0.5)]


def _split_leaf(rng: random.Random, header: Header) -> list[Op]:
    """Part of a 2 MiB leaf, at times while page-table allocations fail (A19)."""
    page = rng.choice((0, 1, _PMD_PAGES - 1, _PMD_PAGES, _PMD_PAGES + 1))
    pages = rng.choice((1, _PMD_PAGES - 1, _PMD_PAGES, _PMD_PAGES + 1))
    failure = canonical_op(Op(OpKind.FAIL_SPLIT, (rng.randrange(3),)))
    ops = [failure] if rng.random() < 0.5 else []
    ops.append(_convert(Region.L, page, pages, private=False))
    return [*ops, _convert(Region.L, page, pages, private=True)]


def _alias(rng: random.Random, header: Header) -> list[Op]:
    """A page written through its vmalloc alias around a conversion of the direct map (A25)."""
    page = rng.randrange(REGIONS[Region.V].pages)
    return [
        _touch(OpKind.WRITE, Region.V, page),
        _convert(rng.choice((Region.D, Region.V)), page, 1, private=False),
        _touch(OpKind.WRITE, Region.V, page),
        _touch(OpKind.READ, Region.D, page),
    ]


def _hole(rng: random.Random, header: Header) -> list[Op]:
    """A hole, or an entry not present, inside a range that is then converted (A26c)."""
    page = draw_page(rng, Region.D)
    pages = rng.randint(1, 4)
    kind = rng.choice((OpKind.UNMAP, OpKind.CLEAR_PRESENT))
    hole = min(page + rng.randrange(pages), REGIONS[Region.D].pages - 1)
    return [_touch(kind, Region.D, hole), _convert(Region.D, page, pages, private=False)]


def _refused(rng: random.Random, header: Header) -> list[Op]:
    """User space refuses the notification of a conversion (A17: the guest does not notice)."""
    region, page, pages = _draw_range(rng, header)
    value = rng.choice((*BOUNDARIES[Argument.U64], -KVM_EOPNOTSUPP & ((1 << 64) - 1)))
    return [
        canonical_op(Op(OpKind.ANSWER, (value, rng.randint(1, 3)))),
        _convert(region, page, pages, private=rng.random() < 0.5),
    ]


def _dma(rng: random.Random, header: Header) -> list[Op]:
    """Coherent allocations and frees of a driver."""
    slots = rng.sample(range(8), rng.randint(1, 3))
    ops = [
        Op(
            OpKind.DMA_ALLOC,
            (slot, draw_argument(rng, OpKind.DMA_ALLOC, 1), rng.randrange(2)),
        )
        for slot in slots
    ]
    rng.shuffle(slots)
    return ops + [Op(OpKind.DMA_FREE, (slot,)) for slot in slots]


def _raw_pair(rng: random.Random, header: Header) -> list[Op]:
    """The notifications of one conversion there and back, made by hand."""
    region, page, pages = _draw_range(rng, header)
    return [
        Op(
            OpKind.HYPERCALL,
            (KVM_HC_MAP_GPA_RANGE, 0, pages, attributes, 0),
            region,
            page,
            has_page=True,
        )
        for attributes in (MAP_GPA_RANGE_DECRYPTED, MAP_GPA_RANGE_ENCRYPTED)
    ]


def _migration_control(rng: random.Random, header: Header) -> list[Op]:
    """READY given and taken back, at times with the exit refused."""
    msr = MSR_KVM_MIGRATION_CONTROL
    ops = [Op(OpKind.FAIL_MSR, (1,))] if rng.random() < 0.3 else []
    ops += [Op(OpKind.WRMSR, (msr, KVM_MIGRATION_READY)), Op(OpKind.RDMSR, (msr,))]
    return [*ops, Op(OpKind.WRMSR, (msr, 0))]


def _attack(rng: random.Random, region: Region, page: int) -> list[Op]:
    """An attack on a page, at an instant that is drawn by the events around it, mostly: few of the
    instructions of a conversion lie between two of them."""
    kind = OpKind.HYPERVISOR_PAGE
    attack, after = (draw_argument(rng, kind, place) for place in (0, 1))
    events = rng.choice(USUAL[Argument.SMALL])
    wait = [canonical_op(Op(OpKind.HYPERVISOR_WAIT, (events,)))] if events else []
    return [*wait, canonical_op(Op(kind, (attack, after), region, page))]


def attacked_conversion(rng: random.Random, header: Header) -> list[Op]:
    """A buffer that the hypervisor attacks at some instruction of one of its conversions."""
    region = rng.choice((Region.D, Region.L))
    page, pages = draw_page(rng, region), rng.choice((1, 1, 2, 3))
    pages = min(pages, REGIONS[region].pages - page)
    ops = [
        _convert(region, page, pages, private=False),
        _convert(region, page, pages, private=True),
        _touch(OpKind.READ, region, page),
    ]
    place = rng.randrange(3)
    ops[place:place] = _attack(rng, region, page + rng.randrange(pages))
    return ops


def vmsa_page(rng: random.Random, header: Header) -> list[Op]:
    """A page that a vCPU runs from, and that is then converted, asked for, attacked or freed."""
    region = rng.choice((Region.D, Region.L))
    page = draw_page(rng, region)
    creation = (draw_argument(rng, OpKind.AP_CREATION, 0), rng.randrange(1, 4))
    follow = [
        [_touch(OpKind.PSC, region, page)],
        [_convert(region, page, 1, private=False)],
        [*_attack(rng, region, page), _touch(OpKind.READ, region, page)],
        [
            canonical_op(Op(OpKind.AP_CREATION, (AP_DESTROY, creation[1]), region, page)),
            canonical_op(Op(OpKind.RMPADJUST, (1,), region, page)),
        ],
    ]
    return [
        _touch(OpKind.RMPADJUST, region, page),
        canonical_op(Op(OpKind.AP_CREATION, creation, region, page)),
        *rng.choice(follow),
    ]


def page_states(rng: random.Random, header: Header) -> list[Op]:
    """A request whose first entry is not like the others, of a 2 MiB page or done in part; or one
    whose buffer lies, or ends by its length, at an edge."""
    region = rng.choice((Region.D, Region.L))
    page = rng.choice((0, _PMD_PAGES, 0, draw_page(rng, region)))
    rest = rng.choice(USUAL[Argument.PSC_ENTRY])
    entries = rng.randint(1, 5)
    if rng.random() < 0.5:
        first = rng.choice(BOUNDARIES[Argument.PSC_ENTRY])
        return [canonical_op(Op(OpKind.PSC_MIXED, (entries + 1, first, rest), region, page))]
    scratch, length = (rng.choice((0, *LATER_EDGES[OpKind.PSC, place])) for place in (3, 4))
    return [canonical_op(Op(OpKind.PSC, (entries, rest, 0, scratch, length), region, page))]


FLOWS: Final[tuple[Flow, ...]] = (
    _shared_buffer,
    _flip_flop,
    _overlap,
    _split_leaf,
    _alias,
    _hole,
    _refused,
    _dma,
    _raw_pair,
    _migration_control,
)
"""The sequences a program is made of besides single ops."""

_HOSTILE: Final[Mapping[OpKind, Flow]] = {
    OpKind.HYPERVISOR_PAGE: attacked_conversion,
    OpKind.PSC_MIXED: page_states,
    OpKind.AP_CREATION: vmsa_page,
}
HOSTILE_FLOWS: Final = tuple(_HOSTILE.values())
"""Those of programs with a hostile side under SNP or TDX."""


def hostile_flows(kinds: frozenset[OpKind]) -> tuple[Flow, ...]:
    """Those of them that `kinds` have the ops for; none for all kinds, which are no target.
    The first is what mutators draw most."""
    if kinds == ALL_KINDS:
        return ()
    return tuple(flow for kind, flow in _HOSTILE.items() if kind in kinds)


def flows_of(kinds: frozenset[OpKind]) -> tuple[Flow, ...]:
    """The flows of programs of `kinds`; an op of another kind in one is left out."""
    return FLOWS + hostile_flows(kinds)


def generate_ops(
    rng: random.Random,
    header: Header,
    kinds: frozenset[OpKind] = ALL_KINDS,
    length: int = _DEFAULT_LENGTH,
) -> tuple[Op, ...]:
    """`length` ops of `kinds`, valid under `header`; the same `rng` state gives the same ops."""
    flows = flows_of(kinds)
    ops: list[Op] = []
    if OpKind.INIT_PLATFORM in kinds and rng.random() < _INIT_SHARE:
        ops.append(Op(OpKind.INIT_PLATFORM, (rng.randrange(2),)))
    while len(ops) < length:
        flow = rng.choice(flows)(rng, header) if rng.random() < _FLOW_SHARE else []
        flow = [op for op in flow if op.kind in kinds]
        if not flow:
            ops.append(generate_op(rng, header, kinds))
            continue
        vcpu = rng.randrange(header.vcpus)
        ops += (msgspec.structs.replace(op, vcpu=vcpu) for op in flow)
    return tuple(ops[:length])
