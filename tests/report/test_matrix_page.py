# SPDX-License-Identifier: GPL-2.0-or-later
"""A matrix's cell says its outcome, leads to what was seen, and names the command."""

from __future__ import annotations

import pytest

from guestemu.cli import console
from guestemu.report.document import document_page
from guestemu.report.matrix import Tried, matrix_document

TRIED = [
    Tried(row="hole", column="6.1", word="seen", detail="<b>1 page</b>", command="guestemu x"),
    Tried(row="hole", column="6.12", word="not seen", detail="right", command="guestemu y"),
    Tried(row="kexec", column="6.12", word="absent", detail="", command="guestemu z"),
]
VALUES = {"seen": "bad", "not seen": "good", "absent": "warn"}


def test_cells_in_colour_lead_to_their_run() -> None:
    page = document_page(matrix_document("t", "w", TRIED, VALUES))
    assert '<td class="v-bad" title="&lt;b&gt;1 page&lt;/b&gt;"><a href="#cell-0">seen</a>' in page
    assert '<h3 id="cell-0">hole, 6.1: seen</h3><p>&lt;b&gt;1 page&lt;/b&gt;</p>' in page
    assert "guestemu z" in page
    assert page.count('<td class="v-good">not seen</td>') == 1


def test_a_terminal_gets_a_compact_table(capsys: pytest.CaptureFixture[str]) -> None:
    console.emit_document(matrix_document("a title", "w", TRIED, VALUES))
    assert capsys.readouterr().out.splitlines() == [
        "a title",
        "",
        "seen  not seen  absent",
        "row    6.1   6.12",
        "hole   seen  not seen",
        "kexec        absent",
    ]
