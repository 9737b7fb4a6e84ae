# SPDX-License-Identifier: GPL-2.0-or-later
"""Generator, mutator and crossover: valid, deterministic, and they reach what matters."""

from __future__ import annotations

import random

import pytest
from drawn import crossover_ops, generate_program, mutate_ops
from hypothesis import given
from hypothesis import strategies as st
from program_strategies import FAST

from guestemu.abi.addresses import U64_MASK
from guestemu.campaign.mutator import Mutator
from guestemu.campaign.snp_ranges import limit_psc_ops, limit_snp_ops
from guestemu.machine.ap_creation import KVM_VCPUS
from guestemu.program.binary import ALL_KINDS, RECORD_SIZE, decode_ops, encode_ops
from guestemu.program.generate import FLOWS, HOSTILE_FLOWS, flows_of, generate_ops
from guestemu.program.mutate import (
    Draws,
    crossover_bytes,
    mutate_bytes,
)
from guestemu.program.ops import Op, OpKind, Region, canonical_op
from guestemu.program.program import Header
from guestemu.program.text import format_text, parse_text
from guestemu.program.validity import problem_of

HEADERS = [Header(), Header(vcpus=3), Header(memory=4096, vcpus=2)]
seeds = st.integers(0, 2**64 - 1)


@FAST
@given(seeds, st.sampled_from(HEADERS), st.integers(0, 30))
def test_generated_programs_are_valid_in_both_forms(seed: int, header: Header, length: int) -> None:
    program = generate_program(seed, header, length=length)
    assert len(program.ops) == length
    assert [problem_of(op, header) for op in program.ops] == [None] * length
    assert parse_text(format_text(program), "p") == program
    assert decode_ops(encode_ops(program.ops), header) == program.ops


def test_a_seed_decides_the_program() -> None:
    assert generate_program(7, Header()) == generate_program(7, Header())
    assert generate_program(7, Header()) != generate_program(8, Header())


@pytest.mark.parametrize("kinds", [{OpKind.HYPERCALL}, {OpKind.DMA_ALLOC, OpKind.DMA_FREE}])
def test_only_the_targets_kinds_are_generated(kinds: set[OpKind]) -> None:
    ops = generate_ops(random.Random(1), Header(), frozenset(kinds), 200)
    assert {op.kind for op in ops} == kinds


def test_many_programs_reach_every_kind_region_and_the_known_edges() -> None:
    ops = [op for seed in range(8000) for op in generate_program(seed, HEADERS[2]).ops]
    assert {op.kind for op in ops} == ALL_KINDS
    assert {op.region for op in ops} == set(Region)
    hypercalls = [op for op in ops if op.kind is OpKind.HYPERCALL]
    counts = {op.arguments[2] for op in hypercalls}
    assert {0, 1, 2, 33, 34, 511, 512, 513, 1 << 19, 1 << 20, U64_MASK} <= counts
    assert {0, 0x10, 0x1, 0x12, 0x30, U64_MASK} <= {op.arguments[3] for op in hypercalls}
    addresses = {op.arguments[1] for op in hypercalls if not op.has_page}
    assert {0, 1, 0x1000, U64_MASK - 0xFFF} <= addresses
    msrs = {op.arguments[0] for op in ops if op.kind is OpKind.WRMSR}
    assert {0x4B564D07, 0x4B564D08, 0x4B564D09, 0x4B564D00, 0x4B564DFF} <= msrs
    sizes = {op.arguments[0] for op in ops if op.kind is OpKind.EARLY_SET_MEMORY_DECRYPTED}
    assert {4095, 4096, 4097} <= sizes


def test_most_programs_set_the_platform_up_first() -> None:
    first = [generate_program(seed, Header()).ops[0].kind for seed in range(100)]
    assert first.count(OpKind.INIT_PLATFORM) > 60


