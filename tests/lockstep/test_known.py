# SPDX-License-Identifier: GPL-2.0-or-later
"""Every row of the table of known differences explains its cases and not their neighbours."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from sides import FRAMES, call, rdmsr, side, wrmsr

from guestemu.events.exits import HypercallExit
from guestemu.program.ops import Op, OpKind
from guestemu.replay.lockstep.known import ANSWER, END, KNOWN, READY, STATUS, VALUE, explain
from guestemu.replay.lockstep.side import PLUGIN, Side

MERGED = side("map-gpa-range", call())
CONTROL = 0x4B56_4D08
"""MSR_KVM_MIGRATION_CONTROL."""
OLD, INT = 0x4B56_4D06, 0x4B56_4D07
"""The opt-in MSR as v5 to v8 posted it (asynchronous page faults have it now), and the next."""
U64 = (1 << 64) - 1
TOP = 1 << 52
"""Pages whose size in bytes is 2**64."""
LAST = (FRAMES - 1) << 12
POISON = Op(OpKind.HOST_POISON_PAGE, (5,))

ROWS_BY_ASPECTS = {
    (ANSWER,): "no-pages list-result stale-ret",
    (STATUS,): "silent-range attributes-word qemu-list",
    (VALUE,): "parted-before",
    (ANSWER, STATUS): "number lost-exit gate low-bits wrap no-memory growth-repaired "
    "silent-range-repaired poisoned enc-argument kvm-list vmm-bits",
    (END, ANSWER, STATUS): "vm-stopped size-wrap vmm-size vmm-top vmm-place open-range",
    (END, ANSWER, VALUE, STATUS): "vmm-hot-plug",
    (END, VALUE, READY): "no-msr blocked moved-msr young-msr any-value blocker set-only write-only "
    "kept-value",
    (VALUE, STATUS, READY): "ioctl",
}
ASPECTS = {key: set(aspects) for aspects, keys in ROWS_BY_ASPECTS.items() for key in keys.split()}

Pair = tuple[Side, Side]


def beside(*own: Side, other: Side = MERGED) -> list[Pair]:
    return [(one, other) for one in own]


def handlers(side: Side, hole: tuple[int, int] | None = None) -> Side:
    """The same by merged KVM under an exit handler of a user's own, with a hole in its RAM."""
    holes = () if hole is None else (hole,)
    traits = msgspec.structs.replace(side.traits, is_users=True, open_frames=holes)
    return msgspec.structs.replace(side, traits=traits)


PLUG, UNPLUG, ACCESS = (
    Op(kind, (200, 1))
    for kind in (OpKind.HOST_COMMIT_SLOT, OpKind.UNPLUG_SLOT, OpKind.GUEST_ACCESS)
)


def plugs(side: Side) -> Side:
    """The same where frames 200 to 207 can be plugged."""
    traits = msgspec.structs.replace(side.traits, hot_plug=((200, 208),))
    return msgspec.structs.replace(side, traits=traits)


