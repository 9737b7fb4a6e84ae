# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of `outcomes` are views of the store that `kernel test` fills: none runs twice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guestemu.guest.linux.cache import SWITCH
from guestemu.study.outcomes import matrix, snp_answers, store, td_findings, td_table
from guestemu.study.outcomes.cells import Cell, Key
from guestemu.study.outcomes.guests import SNIPPET
from guestemu.study.outcomes.matrix import MatrixCell, run_matrix
from guestemu.study.outcomes.store import CellStore, store_of
from guestemu.study.outcomes.td_findings import TdFinding, run_finding
from guestemu.study.outcomes.td_rows import ROWS
from guestemu.study.outcomes.td_table import table_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(SWITCH, raising=False)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """linux:mine is a kernel with this digest."""
    loader = SimpleNamespace(
        kernel=lambda path: SimpleNamespace(digest="mine", version="6.99", symbols={})
    )
    for module in (store, snp_answers, td_findings):
        monkeypatch.setattr(module, "LOADER", loader)
    monkeypatch.setattr(store, "find_image", Path)


def _no_guest(name: str, kind: str) -> None:
    raise AssertionError(f"{name} {kind} is run again")


def test_a_matrix_that_was_measured_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_matrix([SNIPPET], ["sev"])
    words = {(cell.operation, cell.answer): cell.word for cell in first}
    assert words["set_memory_decrypted", 22] == "lost"
    monkeypatch.setattr(matrix, "outcome_guest", _no_guest)
    assert run_matrix([SNIPPET], ["sev"]) == first
    with pytest.raises(AssertionError, match="tdx is run again"):
        run_matrix([SNIPPET], ["tdx"])


def test_a_matrix_that_was_interrupted_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    real = matrix._cell

    def stop_at_five(*arguments: Any) -> MatrixCell:
        if len(measured) == 5:
            raise KeyboardInterrupt
        measured.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(matrix, "_cell", stop_at_five)
    with pytest.raises(KeyboardInterrupt):
        run_matrix([SNIPPET], ["sev"])
    monkeypatch.setattr(matrix, "_cell", lambda *arguments: measured.append(0) or real(*arguments))
    assert len(run_matrix([SNIPPET], ["sev"])) == len(measured) == 12


def test_rows_of_a_td_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(td_table, "ROWS", ROWS[:3])
    first = table_of(SNIPPET)
    monkeypatch.setattr(td_table, "outcome_guest", _no_guest)
    assert table_of(SNIPPET) == first
    monkeypatch.setattr(td_table, "ROWS", ROWS[:4])
    with pytest.raises(AssertionError, match="is run again"):
        table_of(SNIPPET)


def test_each_row_of_a_td_has_a_name_of_its_own() -> None:
    names = [(row.to_private, row.pages, row.title) for row in ROWS]
    assert len(set(names)) == len(names)


@pytest.mark.usefixtures("kernel")
def test_outcomes_of_a_kernel_lie_in_the_store_of_kernel_test() -> None:
    shown = []
    finding = TdFinding("x", "a title", "T1", lambda image: (not shown.append(image), ["a line"]))
    first = run_finding(finding, Path("mine"))
    assert run_finding(finding, Path("mine")) == first
    assert shown == [Path("mine")]
    CellStore("mine").add(Cell(kernel="k", version="6.99", row="boot", outcome="right", detail=""))
    cell = store_of("linux:mine").find(Key("tdx", "outcomes findings x"))
    assert cell is not None
    assert (cell.version, cell.outcome) == ("6.99", "holds")
    assert store_of("linux:mine").find(Key("", "boot")) is not None
    assert store_of("snippet:mine").find(Key("", "boot")) is None


@pytest.mark.usefixtures("kernel")
def test_answers_to_a_page_state_change_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snp_answers, "_measure_on", lambda image: lambda *asked: f"did {asked}")
    monkeypatch.setattr(
        snp_answers,
        "_guest",
        lambda image: SimpleNamespace(use_kvm=lambda kvm: None, reset=lambda: None),
    )
    first = list(snp_answers.run_answers(Path("mine")))
    assert len({cell.did for cell in first}) == len(first) == snp_answers.count_of(1)
    monkeypatch.delattr(snp_answers, "_measure_on")
    assert list(snp_answers.run_answers(Path("mine"))) == first
