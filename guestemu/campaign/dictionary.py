# SPDX-License-Identifier: GPL-2.0-or-later
"""A libFuzzer dictionary of a target: the edges of `program.values` as 8-byte words, and one record
for each kind of op, at its defaults and with each argument at each edge."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from guestemu.program.binary import encode_op
from guestemu.program.ops import SPECS, Op, OpKind, canonical_op
from guestemu.program.values import BOUNDARIES

_WORD: Final = 8


def _words(kinds: frozenset[OpKind]) -> Iterator[bytes]:
    for kind in sorted(kinds):
        default = canonical_op(Op(kind))
        yield encode_op(default)
        for position, argument in enumerate(SPECS[kind].arguments):
            for value in BOUNDARIES[argument.sort]:
                yield value.to_bytes(_WORD, "little")
                arguments = list(default.arguments)
                arguments[position] = value
                yield encode_op(Op(kind, tuple(arguments)))


def dictionary_text(kinds: frozenset[OpKind]) -> str:
    """The dictionary for `-dict=`, one word a line."""
    words = dict.fromkeys(_words(kinds))
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words)
