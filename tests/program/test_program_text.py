# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from program_strategies import FAST, programs

from guestemu.abi.errors import InputError
from guestemu.abi.x86 import Mode
from guestemu.program.ops import Instruction, Op, OpKind, Region, canonical_op
from guestemu.program.program import Expectation, Header, Program, SevKind
from guestemu.program.text import (
    MAX_SIZE,
    format_text,
    load_program,
    parse_bytes,
    parse_text,
)

EXAMPLE = """\
guestemu-program 1
# Two pages shared, then a call from 32-bit user space.
# Kept because of its errno.
guest snippet:5.17
host map-gpa-range
switches attrs-bit4 no-wrap
sev es
cbit 47
memory 4096
vcpus 2
seed 0x10
budget 5000
coherent no
---
set_memory_decrypted D[3] pages=2   # trailing comment

hypercall nr=12 a0=D[0]+0x10 a1=1 a2=0x10 a3=0 mode=compat32 cpl=3 insn=vmcall vcpu=1
hypercall a0=0x1000 a1=-1
wrmsr msr=0x4b564d08 value=1
expect outcome ok
expect hypercalls 3
expect result -1 at 1
expect violation status-matches-pte at 0
expect violation none
expect exception 13 at 3
expect trace_hash 00ff
"""


def test_the_example_means_what_it_says() -> None:
    program = parse_text(EXAMPLE, "a.prog")
    assert program.header == Header(
        guest="snippet:5.17",
        host="map-gpa-range",
        switches=("attrs-bit4", "no-wrap"),
        sev=SevKind.SEV_ES,
        cbit=47,
        memory=4096,
        vcpus=2,
        seed=16,
        budget=5000,
        coherent=False,
    )
    assert program.ops == (
        Op(OpKind.SET_MEMORY_DECRYPTED, (2, 0), Region.D, 3),
        Op(
            OpKind.HYPERCALL,
            (12, 0x10, 1, 0x10, 0),
            has_page=True,
            vcpu=1,
            mode=Mode.COMPAT32,
            cpl=3,
            instruction=Instruction.VMCALL,
        ),
        Op(OpKind.HYPERCALL, (12, 0x1000, 2**64 - 1, 0, 0)),
        Op(OpKind.WRMSR, (0x4B564D08, 1)),
    )
    assert program.expectations == (
        Expectation("outcome", "ok"),
        Expectation("hypercalls", "3"),
        Expectation("result", "-1", 1),
        Expectation("violation", "status-matches-pte", 0),
        Expectation("violation", "none"),
        Expectation("exception", "13", 3),
        Expectation("trace_hash", "00ff"),
    )


def test_the_writer_gives_every_header_field_and_short_ops() -> None:
    ops = (
        Op(OpKind.SET_MEMORY_DECRYPTED, (2,), Region.D, 3),
        Op(OpKind.HYPERCALL, (12, 0, 1, 0x10, 0), has_page=True, mode=Mode.COMPAT32, cpl=3, vcpu=1),
        Op(OpKind.ANSWER, (2**64 - 22,)),
    )
    text = format_text(Program(Header(vcpus=2), ops, (Expectation("result", "0", 1),)), "Why.")
    assert text == (
        "guestemu-program 1\n# Why.\nguest snippet:6.1\nhost map-gpa-range\nswitches none\n"
        "sev sev\ncbit 39\nmemory 64\nvcpus 2\nseed 0\nbudget 1000000\ncoherent yes\n---\n"
        "set_memory_decrypted D[3] pages=2\n"
        "hypercall nr=12 a0=D[0]+0x0 a1=1 a2=0x10 a3=0 mode=compat32 cpl=3 vcpu=1\n"
        "answer value=-22\n\nexpect result 0 at 1\n"
    )


@FAST
@given(programs())
def test_round_trip_both_ways(program: Program) -> None:
    text = format_text(program)
    assert parse_text(text, "p") == program
    assert format_text(parse_text(text, "p")) == text


def refusal(data: bytes) -> str:
    """The message with which `data` is refused, empty when it is a program."""
    try:
        parse_bytes(data, "junk.prog")
    except InputError as error:
        return str(error)
    return ""


