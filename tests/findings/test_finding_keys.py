# SPDX-License-Identifier: GPL-2.0-or-later
"""What a key is made of, which program is the simpler one, and the words beside a finding."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
from found import call

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.errors import InputError
from guestemu.abi.regions import Instruction, Region
from guestemu.abi.x86 import Mode
from guestemu.campaign.triage import canonical, explain
from guestemu.campaign.triage.identify import finding_key, host_name, shape
from guestemu.campaign.triage.single import choose
from guestemu.checks.base import Violation
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header
from guestemu.runner.testbed import HOST_FAILED

PAGE = 4096
ENCRYPTED = 16
WRONG = Violation("record", 0, "GPA 0x1000 is private, expected shared", "K3-c")


def changed(op: Op, **fields: object) -> Op:
    return msgspec.structs.replace(op, **fields)


# Keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "words"),
    [
        (call(0, 1), "hypercall d d 1 d d"),
        (call(0xFF, 0xFF), "hypercall d 1 1 d d"),
        (call(0x100, 0x10000), "hypercall d 2 3 d d"),
        (call(PAGE, U64_MASK, ENCRYPTED), "hypercall d 2 8 1 d"),
        (call(0, 1, nr=0), "hypercall =0 d 1 d d"),
        (call(0, 1, nr=255), "hypercall =255 d 1 d d"),
        (call(0, 1, nr=256), "hypercall 2 d 1 d d"),
        (call(0, 1, cpl=3), "hypercall d d 1 d d cpl"),
        (changed(call(0, 1), mode=Mode.COMPAT32), "hypercall d d 1 d d COMPAT32"),
        (changed(call(0, 1), instruction=Instruction.VMCALL), "hypercall d d 1 d d VMCALL"),
        (Op(OpKind.RDMSR, (0x8B,)), "rdmsr =139"),
        (Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0), Region.L, 7), "set_memory_decrypted d d L"),
    ],
)
def test_a_shape_has_the_bytes_of_values_and_the_numbers_that_name_something(op, words):
    assert shape((op,)) == words
    assert shape((op, op)) == f"{words}; {words}"


PAGE_0 = (call(0, 1),)


def key(check="record", symptom="record", ops=PAGE_0, where=("host",), op=0) -> str:
    return finding_key(Violation(check, op, "", ""), symptom, tuple(ops), where)


def test_a_key_names_check_and_operation():
    stem, _, digest = key(ops=(Op(OpKind.RDMSR, (0,)), call(0, 1)), op=1).rpartition("-")
    assert stem == "record-hypercall"
    assert len(digest) == 8


def test_a_few_lines_of_code_are_the_defect_whatever_it_shows():
    one = ("host", "a.py:1")
    five = ("host", *(f"a.py:{line}" for line in range(5)))
    four = five[:-1]
    for where in (one, four):
        assert key(where=where) == key(symptom="other", ops=(call(PAGE, 700),), where=where)
    assert key(where=five) != key(symptom="other", where=five)
    assert key(where=five) != key(ops=(call(PAGE, 700),), where=five)
    assert key(where=one) != key(where=("host", "a.py:2"))
    assert key(where=one) != key(where=("other", "a.py:1"))


def test_without_code_the_shape_and_the_symptom_tell_findings_apart():
    assert key() != key(symptom="other")
    assert key() != key(ops=(call(0, 256),))
    assert key() == key(ops=(call(0, 255),))


@pytest.mark.parametrize(
    ("check", "symptom"),
    [
        (HOST_FAILED, "raises KeyError"),
        ("results", "hypercall: upper bits of the address"),
        ("migration-control", "latch"),
    ],
)
def test_a_symptom_that_says_it_all_is_the_key(check, symptom):
    first = key(check, symptom)
    assert first == key(check, symptom, ops=(call(PAGE, 700),))
    assert first != key(check, f"{symptom} of another kind", ops=(call(PAGE, 700),))
    assert first != key(check, symptom, where=("other",))


def test_the_latch_with_code_is_told_apart_by_its_code():
    one, other = ("host", "a.py:1"), ("host", "a.py:2")
    assert key("migration-control", where=one) != key("migration-control", where=other)


def test_a_host_is_named_without_its_directory():
    assert host_name("/somewhere/vmm.py:Host") == "vmm.py:Host"
    assert host_name("map-gpa-range") == "map-gpa-range"


# The simpler program ------------------------------------------------------------------------------


def test_small_numbers_come_first_and_minus_one_behind_one():
    values = [2, 1, U64_MASK, 0, U64_MASK - 1, 1 << 40, -(1 << 40) & U64_MASK]
    assert sorted(values, key=canonical.simplicity) == [
        *(0, 1, U64_MASK, 2, U64_MASK - 1, 1 << 40, -(1 << 40) & U64_MASK),
    ]


@pytest.mark.parametrize(
    ("one", "other", "is_simpler"),
    [
        ((call(0, 1),), (call(0, 1), call(0, 1)), True),
        ((call(0, 1),), (call(0, 1),), True),
        ((call(0, 1),), (call(0, 2),), True),
        ((call(0, 2),), (call(0, 1),), False),
        ((call(0, 1),), (call(0, 2), call(0, 1)), True),
        ((call(PAGE, 1),), (call(0, 2),), False),
        ((call(0, 1, cpl=1),), (call(0, 1),), False),
        ((call(0, 1),), (call(0, 1, cpl=1),), True),
        ((call(0, 1), call(0, 2)), (call(0, 2), call(0, 1)), False),
    ],
)
def test_a_simpler_program_is_larger_nowhere(one, other, is_simpler):
    assert canonical.is_simpler_program(one, other) is is_simpler


def test_a_plainer_operation_has_one_argument_less():
    found = list(canonical.plainer(call(PAGE, 3, ENCRYPTED, cpl=3)))
    arguments = [(op.arguments[1:4], op.cpl) for op in found]
    assert arguments == [
        ((0, 3, ENCRYPTED), 3),
        ((PAGE, found[1].arguments[2], ENCRYPTED), 3),
        ((PAGE, 3, 0), 3),
        ((PAGE, 3, ENCRYPTED), 0),
    ]
    assert list(canonical.plainer(found[0])) != []
    assert list(canonical.plainer(Op(OpKind.INIT_PLATFORM, (0,)))) == []


def test_a_plainer_call_names_its_address_before_anything_else():
    of_page = changed(call(0, 1), has_page=True, region=Region.L, page=3)
    assert next(canonical.plainer(of_page)) == call(0, 1)
    plain = canonical.plainer(call(0, 1))
    assert [op.arguments[2] for op in plain] == [0], "of a call with an address only its count"


def test_the_steps_of_a_migration_are_its_order():
    start, stop = Op(OpKind.MIGRATE_START, (1, 0)), Op(OpKind.MIGRATE_STOP)
    assert canonical.order_of((call(0, 1), start, call(0, 2), stop)) == (start, stop)


def test_programs_around_one_lack_an_operation_or_differ_in_one():
    ops = (call(0, 1), call(PAGE, 2))
    near = list(canonical.around(ops))
    assert ops[:1] in near
    assert ops[1:] in near
    changed = [one for one in near if one not in (ops[:1], ops[1:])]
    assert all(sum(a != b for a, b in zip(ops, one, strict=True)) == 1 for one in changed)
    assert all(len(one) == 1 for one in canonical.around(ops[:1]))


# Words --------------------------------------------------------------------------------------------


def test_the_only_finding_the_named_one_or_an_error_with_the_keys():
    found = [SimpleNamespace(key="a-b-1"), SimpleNamespace(key="a-b-2")]
    assert choose(found, None, "x.prog") is found[0]
    assert choose(found, "a-b-2", "x.prog") is found[1]
    with pytest.raises(InputError, match=r"--key a-b-3: x\.prog shows a-b-1, a-b-2"):
        choose(found, "a-b-3", "x.prog")
    with pytest.raises(InputError, match=r"x\.prog: no check fails"):
        choose([], None, "x.prog")


def test_a_violation_is_told_with_its_rule_and_what_it_means():
    first, rule, why = explain.words_of(WRONG)
    assert first == f"Check record, after op 0: {WRONG.message}"
    assert rule.startswith("Rule: ")
    assert "[K3-c]" in rule
    assert why
    assert len(explain.words_of(Violation("of-a-package", 3, "wrong", ""))) == 1


def test_the_command_allows_the_users_code_again():
    assert explain.run_command("x y.prog", Header()) == "guestemu run 'x y.prog'"
    command = explain.run_command("x.prog", Header(plugin="/somewhere/vmm.py"))
    assert command == "guestemu run x.prog --plugins /somewhere"


def test_what_was_seen_once_says_so_and_how_to_look_again():
    text = explain.unstable_comment("a-b-1", WRONG, "the campaign", "guestemu run x.prog")
    lines = text.splitlines()
    assert lines[0] == "Finding a-b-1 of the campaign."
    assert lines[1:-3] == explain.words_of(WRONG)
    assert "did not show again" in lines[-3]
    assert lines[-1] == "Run it again: guestemu run x.prog"


def test_a_comment_lists_the_suspected_lines_or_none():
    finding = SimpleNamespace(key="a-b-1", violation=WRONG, places=("vmm.py:3: return 1",))
    with_lines = explain.comment_of(finding, "here", "guestemu run x.prog").splitlines()
    assert with_lines[-3:] == [
        "Host code that runs only when this goes wrong:",
        "  vmm.py:3: return 1",
        "Reproduce: guestemu run x.prog",
    ]
    finding.places = ()
    assert len(explain.comment_of(finding, "here", "c").splitlines()) == len(with_lines) - 2
