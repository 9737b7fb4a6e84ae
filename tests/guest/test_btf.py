# SPDX-License-Identifier: GPL-2.0-or-later
"""The type reader over small sections: layouts, and what a damaged section gets."""

from __future__ import annotations

import struct

import pytest

from guestemu.abi.errors import InputError
from guestemu.guest.linux.btf import Btf, Prototype

INT, PTR, STRUCT, UNION, TYPEDEF, CONST, FUNC, FUNC_PROTO = 1, 2, 4, 5, 8, 10, 12, 13
STRINGS = b"\0long\0page\0flags\0list\0next\0word_t\0get_page\0order\0"


def name(text: str) -> int:
    return STRINGS.index(b"\0" + text.encode() + b"\0") + 1


def record(kind: int, text: str, count: int, size: int, *words: int) -> bytes:
    number = name(text) if text else 0
    return struct.pack(f"<III{len(words)}I", number, kind << 24 | count, size, *words)


TYPES = (
    record(INT, "long", 0, 8, 1 << 24 | 64),
    record(TYPEDEF, "word_t", 0, 1),
    record(PTR, "", 0, 0),
    record(STRUCT, "", 1, 8, name("next"), 3, 0),
    record(UNION, "", 1, 8, 0, 4, 0),
    record(STRUCT, "page", 2, 16, name("flags"), 2, 0, 0, 5, 64),
    record(CONST, "", 0, 0),
    record(FUNC_PROTO, "", 1, 3, name("order"), 1),
    record(FUNC, "get_page", 0, 8),
)


def section(*types: bytes, strings: bytes = STRINGS) -> bytes:
    body = b"".join(types)
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(strings))
    return header + body + strings


def test_members_of_unnamed_records_count_as_the_outer_one_s() -> None:
    btf = Btf(section(*TYPES), "vmlinux")

    assert btf.size("page") == 16
    assert btf.offset("page.flags") == 0
    assert btf.offset("page.next") == 8
    assert btf.prototype("get_page") == Prototype(("order",), 8, False)


def test_a_result_that_is_const_void_is_void() -> None:
    types = (*TYPES[:7], record(FUNC_PROTO, "", 0, 7), record(FUNC, "get_page", 0, 8))

    assert Btf(section(*types), "vmlinux").prototype("get_page") == Prototype((), 0, False)


@pytest.mark.parametrize(
    "types",
    [
        (record(25, "", 0, 0),),
        (record(STRUCT, "page", 9, 16),),
        (record(STRUCT, "page", 0xFFFFFF, 16),),
        (struct.pack("<III", 0xFFFF_FFFF, STRUCT << 24, 16),),
    ],
)
def test_a_section_that_cannot_be_read_is_one_clear_line(types: tuple[bytes, ...]) -> None:
    with pytest.raises(InputError, match=r"^vmlinux: its \.BTF section (is damaged|has a type)"):
        Btf(section(*types), "vmlinux")


@pytest.mark.parametrize(
    "types",
    [
        (record(STRUCT, "page", 1, 16, name("flags"), 2, 0), record(TYPEDEF, "word_t", 0, 2)),
        (record(STRUCT, "page", 1, 16, name("flags"), 77, 0),),
    ],
)
def test_types_that_lead_nowhere_are_damage(types: tuple[bytes, ...]) -> None:
    with pytest.raises(InputError, match=r"^vmlinux: its \.BTF section is damaged"):
        Btf(section(*types), "vmlinux").offset("page.flags")


def test_records_that_hold_each_other_end() -> None:
    inner = record(STRUCT, "", 2, 16, 0, 2, 0, 0, 2, 0)
    btf = Btf(section(record(STRUCT, "page", 1, 16, 0, 2, 0), inner), "vmlinux")

    with pytest.raises(InputError, match=r"no member page\.flags"):
        btf.offset("page.flags")