@pytest.mark.parametrize(
    "flow", [*FLOWS, *HOSTILE_FLOWS], ids=lambda flow: flow.__name__.strip("_")
)
def test_flows_are_valid_ops(flow: object) -> None:
    assert callable(flow)
    for seed in range(50):
        for op in flow(random.Random(seed), Header()):
            assert problem_of(canonical_op(op), Header()) is None


def test_an_attack_is_on_a_page_that_is_converted() -> None:
    kinds = frozenset(
        {OpKind.HYPERVISOR_PAGE, OpKind.SET_MEMORY_ENCRYPTED, OpKind.SET_MEMORY_DECRYPTED}
    )
    (attacked,) = set(flows_of(kinds)) - set(flows_of(ALL_KINDS))
    places = set()
    for seed in range(60):
        ops = attacked(random.Random(seed), Header())
        (at,) = (at for at, op in enumerate(ops) if op.kind is OpKind.HYPERVISOR_PAGE)
        there, back = (op for op in ops if op.kind in kinds - {OpKind.HYPERVISOR_PAGE})
        assert (there.region, there.page, there.arguments[0]) == (
            ops[at].region,
            back.page,
            back.arguments[0],
        )
        assert there.page <= ops[at].page < there.page + there.arguments[0]
        waits = bool(at) and ops[at - 1].kind is OpKind.HYPERVISOR_WAIT
        places.add((at - waits, waits))
    assert {at for at, _ in places} == {0, 1, 2}  # before, between and after the conversions
    assert {waits for _, waits in places} == {False, True}


def test_a_hostile_hypervisors_programs_become_attacks_at_times() -> None:
    kinds = frozenset({OpKind.HYPERVISOR_PAGE, OpKind.SET_MEMORY_DECRYPTED, OpKind.READ})
    read = encode_ops([Op(OpKind.READ, (0,))])
    results = [mutate_bytes(read, 8 * RECORD_SIZE, seed, Header(), kinds) for seed in range(60)]
    shapes = [[op.kind for op in decode_ops(data, Header(), kinds)] for data in results]
    attacks = [shape for shape in shapes if sorted(shape) == sorted(kinds)]
    assert 35 < len(attacks) < 57
    assert len(mutate_bytes(read, RECORD_SIZE, 1, Header(), kinds)) <= RECORD_SIZE


@FAST
@given(st.binary(max_size=5 * RECORD_SIZE), seeds, st.integers(0, 400), st.sampled_from(HEADERS))
def test_mutated_bytes_are_whole_records_within_the_size(
    data: bytes, seed: int, max_size: int, header: Header
) -> None:
    mutated = mutate_bytes(data, max_size, seed, header)
    assert mutated == mutate_bytes(data, max_size, seed, header)
    assert len(mutated) <= max_size
    assert len(mutated) % RECORD_SIZE == 0
    assert bool(mutated) is (max_size >= RECORD_SIZE)


@FAST
@given(seeds, seeds, st.sampled_from(HEADERS))
def test_mutated_ops_are_valid(program_seed: int, seed: int, header: Header) -> None:
    ops = generate_program(program_seed, header).ops
    mutated = mutate_ops(ops, header, seed, max_ops=14)
    assert 1 <= len(mutated) <= 14
    assert [problem_of(op, header) for op in mutated] == [None] * len(mutated)


def test_mutation_changes_most_programs() -> None:
    ops = generate_program(1, Header()).ops
    changed = sum(mutate_ops(ops, Header(), seed) != ops for seed in range(200))
    assert changed > 170


def test_mutation_stays_inside_the_targets_kinds() -> None:
    kinds = frozenset({OpKind.SET_MEMORY_DECRYPTED, OpKind.SET_MEMORY_ENCRYPTED})
    ops: tuple[Op, ...] = ()
    for seed in range(200):
        ops = mutate_ops(ops, Header(), seed, kinds)
        assert {op.kind for op in ops} <= kinds