@FAST
@given(st.binary(max_size=300), st.integers(0, 40), st.booleans())
def test_any_bytes_are_a_program_or_one_line_of_error(junk: bytes, line: int, keep: bool) -> None:
    lines = EXAMPLE.encode().split(b"\n")
    lines.insert(min(line, len(lines)), junk)
    data = b"\n".join(lines) if keep else junk
    message = refusal(data)
    assert message == "" or message.startswith("junk.prog:")
    assert "\n" not in message
    assert message.isascii()
    assert len(message) < 400


@FAST
@given(st.text(alphabet='0123456789abcxDLVG[]+-= #"\\atoexpc\t\0é', max_size=60))
def test_any_op_line_parses_or_names_its_line(line: str) -> None:
    message = refusal(f"guestemu-program 1\n---\nhypercall {line}".encode())
    assert message == "" or message.startswith("junk.prog:3: ")


HEAD = "guestemu-program 1\n"
BODY = HEAD + "---\n"


ERRORS = [
    ("", "p:1: '' is not a program; its first line must be: guestemu-program 1"),
    ("guestemu-program 2\n", "p:1: format version '2', this guestemu reads 1; use the"),
    ("guest snippet:6.1\n---\n", "p:1: 'guest snippet:6.1' is not a program"),
    (HEAD + "gest x\n", "p:2: no header field 'gest'; did you mean guest?"),
    (HEAD + "cbit 39\n\ncbit 39\n", "p:4: cbit was given on line 2 already; keep one"),
    (HEAD + "cbit\n---\n", "p:2: cbit takes one value, 0 are given"),
    (HEAD + "cbit 4 7\n---\n", "p:2: cbit takes one value, 2 are given"),
    (HEAD + "cbit 64\n---\n", "p:2: cbit 64 is out of range; use 32 to 51"),
    (HEAD + "cbit thirty\n---\n", "p:2: cbit: 'thirty' is no 64-bit number"),
    (HEAD + "cbit 32\nmemory 8192\n---\n", "p:3: memory 8192 MiB reaches the C-bit"),
    (HEAD + "vcpus 0\n---\n", "p:2: vcpus 0 is out of range; use 1 to 64"),
    (HEAD + "sev vbs\n---\n", "p:2: sev 'vbs'; use sev, es, snp"),
    (HEAD + "coherent 1\n---\n", "p:2: coherent '1'; use yes or no"),
    (HEAD + "switches\n---\n", "p:2: switches takes names separated by blanks, or none"),
    (HEAD + "switches a a\n---\n", "p:2: a switch is named twice; keep one"),
    (HEAD + "cbit 39\n", "p:3: the header does not end; add a line ---"),
    (BODY + "set_memory_decypted D[1]", "p:3: no op 'set_memory_decypted'; did you mean set_"),
    (BODY + "set_memory_decrypted pages=1", "p:3: set_memory_decrypted needs a page; write"),
    (BODY + "unmap Q[1]", "p:3: no region Q; regions are D, L, V, G"),
    (BODY + "unmap V[64]", "p:3: page 64 of region V; use 0 to 63"),
    (BODY + "unmap G[0]", "p:3: region G needs memory of at least 4096 MiB"),
    (BODY + "unmap D[0] pages=1", "p:3: this op has no 'pages'; use one of vcpu"),
    (BODY + "rdmsr msr=1 msr=2", "p:3: msr is given twice; keep one"),
    (BODY + "rdmsr 0x10", "p:3: '0x10' is not name=value"),
    (BODY + "rdmsr msr=0x1ffffffff", "p:3: msr=0x1ffffffff is out of range; use 0 to"),
    (BODY + "rdmsr msr=" + "9" * 5000, "p:3: msr: '99999"),
    (BODY + "answer value=18446744073709551616", "p:3: value: '18446744073709551616' does not"),
    (BODY + "rdmsr vcpu=1", "p:3: vcpu 1 of 1; name a vCPU below the header's vcpus"),
    (BODY + "rdmsr cpl=4", "p:3: cpl 4; use 0 to 3"),
    (BODY + "rdmsr mode=real16 cpl=3", "p:3: cpl 3 in real16; real mode has only cpl=0"),
    (BODY + "rdmsr mode=long", "p:3: mode 'long'; use long64, compat32, prot32, real16"),
    (BODY + "hypercall insn=int3", "p:3: insn 'int3'; use vmmcall, vmcall"),
    (BODY + "read D[0] offset=4096", "p:3: offset=0x1000 is out of range; use 0 to 0xfff"),
    (BODY + "cpu_offline \0", "p:3: column 13: '\\x00' is not a word"),
    (BODY + 'cpu_offline "open', "p:3: column 13: '\"open' is not a word"),
    (BODY + "expect outcome", "p:3: an expectation is: expect NAME VALUE"),
    (BODY + "expect outcme ok", "p:3: no expectation 'outcme'; did you mean outcome?"),
    (BODY + "expect result 0", "p:3: result is about one op; add: at OP"),
    (BODY + "expect result 0 at 0", "p:3: there is no op 0; the program has 0"),
    (BODY + "expect hypercalls 3 at 0", "p:3: hypercalls is about the whole run; remove"),
    (BODY + "expect hypercalls many", "p:3: hypercalls 'many'; give a decimal count"),
    (BODY + f"expect hypercalls {'9' * 4400}", "p:3: hypercalls '999"),
    (BODY + f"expect result {'9' * 4400} at 0", "p:3: result '999"),
    (BODY + f"expect value 0x{'9' * 4400} at 0", "p:3: value '0x999"),
    (BODY + f"expect exception {'9' * 4400} at 0", "p:3: exception '999"),
    (BODY + "expect result 010 at 0", "p:3: result '010'; give a 64-bit number"),
    (BODY + "expect outcome ok\ncpu_offline", "p:4: an op after an expectation; put the ops"),
]