CASES: dict[str, tuple[list[Pair], list[Pair]]] = {
    "number": (
        beside(side("bitmap-v1", call(11)), side("bitmap-v3", call(12))),
        [
            *beside(side("bitmap-v3", call(13)), side("bitmap-v3"), side("bitmap-v6", call(11))),
            (side("bitmap-v1", call(11)), side("bitmap-v3", call(11))),
        ],
    ),
    "lost-exit": (
        beside(side("map-gpa-range:6.12", call(12 | 1 << 32, is_64bit=False))),
        beside(
            side("map-gpa-range:6.12", call(12, is_64bit=False)),
            side("map-gpa-range:6.12", call(12 | 1 << 32)),
            side("map-gpa-range:6.12", call(11 | 1 << 32, is_64bit=False)),
            side("map-gpa-range:6.18", call(12 | 1 << 32, is_64bit=False)),
            side("map-gpa-range:6.1", call(12 | 1 << 32, is_64bit=False)),
            side("bitmap-v8", call(12 | 1 << 32, is_64bit=False)),
        ),
    ),
    "gate": (
        beside(side("bitmap-v6", call())),
        beside(
            side("bitmap-v6", call(), ready_before=True),
            side("bitmap-v6", call(), repaired=("gate",)),
            side("bitmap-v6", call(5)),
            side("bitmap-v8", call()),
        ),
    ),
    "low-bits": (
        beside(
            side("bitmap-v1", call(11, gpa=0x5001)),
            side("bitmap-v8", call(gpa=0x5FFF)),
            side("shared-list-v10", call(gpa=0x5800)),
        ),
        beside(
            side("bitmap-v8", call(gpa=0x5000)),
            side("bitmap-v8", call(gpa=0x5001), repaired=("low-bits",)),
            side("map-gpa-range", call(gpa=0x5001)),
            side("qemu-v4", call(gpa=0x5001)),
        ),
    ),
    "no-pages": (
        beside(side("bitmap-v8", call(pages=0))),
        [
            *beside(side("bitmap-v8", call(pages=1)), side("qemu-v4", call(pages=0))),
            (side("bitmap-v8", call(pages=0)), side("bitmap-v6", call(pages=0))),
        ],
    ),
    "wrap": (
        beside(
            side("bitmap-v1", call(11, pages=U64)),
            side("bitmap-v2", call(11, pages=U64 - 4)),
            side("bitmap-v2", call(11, pages=U64, is_64bit=True, status=1)),
        ),
        beside(
            side("bitmap-v1", call(11, pages=1)),
            side("bitmap-v2", call(11, gpa=0, pages=U64)),
            side("bitmap-v2", call(11, pages=U64 - 5)),
            side("bitmap-v1", call(11, pages=0)),
            side("bitmap-v2", call(11, pages=1 << 40)),
            side("bitmap-v2", call(11, pages=U64, is_64bit=False)),
            side("bitmap-v1", call(11, pages=U64), repaired=("wrap",)),
            side("bitmap-v3", call(11, pages=U64)),
            side("bitmap-v8", call(pages=U64)),
        ),
    ),
    "no-memory": (
        beside(
            side("bitmap-v1", call(11, gpa=0, pages=(1 << 39) + 1)),
            side("bitmap-v2", call(11, gpa=0, pages=(1 << 39) + 1)),
            side("bitmap-v3", call(11, gpa=0, pages=(1 << 39) + 1)),
            side("bitmap-v6", call(gpa=0x1000, pages=1 << 39)),
        ),
        beside(
            side("bitmap-v3", call(11, gpa=0, pages=1 << 39)),
            side("bitmap-v8", call(gpa=0, pages=(1 << 39) + 1)),
            side("bitmap-v3", call(12, gpa=0, pages=(1 << 39) + 1)),
        ),
    ),
    "growth-repaired": (
        beside(
            side("bitmap-v3", call(11, gpa=LAST, pages=2), repaired=("growth",)),
            side("bitmap-v6", call(gpa=FRAMES << 12), repaired=("growth",)),
        ),
        beside(
            side("bitmap-v3", call(11, gpa=LAST, pages=1), repaired=("growth",)),
            side("bitmap-v3", call(11, gpa=LAST, pages=2)),
            side("bitmap-v3", call(11, gpa=LAST, pages=2), repaired=("low-bits",)),
        ),
    ),
    "silent-range": (
        beside(side("bitmap-v8", call(gpa=LAST, pages=2))),
        beside(
            side("bitmap-v8", call(gpa=LAST, pages=1)),
            side("bitmap-v8", call(gpa=LAST, pages=2), repaired=("silent-range",)),
            side("bitmap-v6", call(gpa=LAST, pages=2)),
        ),
    ),
    "silent-range-repaired": (
        beside(side("bitmap-v8", call(gpa=LAST, pages=2), repaired=("silent-range",))),
        beside(
            side("bitmap-v8", call(gpa=LAST, pages=1), repaired=("silent-range",)),
            side("bitmap-v8", call(gpa=LAST, pages=2)),
            side("bitmap-v8", call(gpa=LAST, pages=2), repaired=("low-bits",)),
        ),
    ),
    "poisoned": (
        beside(
            *(side(host, call(pages=3), poisoned=[5]) for host in ("bitmap-v6", "bitmap-v8")),
            *(side("shared-list-v10", call(pages=3), poisoned=[frame]) for frame in (5, 7, 8)),
        ),
        beside(
            *(side("bitmap-v8", call(pages=3), poisoned=[frame]) for frame in (4, 6, 9)),
            side("bitmap-v8", call(pages=3)),
            side("bitmap-v3", call(11, pages=3), poisoned=[5]),
            side("bitmap-v8", call(5, pages=3), poisoned=[5]),
        ),
    ),
    "vm-stopped": (
        beside(side("qemu-10.2", stopped=True), side("qemu-10.2", call(ret=-22))),
        beside(
            side("qemu-10.2", call()),
            side("qemu-10.2", call(ret=-1)),
            side("qemu-10.2", call(5, ret=-22)),
            side("qemu-v4", stopped=True),
            side("map-gpa-range", call(ret=-22)),
        ),
    ),
    "size-wrap": (
        beside(side("qemu-10.2", call(pages=TOP))),
        beside(side("qemu-10.2", call(pages=TOP - 1)), side("qemu-v4", call(pages=TOP))),
    ),
    "vmm-size": (
        [
            *beside(
                *(
                    side(host, call(pages=TOP))
                    for host in ("qemu-11", "cloud-hypervisor", "libkrun", "dragonball")
                )
            ),
            (side("dragonball", stopped=True), side("map-gpa-range", call(pages=TOP))),
        ],
        [
            *beside(
                side("libkrun", call(pages=TOP - 1)),
                side("openvmm", call(pages=TOP)),
                side("qemu-11", call(pages=TOP), repaired=("size-wrap",)),
                side("qemu-10.2", call(pages=TOP)),
            ),
            (side("dragonball", stopped=True), side("map-gpa-range", call(pages=TOP - 1))),
            (side("dragonball"), side("map-gpa-range", call(pages=TOP))),
        ],
    ),
    "vmm-top": (
        [
            *beside(
                side("cloud-hypervisor", call(pages=TOP - 5)),
                side("dragonball", call(pages=TOP)),
            ),
            (side("dragonball", stopped=True), side("map-gpa-range", call(pages=TOP - 5))),
        ],
        [
            *beside(
                side("cloud-hypervisor", call(pages=TOP - 6)), side("libkrun", call(pages=TOP))
            ),
            (side("dragonball"), side("map-gpa-range", call(pages=TOP - 5))),
        ],
    ),
    "vmm-place": (
        [
            *beside(
                side("libkrun", call(gpa=FRAMES << 12)),
                side("libkrun", call(pages=TOP - 5)),
                side("openvmm", call(gpa=LAST, pages=2)),
                side("qemu-11", call(gpa=LAST, pages=2)),
                side("in-place", call(gpa=LAST, pages=2)),
            ),
            (side("libkrun", stopped=True), side("map-gpa-range", call(gpa=FRAMES << 12))),
        ],
        [
            *beside(
                side("libkrun", call(gpa=LAST, pages=2)),
                side("libkrun", call(gpa=LAST)),
                side("openvmm", call(gpa=LAST)),
                side("qemu-11", call(gpa=LAST)),
                side("in-place", call(gpa=LAST)),
                side("dragonball", call(gpa=FRAMES << 12)),
            ),
            (side("libkrun"), side("map-gpa-range", call(gpa=FRAMES << 12))),
        ],
    ),
    "vmm-bits": (
        beside(
            *(side("openvmm", call(status=bit)) for bit in (0x04, 0x08, 0x20, 0x40, 0x80, 0x100))
        ),
        beside(
            *(side("openvmm", call(status=bits)) for bits in (0, 1, 2, 3, 0x10, 0x13)),
            side("libkrun", call(status=0x20)),
        ),
    ),
    "list-result": (
        beside(side("shared-list-v10", call(ret=1)), side("shared-list-v10", call(ret=-1))),
        beside(
            *(side("shared-list-v10", call(ret=ret)) for ret in (0, 2, -2, -22)),
            side("shared-list-v10", call(ret=1), repaired=("result",)),
            side("bitmap-v8", call(ret=1)),
        ),
    ),
    "stale-ret": (
        beside(
            side("qemu-v4", call(ret=5)),
            side("qemu-10.2:6.1", call(ret=5)),
            side("libkrun:6.1", call(ret=5)),
            side("qemu-v4", call(5, ret=0), call(ret=5)),
            other=side("map-gpa-range", call(), call()),
        ),
        [
            *beside(
                side("qemu-v4", call()),
                side("qemu-v4", call(5, ret=5)),
                side("qemu-v4", call(ret=5, gpa=0x5001)),
                side("qemu-v4", call(ret=5, pages=0)),
                side("qemu-v4", call(ret=5, pages=U64)),
                side("qemu-v4", call(ret=5), repaired=("stale-ret",)),
                side("qemu-10.2", call(ret=5)),
                side("map-gpa-range", call(ret=5)),
                side("openvmm:6.1", call(ret=5)),
            ),
        ],
    ),
    "attributes-word": (
        beside(
            side("qemu-v4", call(status=1)),
            side("qemu-v4", call(status=1 << 63)),
            side("libkrun", call(status=2)),
        ),
        beside(
            *(side("qemu-v4", call(status=status)) for status in (0, 0x10, 0x11)),
            side("qemu-v4", call(status=1), repaired=("attributes-word",)),
            side("qemu-10.2", call(status=1)),
        ),
    ),
    "enc-argument": (
        beside(side("bitmap-v8", call(status=1)), side("shared-list-v10", call(status=2))),
        [
            *beside(
                *(side("bitmap-v8", call(status=status)) for status in (0, 0x10, 0x11)),
                side("map-gpa-range", call(status=1)),
            ),
            (side("bitmap-v8", call(status=1)), side("bitmap-v6", call(status=1))),
        ],
    ),
    "kvm-list": (
        beside(
            *(side("shared-list-v10", call(pages=2), shared=[frame]) for frame in (4, 5, 6, 7)),
            side("shared-list-v10", call(), call(gpa=0x9000)),
            side("shared-list-v10", call(gpa=0), shared=[0]),
        ),
        beside(
            *(side("shared-list-v10", call(pages=2), shared=[frame]) for frame in (3, 8)),
            side("shared-list-v10", call(pages=2)),
            side("shared-list-v10", call(pages=2), shared=[5], repaired=("list",)),
            side("bitmap-v8", call(pages=2), shared=[5]),
        ),
    ),
    "qemu-list": (
        beside(
            *(side("qemu-v4", call(pages=2), shared=[frame]) for frame in (4, 5, 6, 7)),
            side("qemu-v4", call(), call(gpa=0x9000)),
        ),
        beside(
            *(side("qemu-v4", call(pages=2), shared=[frame]) for frame in (3, 8)),
            side("qemu-v4", call(), call(5)),
            side("qemu-v4", call(pages=2), shared=[5], repaired=("list",)),
            side("qemu-10.2", call(pages=2), shared=[5]),
        ),
    ),
    "no-msr": (
        beside(side("bitmap-v1", wrmsr(CONTROL)), side("bitmap-v3", rdmsr(CONTROL))),
        beside(
            side("bitmap-v3", wrmsr(OLD)),
            side("bitmap-v3", call(CONTROL)),
            side("bitmap-v6", wrmsr(CONTROL)),
            side("qemu-v4", wrmsr(CONTROL)),
        ),
    ),
    "blocked": (
        beside(*(side(host, wrmsr(CONTROL)) for host in ("qemu-10.2", "openvmm", "libkrun"))),
        beside(
            side("qemu-10.2", wrmsr(OLD)),
            side("qemu-v4", wrmsr(CONTROL)),
            side("map-gpa-range", wrmsr(CONTROL)),
        ),
    ),
    "vmm-hot-plug": (
        beside(
            *(plugs(side("openvmm", op=op)) for op in (PLUG, UNPLUG, ACCESS)),
            plugs(side("dragonball", call(gpa=207 << 12))),
            plugs(side("libkrun", call(gpa=199 << 12, pages=2))),
        ),
        beside(
            side("openvmm", op=PLUG),
            plugs(side("openvmm", op=Op(OpKind.GUEST_ACCESS, (199, 1)))),
            plugs(side("openvmm", op=Op(OpKind.GUEST_ACCESS, (208, 1)))),
            plugs(side("libkrun", call(gpa=199 << 12))),
            plugs(side("libkrun", call(gpa=208 << 12))),
            plugs(side("map-gpa-range", op=PLUG)),
        ),
    ),
    "open-range": (
        [
            *beside(
                handlers(side("map-gpa-range", call(pages=FRAMES, ret=-22))),
                handlers(side("map-gpa-range", call(gpa=LAST + 0x1000, ret=-22))),
                handlers(side("map-gpa-range", call(gpa=LAST, ret=-22)), hole=(255, 256)),
            ),
            (
                handlers(side("map-gpa-range", stopped=True)),
                side("map-gpa-range", call(pages=FRAMES)),
            ),
        ],
        beside(
            handlers(side("map-gpa-range", call(gpa=LAST, ret=-22))),
            handlers(side("map-gpa-range", call(pages=FRAMES))),
            handlers(side("map-gpa-range", call(pages=FRAMES, gpa=1, ret=-22))),
            handlers(side("map-gpa-range", call(nr=13, pages=FRAMES, ret=-22))),
            handlers(side("map-gpa-range", call(gpa=LAST - 0x1000, ret=-22)), hole=(255, 256)),
            handlers(side("map-gpa-range", call(gpa=LAST, ret=-22)), hole=(254, 255)),
            side("map-gpa-range", call(pages=FRAMES, ret=-22)),
        ),
    ),
    "moved-msr": (
        [
            *beside(side("bitmap-v6", wrmsr(OLD)), side("bitmap-v8", rdmsr(OLD))),
            (side("shared-list-v10", wrmsr(OLD)), side("bitmap-v8", wrmsr(OLD))),
        ],
        [
            *beside(side("bitmap-v8", wrmsr(CONTROL)), side("shared-list-v10", wrmsr(OLD))),
            (side("bitmap-v8", wrmsr(OLD)), side("bitmap-v6", wrmsr(OLD))),
            (side("map-gpa-range", wrmsr(OLD)), side("bitmap-v6", wrmsr(OLD))),
        ],
    ),
    "young-msr": (
        beside(
            *(
                side(host, wrmsr(index))
                for host in ("bitmap-v1", "bitmap-v2", "bitmap-v3", "bitmap-v6", "bitmap-v8")
                for index in (OLD, INT)
            )
        ),
        beside(
            side("bitmap-v3", wrmsr(OLD - 1)),
            side("bitmap-v3", wrmsr(INT + 1)),
            side("shared-list-v10", wrmsr(OLD)),
            side("map-gpa-range", wrmsr(OLD)),
        ),
    ),
    "any-value": (
        beside(side("bitmap-v8", wrmsr(CONTROL, 2)), side("bitmap-v6", wrmsr(OLD, 1 << 63))),
        beside(
            *(side("bitmap-v8", wrmsr(CONTROL, value)) for value in (0, 1)),
            side("bitmap-v8", wrmsr(INT, 2)),
            side("bitmap-v8", rdmsr(CONTROL)),
            side("bitmap-v3", wrmsr(CONTROL, 2)),
            side("map-gpa-range", wrmsr(CONTROL, 2)),
        ),
    ),
    "blocker": (
        beside(side("qemu-v4", wrmsr(CONTROL))),
        beside(
            side("qemu-v4", wrmsr(INT)),
            side("qemu-v4", wrmsr(CONTROL), repaired=("msr-zero",)),
            side("qemu-10.2", wrmsr(CONTROL)),
        ),
    ),
    "set-only": (
        beside(side("bitmap-v8", wrmsr(CONTROL)), side("bitmap-v8", wrmsr(OLD))),
        beside(
            side("bitmap-v8", wrmsr(INT)),
            side("bitmap-v8", wrmsr(CONTROL), repaired=("msr-zero",)),
            side("bitmap-v6", wrmsr(CONTROL)),
        ),
    ),
    "write-only": (
        beside(
            side("bitmap-v8", rdmsr(OLD), value=None),
            side("shared-list-v10", rdmsr(CONTROL), value=None),
        ),
        beside(
            side("bitmap-v8", rdmsr(CONTROL), value=0),
            side("bitmap-v8", rdmsr(CONTROL), value=None, repaired=("msr-read",)),
            side("bitmap-v8", rdmsr(INT), value=None),
            side("bitmap-v6", rdmsr(CONTROL), value=None),
        ),
    ),
    "kept-value": (
        beside(side("bitmap-v6", wrmsr(CONTROL)), side("bitmap-v6", wrmsr(OLD))),
        beside(side("bitmap-v6", wrmsr(INT)), side("bitmap-v8", wrmsr(CONTROL))),
    ),
    "parted-before": (
        beside(side("map-gpa-range", rdmsr(CONTROL), ready_before=True)),
        beside(
            side("map-gpa-range", rdmsr(CONTROL)),
            side("map-gpa-range", rdmsr(OLD), ready_before=True),
        ),
    ),
    "ioctl": (
        [
            *beside(side("bitmap-v8", op=POISON)),
            (side("bitmap-v8", op=POISON, repaired=("msr-read",)), side("bitmap-v8", op=POISON)),
        ],
        [
            *beside(side("bitmap-v8")),
            (side("bitmap-v8", op=POISON), side("bitmap-v8", op=POISON)),
        ],
    ),
}

