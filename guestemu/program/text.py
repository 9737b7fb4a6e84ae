# SPDX-License-Identifier: GPL-2.0-or-later
"""The text form of a program: what people read, review and commit.

    guestemu-program 1
    # Why this program is kept.
    guest snippet:6.1
    host map-gpa-range
    ...
    ---
    set_memory_decrypted D[3] pages=2
    hypercall nr=12 a0=D[0]+0x0 a1=1 a2=0x10 a3=0

    expect outcome ok
    expect result 0 at 1

The first line names the format and its version. Then the header (`header_text`), `---`, one op a
line (`op_text`) and the expectations (`expectation_text`). Blank lines and comments may stand
anywhere after the first line; a program does not keep them.
Reading is strict: whatever it does not know is an `InputError` with file, line and remedy, because
a misread expectation would be a test that tests nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from guestemu.abi.errors import InputError
from guestemu.program.expectation_text import KEYWORD, format_expectation, parse_expectation
from guestemu.program.header_text import HeaderReader, format_header
from guestemu.program.lexer import Place, Word, shown, split_words
from guestemu.program.op_text import format_op, parse_op
from guestemu.program.ops import Op
from guestemu.program.program import FORMAT_VERSION, Expectation, Header, Program

MAGIC: Final = f"guestemu-program {FORMAT_VERSION}"
MAX_SIZE: Final = 4 << 20
"""Bytes of the largest file read."""

_FORMAT: Final = "guestemu-program"
_SEPARATOR: Final = "---"


def _check_magic(line: str, place: Place) -> None:
    words = line.split()
    if line.rstrip() == MAGIC:
        return
    if len(words) == 2 and words[0] == _FORMAT and words[1].isascii() and words[1].isdigit():
        raise place.error(
            f"format version {shown(words[1])}, this guestemu reads {FORMAT_VERSION}; "
            "use the guestemu that wrote it"
        )
    raise place.error(f"{shown(line.strip())} is not a program; its first line must be: {MAGIC}")


def parse_text(text: str, name: str) -> Program:
    """The program in `text`; `name` is the file's name for messages.

    Raises `InputError` ("NAME:LINE: what; remedy") for anything that is not a complete, valid
    program.
    """
    if len(text) > MAX_SIZE:
        raise InputError(f"{name}: larger than {MAX_SIZE >> 20} MiB; split the program")
    lines = text.split("\n")
    _check_magic(lines[0], Place(name, 1))
    reader = HeaderReader()
    header: Header | None = None
    ops: list[Op] = []
    expectations: list[Expectation] = []
    for number, line in enumerate(lines[1:], 2):
        place = Place(name, number)
        words = split_words(line, place)
        if not words:
            continue
        if header is None:
            if words == [Word(_SEPARATOR)]:
                header = reader.finish(place)
            else:
                reader.take(words, place)
        elif words[0] == Word(KEYWORD):
            expectations.append(parse_expectation(words, place, len(ops)))
        elif expectations:
            raise place.error("an op after an expectation; put the ops first")
        else:
            ops.append(parse_op(words, place, header))
    if header is None:
        raise Place(name, len(lines)).error(f"the header does not end; add a line {_SEPARATOR}")
    return Program(header, tuple(ops), tuple(expectations))


def format_text(program: Program, comment: str = "") -> str:
    """`program` as text that `parse_text` reads back equal (ops in their canonical form).

    `comment` goes under the first line, each of its lines behind `# `.
    """
    lines = [MAGIC]
    lines += [f"# {line}".rstrip() for line in comment.splitlines()]
    lines += format_header(program.header)
    lines.append(_SEPARATOR)
    lines += map(format_op, program.ops)
    if program.expectations:
        lines.append("")
        lines += map(format_expectation, program.expectations)
    return "\n".join(lines) + "\n"


def load_program(path: Path | str) -> Program:
    """The program in file `path`. Raises `InputError` when it cannot be read or is none."""
    name = str(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_SIZE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{name}: {reason or error}; give the path of a .prog file") from error
    return parse_bytes(data, name)


def parse_bytes(data: bytes, name: str) -> Program:
    """As `parse_text`, of UTF-8 bytes; other bytes are an `InputError` with their line."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Place(name, line).error(
            f"byte {data[error.start]:#04x} is not UTF-8; a program is a text file"
        ) from error
    return parse_text(text, name)
