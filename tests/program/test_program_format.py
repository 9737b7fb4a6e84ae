# SPDX-License-Identifier: GPL-2.0-or-later
"""Format 1 is read unchanged for ever: texts and bytes that were written once mean the same.

The files in format1/ are never written anew. A new op appends its line to ops.txt; a line that has
to change means that programs and corpora of users change their meaning: give the op a new number
and a new name instead.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from guestemu.program.binary import decode_ops
from guestemu.program.op_text import format_op
from guestemu.program.ops import SPECS, Op, OpKind
from guestemu.program.program import Header
from guestemu.program.table import RECORD, meaning_of, op_table, record_meaning
from guestemu.program.text import format_text, load_program, parse_text

FORMAT1 = Path(__file__).parent / "format1"
HEADER = Header(memory=4096, vcpus=3)
RESTRICTED = frozenset({OpKind.READ, OpKind.WRITE, OpKind.HYPERCALL})


def test_numbers_and_meanings_of_ops_are_those_of_the_first_release() -> None:
    first, *lines = (FORMAT1 / "ops.txt").read_text().splitlines()
    pinned = {
        int(number): (name, meaning) for number, name, meaning in (line.split() for line in lines)
    }
    now = {int(kind): (spec.name, meaning_of(kind)) for kind, spec in SPECS.items()}
    assert first == f"{RECORD} {record_meaning()}"
    changed = {number for number in pinned if now.get(number) != pinned[number]}
    assert not changed, "these ops changed or went away; their numbers and meanings are for ever"
    assert now.keys() == pinned.keys(), "append the new ops to format1/ops.txt"


def test_every_op_has_its_number_written_out_and_it_fits_a_byte() -> None:
    assert set(SPECS) == set(OpKind)
    assert all(0 <= int(kind) <= 0xFF for kind in OpKind)
    assert len({int(kind) for kind in OpKind}) == len(OpKind.__members__)


def test_bytes_decode_to_the_ops_they_were_written_for() -> None:
    for line in (FORMAT1 / "records.txt").read_text().splitlines():
        data, _, text = line.partition(" ")
        is_restricted = text.startswith("restricted ")  # numbers of no op, on a target of three
        kinds = RESTRICTED if is_restricted else frozenset(OpKind)
        (op,) = decode_ops(bytes.fromhex(data), HEADER, kinds)
        assert format_op(op) == text.removeprefix("restricted ")


def _plain(op: Op) -> str:
    fields = f"{int(op.kind)} {list(op.arguments)} {int(op.region)} {op.page} {op.has_page}"
    return f"{format_op(op)} | {fields} {op.vcpu} {int(op.mode)} {op.cpl} {int(op.instruction)}"


def test_a_text_of_format_1_reads_as_it_did() -> None:
    wanted = msgspec.json.decode((FORMAT1 / "program.json").read_bytes())
    program = load_program(FORMAT1 / "program.txt")
    encode = msgspec.json.encode
    header = msgspec.json.decode(encode(program.header))
    del header["plugin"]  # no part of a file
    for field, default in {"layout": "", "beside": []}.items():
        assert header.pop(field) == default, "a field that came later is at its default"
    assert header == wanted["header"]
    assert [_plain(op) for op in program.ops] == wanted["ops"]
    assert msgspec.json.decode(encode(program.expectations)) == wanted["expectations"]
    assert parse_text(format_text(program), "again") == program


def test_a_table_differs_where_an_op_is_added_or_changes() -> None:
    table = op_table({OpKind.READ, OpKind.WRITE})
    assert table == {
        RECORD: record_meaning(),
        "7": meaning_of(OpKind.WRITE),
        "8": meaning_of(OpKind.READ),
    }
    assert op_table({OpKind.READ}) != table
    assert len({meaning_of(kind) for kind in OpKind}) == len(OpKind)
