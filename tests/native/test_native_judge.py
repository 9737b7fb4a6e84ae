# SPDX-License-Identifier: GPL-2.0-or-later
"""The native judge says what the checks say: each of its rules by itself, then all of them on
random operations. Only a change of readiness is left to Python more often than a check objects."""

from __future__ import annotations

import ctypes
import random

import pytest
from scene import FRAMES, U64, NativeJudge, Scene, random_scene

from guestemu.abi.regions import Region
from guestemu.native import build
from guestemu.program.ops import Op, OpKind

KVM_EPERM, KVM_EINVAL, KVM_ENOSYS = 1, 22, 1000
NOTIFY = Op(OpKind.HYPERCALL, (0, 0, 0, 0, 0))
DECRYPT, ENCRYPT = OpKind.SET_MEMORY_DECRYPTED, OpKind.SET_MEMORY_ENCRYPTED
EARLY = OpKind.EARLY_SET_MEMORY_DECRYPTED


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> NativeJudge:
    if build.find_compiler() is None:
        pytest.skip("no C compiler")
    made = tmp_path_factory.mktemp("judge") / "judge.so"
    build.compile_library(build.FASTPATH, made, ("-fvisibility=default",))
    return NativeJudge(ctypes.PyDLL(str(made)))


def verdicts(judge: NativeJudge, scene: Scene) -> tuple[bool, bool]:
    return judge.is_right(scene), not scene.violations()


def notified(ret: int, nr=12, gpa=0x5000, pages=1, word=0, cpl=0, is_64bit=True, recorded=()):
    """A raw hypercall that was answered `ret`; `recorded` are frames and their new status."""
    scene = Scene(NOTIFY)
    scene.exits = [(nr, gpa, pages, word, ret & U64, cpl, is_64bit)]
    for frame, status in recorded:
        scene.host[frame] = status
    return scene


def converted(kind: OpKind, region=Region.D, count=3, page=4, value=0) -> Scene:
    scene = Scene(Op(kind, (count, 0), region, page), value)
    scene.convert(kind is ENCRYPT)
    return scene