@pytest.mark.parametrize(("text", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_errors_name_the_line_and_the_remedy(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_text(text, "p")
    assert str(caught.value).startswith(message)


def test_bytes_that_are_not_utf8_are_named_with_their_line() -> None:
    with pytest.raises(InputError, match=r"p:2: byte 0xff is not UTF-8"):
        parse_bytes(b"guestemu-program 1\n# \xff\n", "p")


def test_a_file_too_large_is_refused_before_it_is_read_through(tmp_path: Path) -> None:
    path = tmp_path / "large.prog"
    path.write_bytes(HEAD.encode() + b"#" * MAX_SIZE)
    with pytest.raises(InputError, match="larger than 4 MiB"):
        load_program(path)


def test_a_huge_line_of_blanks_is_one_blank_line() -> None:
    assert parse_text(BODY + " " * 1_000_000, "p").ops == ()


def test_windows_line_ends_are_blanks() -> None:
    assert parse_text(EXAMPLE.replace("\n", "\r\n"), "p") == parse_text(EXAMPLE, "p")


def test_a_switch_called_none_differs_from_no_switch() -> None:
    program = Program(Header(switches=("none",)))
    assert 'switches "none"\n' in format_text(program)
    assert parse_text(format_text(program), "p") == program


def test_op_fields_that_the_kind_does_not_use_are_dropped() -> None:
    op = Op(OpKind.CPU_OFFLINE, (1, 2), Region.L, 7, True, 0, Mode.PROT32, 3, Instruction.VMCALL)
    program = parse_text(format_text(Program(ops=(op,))), "p")
    assert program.ops == (Op(OpKind.CPU_OFFLINE),) == (canonical_op(op),)


def test_load_program(tmp_path: Path) -> None:
    path = tmp_path / "a.prog"
    path.write_text(EXAMPLE)
    assert load_program(path) == parse_text(EXAMPLE, "a")


@pytest.mark.parametrize("name", ["absent.prog", ".", "nul\0.prog"])
def test_what_cannot_be_read_is_an_input_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"give the path of a \.prog file"):
        load_program(tmp_path / name)


def test_a_comment_is_written_on_top() -> None:
    comment = "Two pages shared, then a call from 32-bit user space.\n\nKept because of its errno."
    program = parse_text(EXAMPLE, "p")
    text = format_text(program, comment)
    assert text.splitlines()[1:4] == [f"# {line}".rstrip() for line in comment.splitlines()]
    assert parse_text(text, "p") == program
    assert "#" not in format_text(program)