ROWS = {known.key: known for known in KNOWN}


def test_every_row_has_its_cases() -> None:
    assert CASES.keys() == ROWS.keys() == ASPECTS.keys()
    assert all(cases and neighbours for cases, neighbours in CASES.values())


@pytest.mark.parametrize("key", CASES)
def test_a_row_applies_to_its_cases(key: str) -> None:
    for own, other in CASES[key][0]:
        assert ROWS[key].applies(own, other), own


@pytest.mark.parametrize("key", CASES)
def test_a_row_does_not_apply_to_the_neighbours(key: str) -> None:
    for own, other in CASES[key][1]:
        assert not ROWS[key].applies(own, other), own


@pytest.mark.parametrize("key", CASES)
def test_a_row_explains_its_aspects_and_no_other(key: str) -> None:
    assert ROWS[key].aspects == ASPECTS[key]
    own, other = CASES[key][0][0]
    for aspect in ASPECTS[key]:
        assert explain(aspect, own, other) is explain(aspect, other, own) is not None
    alone = [row.key for row in KNOWN if row.applies(own, other) or row.applies(other, own)]
    if alone == [key]:
        for aspect in {ANSWER, END, VALUE, STATUS, READY} - ASPECTS[key]:
            assert explain(aspect, own, other) is None


def test_the_first_row_that_applies_explains() -> None:
    both = side("bitmap-v6", call(gpa=0x5001))
    for found in (explain(ANSWER, both, MERGED), explain(ANSWER, MERGED, both)):
        assert found is not None
        assert found.key == "gate"


