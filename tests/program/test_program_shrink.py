# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from drawn import generate_program

from guestemu.abi.x86 import Mode
from guestemu.program.ops import Instruction, Op, OpKind, Region, canonical_op
from guestemu.program.program import Expectation, Header, Program, SevKind
from guestemu.program.shrink import shrink
from guestemu.program.validity import problem_of

DECRYPT = OpKind.SET_MEMORY_DECRYPTED
ENCRYPT = OpKind.SET_MEMORY_ENCRYPTED


def many_pages(program: Program) -> bool:
    return any(op.kind is DECRYPT and op.arguments[0] > 33 for op in program.ops)


def test_a_threshold_is_found_exactly() -> None:
    big = canonical_op(Op(DECRYPT, (1000, 5), Region.L, 700, vcpu=1))
    noise = generate_program(5, Header(vcpus=2), length=20).ops
    program = Program(
        Header(vcpus=2, seed=9, sev=SevKind.SEV_ES, coherent=False, switches=("a", "b")),
        (*noise, big, *noise),
        (Expectation("result", "0", 3),),
    )
    assert shrink(program, many_pages) == Program(Header(), (Op(DECRYPT, (34, 0)),))


def test_two_ops_that_depend_on_each_other_stay() -> None:
    def same_page_twice(program: Program) -> bool:
        shared: set[tuple[Region, int]] = set()
        for op in program.ops:
            if op.kind is DECRYPT:
                shared.add((op.region, op.page))
            if op.kind is ENCRYPT and (op.region, op.page) in shared:
                return True
        return False

    noise = [canonical_op(Op(OpKind.READ, (0,), Region.D, page)) for page in range(30)]
    ops = [
        *noise[:11],
        canonical_op(Op(DECRYPT, (8,), Region.D, 3)),
        *noise[11:],
        canonical_op(Op(ENCRYPT, (8,), Region.D, 3)),
    ]
    small = shrink(Program(ops=tuple(ops)), same_page_twice)
    assert [op.kind for op in small.ops] == [DECRYPT, ENCRYPT]
    assert [op.arguments for op in small.ops] == [(1, 0), (1, 0)]


def test_needless_ops_go_in_chunks() -> None:
    calls = 0

    def keeps(program: Program) -> bool:
        nonlocal calls
        calls += 1
        return any(op.kind is DECRYPT for op in program.ops)

    noise = [canonical_op(Op(OpKind.READ, (0,), Region.D, page)) for page in range(256)]
    program = Program(ops=(*noise[:100], Op(DECRYPT, (1, 0)), *noise[100:]))
    assert len(shrink(program, keeps).ops) == 1
    assert calls < 50


def test_what_a_simpler_argument_makes_needless_goes_too() -> None:
    def keeps(program: Program) -> bool:
        kinds = {op.kind for op in program.ops}
        pages = [op.arguments[0] for op in program.ops if op.kind is DECRYPT]
        return bool(pages) and (max(pages) == 1 or OpKind.READ in kinds)

    program = Program(ops=(Op(OpKind.READ, (0,)), Op(DECRYPT, (500, 0))))
    assert shrink(program, keeps).ops == (Op(DECRYPT, (1, 0)),)


def test_only_the_posture_that_matters_stays() -> None:
    call = Op(
        OpKind.HYPERCALL,
        (12, 0x123000, 7, 0x30, 99),
        Region.D,
        17,
        True,
        3,
        Mode.COMPAT32,
        3,
        Instruction.VMCALL,
    )
    small = shrink(
        Program(Header(vcpus=4), (call,)), lambda program: any(op.cpl == 3 for op in program.ops)
    )
    assert small == Program(Header(), (Op(OpKind.HYPERCALL, (12, 0, 0, 0, 0), cpl=3),))


def test_only_the_switch_that_matters_stays() -> None:
    program = Program(Header(switches=("a", "b", "c")), (Op(OpKind.CPU_OFFLINE),))
    small = shrink(program, lambda p: "b" in p.header.switches)
    assert small == Program(Header(switches=("b",)), ())


def test_candidates_are_valid_and_new_and_never_more_than_the_limit() -> None:
    seen: list[Program] = []

    def keeps(program: Program) -> bool:
        seen.append(program)
        return len(program.ops) > 2 and any(op.region is Region.G for op in program.ops)

    header = Header(memory=8192, vcpus=2)
    giant = canonical_op(Op(OpKind.READ, (3,), Region.G, 400_000))
    program = Program(header, (*generate_program(3, header).ops, giant))
    small = shrink(program, keeps, limit=60)
    assert len(seen) <= 60
    assert len(set(seen)) == len(seen)
    for candidate in seen:
        assert [problem_of(op, candidate.header) for op in candidate.ops] == [None] * len(
            candidate.ops
        )
    assert len(small.ops) == 3
    assert small.header.memory == 8192


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_a_small_limit_returns_what_was_reached(limit: int) -> None:
    program = generate_program(2, Header())
    calls = 0

    def keeps(candidate: Program) -> bool:
        nonlocal calls
        calls += 1
        return False

    assert shrink(program, keeps, limit) == program
    assert calls == limit


def test_the_same_input_gives_the_same_result() -> None:
    program = Program(ops=(*generate_program(4, Header()).ops, Op(DECRYPT, (500, 0))))
    assert shrink(program, many_pages) == shrink(program, many_pages)


def test_a_fixed_point_stays() -> None:
    program = Program(ops=(Op(DECRYPT, (34, 0)),))
    assert shrink(program, many_pages) == program


def test_what_the_predicate_raises_passes_through() -> None:
    def broken(program: Program) -> bool:
        raise RuntimeError("engine")

    with pytest.raises(RuntimeError, match="engine"):
        shrink(generate_program(1, Header()), broken)
