# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from program_strategies import FAST, programs

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.x86 import Mode
from guestemu.program.binary import (
    RECORD,
    RECORD_SIZE,
    OpDecoder,
    decode_ops,
    encode_op,
    encode_ops,
)
from guestemu.program.ops import Instruction, Op, OpKind, Region, canonical_op
from guestemu.program.program import Header, Program
from guestemu.program.validity import problem_of

HEADERS = [Header(), Header(vcpus=3), Header(memory=4096, vcpus=2)]


def random_records(count: int = 4) -> st.SearchStrategy[bytes]:
    record = st.binary(min_size=RECORD_SIZE, max_size=RECORD_SIZE)
    return st.builds(
        lambda records, tail: b"".join(records) + tail,
        st.lists(record, max_size=count),
        st.binary(max_size=RECORD_SIZE - 1),
    )


def test_record_is_48_bytes() -> None:
    assert RECORD_SIZE == 48
    assert len(encode_op(Op(OpKind.HYPERCALL))) == 48


@FAST
@given(random_records(), st.sampled_from(HEADERS))
def test_any_bytes_decode_to_valid_ops(data: bytes, header: Header) -> None:
    ops = decode_ops(data, header)
    assert len(ops) == len(data) // RECORD_SIZE
    assert [problem_of(op, header) for op in ops] == [None] * len(ops)
    assert all(op == canonical_op(op) for op in ops)


@FAST
@given(random_records(), st.sampled_from(HEADERS))
def test_what_was_decoded_encodes_to_the_same_ops(data: bytes, header: Header) -> None:
    ops = decode_ops(data, header)
    assert decode_ops(encode_ops(ops), header) == ops


@FAST
@given(programs())
def test_every_valid_program_survives(program: Program) -> None:
    assert decode_ops(encode_ops(program.ops), program.header) == program.ops


@FAST
@given(random_records(), st.sets(st.sampled_from(OpKind), min_size=1))
def test_only_allowed_kinds_come_out(data: bytes, kinds: set[OpKind]) -> None:
    allowed = frozenset(kinds)
    ops = decode_ops(data, Header(), allowed)
    assert {op.kind for op in ops} <= allowed
    assert decode_ops(encode_ops(ops), Header(), allowed) == ops


def test_a_restricted_target_reads_the_bytes_of_an_allowed_kind_unchanged() -> None:
    op = canonical_op(Op(OpKind.READ, (8,), Region.V, 5))
    assert decode_ops(encode_op(op), Header(), frozenset({OpKind.READ, OpKind.WRITE})) == (op,)


def test_a_target_without_kinds_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one kind"):
        OpDecoder(1, False, frozenset())


def test_a_short_tail_is_ignored() -> None:
    op = canonical_op(Op(OpKind.CPU_OFFLINE))
    assert decode_ops(encode_op(op) + b"\xff" * (RECORD_SIZE - 1), Header()) == (op,)
    assert decode_ops(b"", Header()) == ()


def test_zeros_are_a_plain_hypercall_12() -> None:
    (op,) = decode_ops(bytes(RECORD_SIZE), Header())
    assert (op.kind, op.arguments[0], op.mode, op.cpl) == (OpKind.HYPERCALL, 12, Mode.LONG64, 0)


def test_region_g_needs_4_gib() -> None:
    record = encode_op(Op(OpKind.READ, (0,), Region.G, 1))
    assert decode_ops(record, Header(memory=4096))[0].region is Region.G
    assert decode_ops(record, Header(memory=4095))[0].region is not Region.G


def test_real_mode_has_only_cpl_0() -> None:
    modes = {
        (op.mode, op.cpl)
        for byte in range(256)
        for op in decode_ops(RECORD.pack(OpKind.HYPERCALL, byte, 0, 0, 0, *(0,) * 5), Header())
    }
    assert (Mode.REAL16, 0) in modes
    assert {cpl for mode, cpl in modes if mode is Mode.REAL16} == {0}
    assert {cpl for mode, cpl in modes if mode is Mode.COMPAT32} == {0, 1, 2, 3}


def test_raw_arguments_stay_unsigned_64_bit() -> None:
    op = canonical_op(
        Op(
            OpKind.HYPERCALL,
            (0x1_0000_000C, U64_MASK, 1 << 63, 0xDEAD_BEEF_CAFE_F00D, 1),
            instruction=Instruction.VMCALL,
        )
    )
    assert decode_ops(encode_op(op), Header()) == (op,)


@pytest.mark.parametrize("kind", [OpKind.HYPERCALL, OpKind.SET_MEMORY_DECRYPTED])
def test_small_page_counts_dominate_and_edges_appear(kind: OpKind) -> None:
    position = 2 if kind is OpKind.HYPERCALL else 0
    counts = []
    for byte in range(256):
        arguments = [0] * 5
        arguments[position] = byte
        (op,) = decode_ops(RECORD.pack(kind, 0, 0, 0, 0, *arguments), Header())
        counts.append(op.arguments[position])
    assert sum(1 for count in counts if count <= 34) > 200
    assert {0, 1, 2, 33, 34, 511, 512, 513} <= set(counts)
    register_edges = {1 << 19, 1 << 20, U64_MASK}
    assert (register_edges <= set(counts)) is (kind is OpKind.HYPERCALL)


def test_a_page_outside_its_region_becomes_one_inside() -> None:
    for page in (64, 1024, 0xFFFF_FFFF):
        record = RECORD.pack(OpKind.READ, 0, Region.V, 0, page, *(0,) * 5)
        assert 0 <= decode_ops(record, Header())[0].page < 64


def test_a_page_inside_its_region_stays() -> None:
    record = RECORD.pack(OpKind.READ, 0, Region.D, 0, 777, *(0,) * 5)
    assert decode_ops(record, Header())[0].page == 777


def test_arguments_left_out_get_their_defaults() -> None:
    assert decode_ops(encode_op(Op(OpKind.SET_MEMORY_ENCRYPTED)), Header())[0].arguments == (1, 0)
