# SPDX-License-Identifier: GPL-2.0-or-later
"""Words and numbers of the text form, and where in a file they stand.

A line is words separated by blanks; a word is bare printable ASCII or a JSON string in double
quotes; a word that begins with `#` starts a comment.
"""

from __future__ import annotations

import json
import re
from typing import Final

import msgspec

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.errors import InputError
from guestemu.abi.names import nearest as nearest

_WORD: Final = re.compile(
    r'[ \t\r]*(?:(?P<comment>#)|(?P<quoted>"(?:[^"\\]|\\.)*")(?=[ \t\r]|$)|(?P<bare>[!$-~][!#-~]*))'
)
_BLANKS: Final = " \t\r"
_BLANK: Final = re.compile(r"[ \t\r]*$")
_BARE: Final = re.compile(r"[!$-~][!#-~]*")
_NUMBER: Final = re.compile(
    r"(?P<minus>-?)(?:0[xX](?P<hex>[0-9a-fA-F]{1,16})|(?P<dec>[0-9]{1,20}))"
)
_SHOWN: Final = 40
_NEGATIVE_SHOWN: Final = 4096


class Word(msgspec.Struct, frozen=True):
    """One word of a line; `quoted`: a string in quotes, not a bare word."""

    text: str
    quoted: bool = False


class Place(msgspec.Struct, frozen=True):
    """A line of an input, for messages: `name` is the file's name, `line` counts from 1."""

    name: str
    line: int

    def error(self, what: str) -> InputError:
        """The error to raise for this line; `what` says what is wrong and what to do."""
        return InputError(f"{self.name}:{self.line}: {what}")


def shown(text: str) -> str:
    """`text` for a message: quoted, ASCII, on one line, cut to 40 characters."""
    return ascii(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")


def split_words(line: str, place: Place) -> list[Word]:
    """The words of `line` up to a comment. Raises `InputError` on a character no word may have."""
    words: list[Word] = []
    position = 0
    while not _BLANK.match(line, position):
        match = _WORD.match(line, position)
        if match is None:
            rest = line[position:].lstrip(_BLANKS)
            raise place.error(
                f"column {len(line) - len(rest) + 1}: {shown(rest)} is not a word; "
                'write printable ASCII or a complete "string"'
            )
        if match["comment"]:
            break
        if match["quoted"]:
            words.append(Word(_unquote(match["quoted"], place), quoted=True))
        else:
            words.append(Word(match["bare"]))
        position = match.end()
    return words


def _unquote(text: str, place: Place) -> str:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise place.error(f"{shown(text)} is not a JSON string; check its escapes") from error
    assert isinstance(value, str)
    return value


def quote(text: str, reserved: tuple[str, ...] = ()) -> str:
    """`text` as a word: bare where possible, a JSON string otherwise or when in `reserved`."""
    if _BARE.fullmatch(text) and text not in reserved:
        return text
    return json.dumps(text)


def parse_number(text: str, place: Place, what: str) -> int:
    """The unsigned 64-bit value of a decimal, 0x-hexadecimal or negative number.

    Raises `InputError` naming `what` when `text` is none or does not fit 64 bits.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise place.error(f"{what}: {shown(text)} is no 64-bit number; write 12, 0xc or -1")
    value = int(match["hex"], 16) if match["hex"] else int(match["dec"])
    if match["minus"]:
        value = -value
    if not -(1 << 63) <= value <= U64_MASK:
        raise place.error(f"{what}: {shown(text)} does not fit 64 bits; write 12, 0xc or -1")
    return value & U64_MASK


def format_decimal(value: int) -> str:
    """`value` for a count: decimal below 2^20, else as `format_hex`."""
    return str(value) if value < 1 << 20 else format_hex(value)


def format_hex(value: int) -> str:
    """`value` for an address or a bit set: hexadecimal, negative when just below 2^64."""
    if value > U64_MASK - _NEGATIVE_SHOWN:
        return str(value - U64_MASK - 1)
    return str(value) if value < 10 else hex(value)
