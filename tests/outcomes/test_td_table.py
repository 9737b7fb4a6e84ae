# SPDX-License-Identifier: GPL-2.0-or-later
"""The table T18 on the snippet: the rows that the sheet names, from what real kernels gave."""

from __future__ import annotations

import msgspec
import pytest

from guestemu.study.outcomes.guests import SNIPPET, outcome_guest
from guestemu.study.outcomes.page import access_table, conversion_table
from guestemu.study.outcomes.td_table import RowResult, run_table


@pytest.fixture(scope="module")
def snippet_rows() -> list[RowResult]:
    return run_table(outcome_guest(SNIPPET, "tdx"))


def row_of(rows: list[RowResult], to_private: bool, title: str) -> tuple[str, bool, str, str]:
    (row,) = (one for one in rows if one.to_private is to_private and one.title == title)
    return row.value, row.warned, row.entries, row.states


DECRYPT = {
    "0": ("0", False, "S", "s"),
    "retry, R11 = start, twice": ("0", False, "S", "s"),
    "retry, R11 = start, three times": ("-5", True, "S", "a"),
    "retry, R11 = end": ("-5", True, "S", "s"),
    "retry, R11 = start + 1": ("-5", True, "S", "a"),
    "retry, R11 = start + 1, then 0": ("0", False, "S", "s"),
    "-22": ("-5", True, "S", "a"),
    "invalid operand, but converted": ("-5", True, "S", "s"),
    "0, but nothing converted": ("0", False, "S", "a"),
    "2 pages, then invalid operand": ("-5", True, "S*8", "s*2 a*6"),
    "no pages": ("-5", True, "", ""),
    "0, but only the first 2 MiB done": ("0", False, "S*1024", "s*512 a*512"),
}
ENCRYPT = {
    "0": ("0", False, "P", "a"),
    "retry, R11 = start, three times": ("-5", True, "S", "s"),
    "invalid operand, but converted": ("-5", True, "S", "p"),
    "0, but nothing converted": ("0", False, "P", "a"),
    "2 pages, then invalid operand": ("-5", True, "S*8", "p*2 s*6"),
    "0, but only the first 2 MiB done": ("0", False, "P*1024", "a*1024"),
    "ACCEPT busy": ("-5", True, "S", "p"),
    "ACCEPT already accepted": ("-5", True, "S", "p"),
    "ACCEPT of the fourth page busy": ("-5", True, "S*8", "a*3 p*5"),
    "ACCEPT of 2 MiB busy": ("0", False, "P*1024", "a*1024"),
}


@pytest.mark.parametrize("title", DECRYPT)
def test_decryption(snippet_rows: list[RowResult], title: str) -> None:
    assert row_of(snippet_rows, False, title) == DECRYPT[title]


@pytest.mark.parametrize("title", ENCRYPT)
def test_encryption(snippet_rows: list[RowResult], title: str) -> None:
    assert row_of(snippet_rows, True, title) == ENCRYPT[title]


def test_stalls_between_pages_are_22_calls(snippet_rows: list[RowResult]) -> None:
    calls = {row.title: row.map_gpa_calls for row in snippet_rows if not row.to_private}
    assert calls["the same, 2 stalls before each"] == 22


def test_accepts_are_tried_from_the_largest_size(snippet_rows: list[RowResult]) -> None:
    (row,) = (one for one in snippet_rows if one.to_private and one.title.startswith("0, in"))
    assert row.accepts == 2 * 513


def test_the_page_says_where_guests_differ(snippet_rows: list[RowResult]) -> None:
    other = [*snippet_rows[:-1], msgspec.structs.replace(snippet_rows[-1], value="7")]
    text = conversion_table({"one": snippet_rows, "two": snippet_rows, "three": other})
    assert "67 rows, run on one, two, three." in text
    assert "two: no rows differ from one." in text
    assert "three: 1 rows differ from one." in text
    assert "| private | pending | guest access before accepting |" in access_table()