def users(side: Side) -> Side:
    """The same by a host of a user's own."""
    traits = msgspec.structs.replace(side.traits, name=PLUGIN, kernel=None, is_users=True)
    return msgspec.structs.replace(side, traits=traits)


def test_no_row_of_the_patch_sets_explains_a_users_host() -> None:
    own = side("bitmap-v8", call(gpa=0x5001))
    assert explain(ANSWER, own, MERGED) is not None
    theirs = users(own)
    assert explain(ANSWER, theirs, MERGED) is None
    assert explain(ANSWER, own, theirs) is None
    assert explain(ANSWER, theirs, own) is None


@pytest.mark.parametrize(
    ("key", "aspect", "own", "other", "neighbour"),
    [
        ("own-hypercall", ANSWER, (call(nr=11, ret=-1000),), (call(nr=11),), (call(nr=12),)),
        ("own-vmcall", END, (call(cpl=1, ret=-1),), (call(cpl=1, ret=None),), (call(cpl=1),)),
    ],
)
def test_a_users_host_leaves_kvm_s_own_calls_to_kvm(
    key: str,
    aspect: str,
    own: tuple[HypercallExit, ...],
    other: tuple[HypercallExit, ...],
    neighbour: tuple[HypercallExit, ...],
) -> None:
    found = explain(aspect, users(side("map-gpa-range", *own)), side("map-gpa-range", *other))
    assert found is not None
    assert found.key == key
    assert explain(READY, users(side("map-gpa-range", *own)), MERGED) is None
    same = side("map-gpa-range", *neighbour)
    assert explain(aspect, users(same), same) is None