RULES = {
    "answer: 0 for a range": (
        notified(0, recorded=[(5, 0)]),
        notified(7, recorded=[]),
    ),
    "answer: not at CPL 3": (notified(-KVM_EPERM, cpl=3), notified(0, cpl=3)),
    "answer: an unknown number": (notified(-KVM_ENOSYS, nr=13), notified(0, nr=13)),
    "answer: a number above the mode's width": (
        notified(0, nr=12 | 1 << 32, is_64bit=False, recorded=[(5, 0)]),
        notified(-KVM_ENOSYS & 0xFFFF_FFFF, nr=12 | 1 << 32, is_64bit=False),
    ),
    "answer: a number that KVM has": (notified(123, nr=9), notified(123, nr=8)),
    "answer: alignment": (notified(-KVM_EINVAL, gpa=0x5001), notified(0, gpa=0x5001)),
    "answer: no pages": (notified(-KVM_EINVAL, pages=0), notified(0, pages=0)),
    "answer: a range that wraps": (
        notified(-KVM_EINVAL, gpa=0x5000, pages=U64),
        notified(0, gpa=0x5000, pages=U64),
    ),
    "answer: of a range that leaves RAM user space decides": (
        notified(-KVM_EINVAL, gpa=(FRAMES - 1) << 12, pages=2),
        notified(-KVM_EINVAL, gpa=(FRAMES - 1) << 12, pages=1),
    ),
    "record: set to what bit 4 says": (
        notified(0, gpa=0x6000, word=0x10, recorded=[(6, 1)]),
        notified(0, gpa=0x7000, word=0x10, recorded=[(7, 0)]),
    ),
    "record: other bits are hints": (
        notified(0, word=0x1, gpa=0x6000, recorded=[(6, 0)]),
        notified(0, word=0x1, gpa=0x5000, recorded=[(5, 1)]),
    ),
    "record: nothing beside the range": (
        notified(0, recorded=[(5, 0)]),
        notified(0, recorded=[(5, 0), (100, 0)]),
    ),
    "record: all of the range": (
        notified(0, pages=3, recorded=[(4, 0), (6, 0)]),
        notified(0, pages=4, gpa=0x4000, recorded=[(4, 0)]),
    ),
    "record: as far as there is RAM": (
        notified(0, gpa=(FRAMES - 2) << 12, pages=9, recorded=[(FRAMES - 2, 0)]),
        notified(0, gpa=FRAMES << 12, pages=9, recorded=[(0, 0)]),
    ),
    "record: a refused call records nothing": (
        notified(-KVM_EPERM, cpl=3),
        notified(-KVM_EPERM, cpl=3, recorded=[(4, 0)]),
    ),
    "conversion: the value": (
        converted(DECRYPT, value=-5),
        converted(DECRYPT, value=-22),
    ),
    "conversion: the value of an early one": (
        converted(EARLY, count=4096, value=1),
        converted(EARLY, count=4096, value=-1),
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_passes_its_case_and_stops_its_neighbour(judge: NativeJudge, rule: str) -> None:
    right, wrong = RULES[rule]
    if rule == "record: all of the range":
        right.exits[0] = (12, 0x4000, 3, 0, 0, 0, True)
    assert verdicts(judge, right) == (True, True)
    assert verdicts(judge, wrong) == (False, False)


def test_exits_of_an_operation_before_are_not_judged(judge: NativeJudge) -> None:
    for stale in (0, 7):
        scene = notified(0, recorded=[(5, 0)])
        scene.stale_ret = stale
        assert verdicts(judge, scene) == (True, True)


@pytest.mark.parametrize("value", [0, 1, -1, -5, -12, -16, -2, -4, -6, -11, -13, -15, -17, 2])
@pytest.mark.parametrize("kind", [DECRYPT, ENCRYPT, EARLY])
def test_results_of_conversions(judge: NativeJudge, kind: OpKind, value: int) -> None:
    native, python = verdicts(judge, converted(kind, value=value))
    assert native == python
    known = {0, 1} if kind is EARLY else {0, -1, -5, -12, -16}
    assert native == (value in known)


@pytest.mark.parametrize("kind", [DECRYPT, ENCRYPT])
@pytest.mark.parametrize("what", ["host", "tables", "alias"])
@pytest.mark.parametrize("count", [1, 3, 8, 17])
def test_a_conversion_is_judged_frame_by_frame(judge, kind, what, count) -> None:
    """Each single frame inside the range and outside it; of the alias only those inside."""
    right = converted(kind, Region.V, count)
    assert verdicts(judge, right) == (True, True)
    for place in range(len(getattr(right, what))):
        scene = converted(kind, Region.V, count)
        getattr(scene, what).invert(place)
        is_free = what == "alias" and not 4 <= place < 4 + count
        assert verdicts(judge, scene) == (is_free, is_free), place


def test_the_alias_belongs_to_one_region(judge: NativeJudge) -> None:
    scene = converted(DECRYPT, Region.D)
    scene.alias.setall(1)
    assert verdicts(judge, scene) == (True, True)


def test_a_failed_conversion_may_have_changed_anything(judge: NativeJudge) -> None:
    scene = converted(DECRYPT, value=-5)
    scene.host.invert(100)
    scene.tables.invert(100)
    assert verdicts(judge, scene) == (True, True)


@pytest.mark.parametrize("ready_before", [False, True])
def test_a_change_of_readiness_is_left_to_python(judge: NativeJudge, ready_before: bool) -> None:
    for scene in (converted(DECRYPT), notified(0, recorded=[(5, 0)])):
        scene.ready_before = scene.ready = ready_before
        assert judge.is_right(scene)
        scene.ready = not ready_before
        assert not judge.is_right(scene)


def test_a_host_without_the_contract_is_asked_for_conversions_only(judge: NativeJudge) -> None:
    for ret in (0, 7):
        scene = notified(ret)
        scene.has_contract = False
        assert verdicts(judge, scene) == (True, True)
    for value in (-5, -77):
        scene = converted(DECRYPT, value=value)
        scene.has_contract = False
        assert verdicts(judge, scene) == (value == -5, value == -5)
    scene = converted(DECRYPT)
    scene.has_contract = False
    scene.host.invert(5)
    assert verdicts(judge, scene) == (False, False)


def test_a_record_is_judged_where_answers_are_not(judge: NativeJudge) -> None:
    """A call that K3-c lets not through records nothing, whatever it was answered."""
    for fields in ({"gpa": 0x6001}, {"gpa": 0x6800}, {"pages": 0}, {"cpl": 3}, {"nr": 13}):
        for recorded, is_right in (([], True), ([(6, 0)], False)):
            scene = notified(0, **{"gpa": 0x6000, **fields}, recorded=recorded)
            scene.has_contract, scene.keeps_record = False, True
            assert verdicts(judge, scene) == (is_right, is_right)
            assert judge.objected is not is_right


def test_what_is_wrong_with_raw_calls_is_noted_for_the_program(judge: NativeJudge) -> None:
    for scene, objected in (
        (notified(0, recorded=[(5, 0)]), False),
        (notified(7), True),
        (notified(0, gpa=0x6000), True),
        (converted(DECRYPT), False),
        (converted(DECRYPT, value=-77), False),
    ):
        judge.is_right(scene)
        assert judge.objected is objected


@pytest.mark.parametrize("kind", [DECRYPT, ENCRYPT])
def test_a_conversion_may_reach_beyond_ram(judge: NativeJudge, kind: OpKind) -> None:
    scene = converted(kind, Region.L, count=20, page=120)
    first, count = scene.range
    assert count < first < FRAMES < first + count
    assert verdicts(judge, scene) == (True, True)
    scene.host.invert(FRAMES - 1)
    assert verdicts(judge, scene) == (False, False)


def test_random_operations_are_judged_as_the_checks_judge_them(judge: NativeJudge) -> None:
    rng = random.Random(11)
    seen = {True: 0, False: 0}
    for _ in range(6000):
        scene = random_scene(rng)
        native, python = verdicts(judge, scene)
        assert native == python, (scene.op, scene.value, scene.exits, scene.violations())
        assert judge.range(scene) == scene.range
        seen[native] += 1
    assert min(seen.values()) > 1500