def test_mutation_finds_the_inverse_of_a_conversion() -> None:
    decrypt = canonical_op(Op(OpKind.SET_MEMORY_DECRYPTED, (40,), Region.D, 9))
    encrypt = canonical_op(Op(OpKind.SET_MEMORY_ENCRYPTED, (40,), Region.D, 9))
    assert any(mutate_ops((decrypt,), Header(), seed) == (decrypt, encrypt) for seed in range(500))


def test_mutation_reaches_expensive_edges_too() -> None:
    op = canonical_op(Op(OpKind.SET_MEMORY_DECRYPTED, (1,), Region.D, 0))
    found = {
        mutated.arguments[0]
        for seed in range(3000)
        for mutated in mutate_ops((op,), Header(), seed)
        if mutated.kind is op.kind
    }
    assert {33, 34, 1 << 19, 1 << 20} <= found


@FAST
@given(st.binary(max_size=200), st.binary(max_size=200), seeds, st.integers(0, 400))
def test_crossover_is_made_of_its_parents_records(
    first: bytes, second: bytes, seed: int, max_size: int
) -> None:
    child = crossover_bytes(first, second, max_size, seed)
    assert child == crossover_bytes(first, second, max_size, seed)
    assert len(child) <= max_size
    parents = {
        parent[offset : offset + RECORD_SIZE]
        for parent in (first, second)
        for offset in range(0, len(parent) - RECORD_SIZE + 1, RECORD_SIZE)
    }
    records = [child[offset : offset + RECORD_SIZE] for offset in range(0, len(child), RECORD_SIZE)]
    assert set(records) <= parents


def test_crossover_mixes_two_programs() -> None:
    first = (canonical_op(Op(OpKind.CPU_OFFLINE)),) * 4
    second = (canonical_op(Op(OpKind.INIT_PLATFORM)),) * 4
    children = [crossover_ops(first, second, Header(), seed) for seed in range(50)]
    assert any({op.kind for op in child} == {first[0].kind, second[0].kind} for child in children)
    assert all(len(child) <= 8 for child in children)


def test_draws_spread_over_their_range() -> None:
    draws = Draws(0)
    assert {draws.below(16) for _ in range(400)} == set(range(16))
    assert Draws(1).next() != Draws(2).next()


@pytest.mark.parametrize("change", ["mutate_bytes", "uncommon"])
def test_edges_of_a_page_state_request_are_tried(change) -> None:
    """KVM takes 253 entries and copies 2032 bytes, of which the header has 8."""
    kinds = frozenset({OpKind.PSC})
    start = encode_ops([Op(OpKind.PSC, (1, 0, 0, 0, 2032))])
    ours = Mutator(Header(), kinds)
    headers, scratches, lengths = set(), set(), set()
    for seed in range(1, 4000):
        if change == "uncommon":
            data = ours.uncommon(start, RECORD_SIZE, seed * 2 + 1)
        else:
            data = mutate_bytes(start, RECORD_SIZE, seed, Header(), kinds)
        for op in decode_ops(data, Header(), kinds):
            headers.add(op.arguments[2])
            scratches.add(op.arguments[3])
            lengths.add(op.arguments[4])
    assert {253, 253 << 16} <= headers
    assert {2031, 2033} <= scratches
    assert {7, 2033, 0x10001} <= lengths


def test_requests_about_vmsas_are_few_of_a_kind() -> None:
    adjust = Op(OpKind.RMPADJUST, (1 << 40 | 0x1_0301,))
    create = Op(OpKind.AP_CREATION, (1000, 200, 1 << 50))
    known = Op(OpKind.AP_CREATION, (2, 3, 1))
    limited = limit_psc_ops((adjust, create, known), True)
    assert limited[0].arguments == (0x1_0301,)
    request, apic, features = limited[1].arguments
    assert request <= 3
    assert apic <= KVM_VCPUS
    assert features == 1 << 50
    assert limited[2] is known
    assert limit_snp_ops(limited, True) == limited