def test_a_users_host_needs_no_msr_but_migration_control() -> None:
    for op, key in (
        (Op(OpKind.WRMSR, (0x4B564D00, 0)), "own-msr"),
        (Op(OpKind.RDMSR, (0x4B564D00,)), "own-msr"),
        (Op(OpKind.WRMSR, (CONTROL, 0)), None),
        (Op(OpKind.RDMSR, (CONTROL,)), None),
    ):
        one = side("map-gpa-range", op=op)
        found = explain(END, users(one), one)
        assert (found and found.key) == key


def test_a_call_that_the_users_host_never_saw_explains_nothing() -> None:
    theirs = users(side("map-gpa-range", call(nr=12)))
    assert explain(ANSWER, theirs, side("map-gpa-range", call(nr=11))) is None


@pytest.mark.parametrize("own", [handlers, users])
def test_a_users_host_may_refuse_a_range_that_leaves_ram(own: Callable[[Side], Side]) -> None:
    theirs = own(side("map-gpa-range", call(pages=FRAMES, ret=-22)))
    whole = side("map-gpa-range", call(pages=FRAMES))
    for aspect in (ANSWER, STATUS, END):
        found = explain(aspect, theirs, whole)
        assert (found and found.key) == "open-range"
        assert explain(aspect, own(side("map-gpa-range", call(ret=-22))), MERGED) is None


def test_a_users_host_may_have_no_migration_control() -> None:
    one = side("map-gpa-range", wrmsr(CONTROL), op=Op(OpKind.WRMSR, (CONTROL, 1)))
    assert explain(END, users(one), one) is None
    traits = msgspec.structs.replace(users(one).traits, serves_msr=False)
    for aspect in (END, VALUE, READY):
        found = explain(aspect, msgspec.structs.replace(one, traits=traits), one)
        assert (found and found.key) == "blocked"


def test_hosts_that_agree_need_no_explanation() -> None:
    assert explain(ANSWER, MERGED, MERGED) is None
