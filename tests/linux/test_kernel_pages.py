# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages' tables and sentences of kernels agree, and have what the commands have."""

from __future__ import annotations

from pathlib import Path

from guestemu.study.outcomes.cells import BEGIN, END, SENTENCE, sentence
from guestemu.study.outcomes.defects import DEFECTS, NOT_SEEN, SEEN
from guestemu.study.outcomes.verbs import VERBS


def table_of(text: str, command: str) -> list[str]:
    """The lines of the table that `command` put into a page."""
    return text.partition(BEGIN.format(command=command) + "\n")[2].partition(END)[0].splitlines()


DOCS = Path(__file__).parents[2] / "docs"
KERNELS = (DOCS / "kernels.md").read_text(encoding="utf-8")
FINDINGS = (DOCS / "findings.md").read_text(encoding="utf-8").splitlines()
DEFECT_TABLE = table_of(KERNELS, "guestemu kernel defects")


def test_tables_have_a_column_for_each_experiment() -> None:
    verbs = table_of(KERNELS, "guestemu kernel matrix")[0].strip("| ").split(" | ")
    assert verbs == ["kernel", "version", *(verb.name for verb in VERBS)]
    rows = DEFECT_TABLE[0].strip("| ").split(" | ")
    assert rows == ["kernel", "version", *(defect.name for defect in DEFECTS)]


def test_every_defect_is_explained_beside_its_table() -> None:
    for defect in DEFECTS:
        assert f"\n| {defect.name} | " in KERNELS


def test_findings_say_what_the_table_says() -> None:
    told = set()
    for line in FINDINGS:
        for defect in DEFECTS:
            mark = SENTENCE.format(row=defect.name)
            if line.startswith(mark):
                seen = sentence(DEFECT_TABLE, defect.name, (SEEN, NOT_SEEN))
                assert line == f"{mark} `{defect.name}`: {seen}."
                told.add(defect.name)
    assert {"2gib-overflow", "frame-0", "dma-pool-pages", "half-way"} <= told
