# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes of an input that readers have to live with, of text and of bytes; all by one seed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

NUMBER = re.compile(rb"0x[0-9a-fA-F]+|\d+")
NASTY = (
    *(b"\x1b[2J\x1b]0;owned\x07", b"\x9b31m", b"\xc2\x9b31m", b"\xe2\x80\xae", b"\xff\xfe", b"\0"),
    *(b"\nok: 0 violations\n", b"../../../etc/passwd", b"/dev/zero", b"%s%n", b"\xed\xb2\x80"),
    *(b'"\\ud800"', b"[" * 2000, b'{"a":' * 500, b"'; --", b"\r", b"\x7f", b"=cmd|' /C'!A0"),
)
NUMBERS = (
    *(b"0", b"-1", b"4294967296", b"18446744073709551615", b"18446744073709551616", b"1e309"),
    *(b"9" * 4400, b"0x" + b"f" * 17, b"0x" + b"f" * 5000, b"00", b"0x", b"nan", b"1.5"),
    *(b"9223372036854775808", b"-9223372036854775809", b"2147483648", b"65536"),
)


def _at(chance: random.Random, data: bytes) -> int:
    return chance.randrange(len(data) + 1)


def _flip(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _overwrite(chance: random.Random, data: bytes) -> bytes:
    place, size = _at(chance, data), chance.choice((1, 2, 4, 8))
    value = chance.choice((0, (1 << 8 * size) - 1, 1 << 8 * size - 1, chance.getrandbits(8 * size)))
    order = chance.choice(("little", "big"))
    return data[:place] + value.to_bytes(size, order) + data[place + size :]


def _insert(chance: random.Random, data: bytes) -> bytes:
    place = _at(chance, data)
    return data[:place] + chance.choice(NASTY) + data[place:]


def _number(chance: random.Random, data: bytes) -> bytes:
    found = list(NUMBER.finditer(data))
    if not found:
        return _overwrite(chance, data)
    match = chance.choice(found)
    return data[: match.start()] + chance.choice(NUMBERS) + data[match.end() :]


def _cut(chance: random.Random, data: bytes) -> bytes:
    return data[: _at(chance, data)]


def _delete(chance: random.Random, data: bytes) -> bytes:
    place = _at(chance, data)
    return data[:place] + data[place + chance.randint(1, 64) :]


def _repeat(chance: random.Random, data: bytes) -> bytes:
    first, second = sorted((_at(chance, data), _at(chance, data)))
    part = data[first : min(second, first + 4096)]
    return data[:second] + part * chance.choice((1, 2, 50)) + data[second:]


def _lines(chance: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    first, second = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[first], lines[second] = lines[second], lines[first]
    if chance.random() < 0.5:
        lines.insert(first, lines[second])
    return b"\n".join(lines)


MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    *(_flip, _overwrite, _insert, _insert, _number, _number, _cut, _delete, _repeat, _lines),
)


def mutated(chance: random.Random, data: bytes) -> bytes:
    """`data` after one to four changes."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        data = chance.choice(MUTATIONS)(chance, data)
    return data
