# SPDX-License-Identifier: GPL-2.0-or-later
"""Defects are measured, not inferred: what the experiments see on kernels whose answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestemu.abi.errors import InputError
from guestemu.abi.regions import Region
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.study.outcomes.cells import (
    ABSENT,
    BEGIN,
    END,
    FAILED,
    Cell,
    Verdict,
    judge,
    update,
)
from guestemu.study.outcomes.defects import DEFECTS, NOT_SEEN, SEEN, Defect, measure
from tests.linux.conftest import Bench

KNOWN = {
    "never-told": NOT_SEEN,
    "told-of-failure": NOT_SEEN,
    "2gib-overflow": SEEN,
    "frame-0": SEEN,
    "hole-mapped": SEEN,
    "half-way": SEEN,
    "early-page-more": NOT_SEEN,
    "refusal-ignored": SEEN,
    "cpu-offline": SEEN,
    "dma-pool-pages": NOT_SEEN,
}
"""What 6.1 (from .53 on) and 6.12 do."""


def defect(name: str) -> Defect:
    return next(found for found in DEFECTS if found.name == name)


@pytest.mark.parametrize("name", KNOWN)
def test_each_defect_is_seen_where_it_is(kernel: Bench, name: str) -> None:
    verdict = measure(kernel.guest, defect(name))

    assert verdict.outcome == KNOWN[name], verdict.detail


def test_an_experiment_leaves_the_guest_as_it_was(kernel: Bench) -> None:
    budget = kernel.guest.budget
    measure(kernel.guest, defect("frame-0"))
    assert kernel.guest.budget == budget
    measure(kernel.guest, defect("half-way"))
    assert kernel.guest.set_memory_decrypted(kernel.guest.gva(Region.D, 8), 1).value == 0


@pytest.fixture
def mended(kernel: Bench, monkeypatch: pytest.MonkeyPatch) -> LinuxGuest:
    """A guest whose kernel passes a host's refusal on, and tells the host of every failure."""
    guest = kernel.guest
    original = guest.set_memory_decrypted

    def refused(gva: int, pages: int) -> object:
        outcome = original(gva, pages)
        return type(outcome)(-22, None, outcome.warnings)

    monkeypatch.setattr(guest, "set_memory_decrypted", refused)
    return guest


def test_a_refusal_that_comes_back_is_not_the_defect(mended: LinuxGuest) -> None:
    assert measure(mended, defect("refusal-ignored")).outcome == NOT_SEEN


def test_what_a_kernel_lacks_is_absent_and_other_refusals_are_failures() -> None:
    def lacks() -> Verdict:
        raise InputError("vmlinuz (5.10): no symbol dma_alloc_pages; did you mean another")

    def fails() -> Verdict:
        raise InputError("vmlinuz: budget used up")

    assert judge(lacks) == Verdict(ABSENT, "no symbol dma_alloc_pages")
    assert judge(fails) == Verdict(FAILED, "vmlinuz: budget used up")


CELLS = [
    Cell(kernel="7.3", version="7.3.4", row="a", outcome=ABSENT, detail=""),
    Cell(kernel="6.12", version="6.12.118", row="a", outcome=SEEN, detail=""),
    Cell(kernel="6.12", version="6.12.118", row="b", outcome=NOT_SEEN, detail=""),
    Cell(kernel="6.12-rt", version="6.12.118", row="b", outcome=SEEN, detail=""),
]
COMMAND = "guestemu kernel defects"


def test_a_page_keeps_the_cells_that_are_not_measured_anew(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    begin = BEGIN.format(command=COMMAND)
    page.write_text(f"before\n\n{begin}\n{END}\nafter\n")

    update(page, COMMAND, CELLS, ["a", "b"])
    update(
        page,
        COMMAND,
        [Cell(kernel="7.3", version="7.3.4", row="b", outcome=SEEN, detail="")],
        ["a", "b"],
    )
    update(
        page,
        COMMAND,
        [Cell(kernel="6.12", version="6.12.119", row="b", outcome=SEEN, detail="")],
        ["a", "b"],
    )

    assert page.read_text().splitlines() == [
        "before",
        "",
        begin,
        "| kernel | version | a | b |",
        "| --- | --- | --- | --- |",
        "| 6.12 | 6.12.119 |  | seen |",
        "| 6.12-rt | 6.12.118 |  | seen |",
        "| 7.3 | 7.3.4 | absent | seen |",
        END,
        "after",
    ]


def test_a_page_without_a_place_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n")
    with pytest.raises(InputError, match="has no place for this table"):
        update(page, COMMAND, CELLS, ["a", "b"])
    assert page.read_text() == "text\n"
