# SPDX-License-Identifier: GPL-2.0-or-later
"""The zoo as a matrix: planted bugs by the campaigns that looked for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from guestemu.abi.names import command_line, plural
from guestemu.campaign.planted.bug import ZooBug
from guestemu.campaign.planted.cell import BLIND, OURS, PLAIN, CellResult
from guestemu.campaign.planted.results import median_of
from guestemu.report.document import Document
from guestemu.report.matrix import Tried, matrix_document

_ALWAYS: Final = "every campaign found it"
_MOSTLY: Final = "most campaigns found it"
_MISSED: Final = "most campaigns missed it"
_CLEAN: Final = "repaired: no violation"
_FALSE: Final = "repaired: a false positive"
_KINDS: Final = {
    OURS: ("guestemu", ()),
    PLAIN: ("plain atheris", ("--no-feedback",)),
    BLIND: ("blind", ("--engine", "blind")),
}
_VALUES: Final = {_ALWAYS: "good", _MOSTLY: "warn", _MISSED: "bad", _CLEAN: "good", _FALSE: "bad"}


def zoo_document(bugs: Sequence[ZooBug], results: Sequence[CellResult]) -> Document:
    """Bugs by arm: after how many executions the median campaign's check failed, and whether the
    configuration without the bug stays without a violation."""
    words = (
        "Known bugs, planted one at a time. A cell is the number of executions after which the "
        "median campaign found the bug (> if it ended before that), with guestemu's feedback and "
        'mutator, with those of atheris, or by new programs alone; below "repaired", the '
        "executions without the bug."
    )
    tried = [one for bug in bugs for one in _of_bug(bug, results)]
    return matrix_document("The zoo of planted bugs", words, tried, _VALUES, "bug")


def _of_bug(bug: ZooBug, results: Sequence[CellResult]) -> Iterator[Tried]:
    row = f"{bug.id}: {bug.title}"
    about = f"{bug.where}; target {bug.target}; check {bug.check}; facts {bug.facts or 'none'}."
    for kind_of_campaign, (column, switch) in _KINDS.items():
        own = [
            one
            for one in results
            if one.cell.bug == bug.id and one.cell.planted and one.cell.kind == kind_of_campaign
        ]
        median = median_of(own)
        if median is None:
            continue
        kind = _MISSED if median.is_bound else _MOSTLY if median.found < median.seeds else _ALWAYS
        program = next((" / ".join(one.program) for one in own if one.found), "")
        found = f" First program: {program}." if program else ""
        yield Tried(
            row=row,
            column=column,
            word=f"{'>' if median.is_bound else ''}{median.execs:,}",
            kind=kind,
            detail=f"{about} Found by {median.found} of {plural(median.seeds, 'campaign')}, the "
            f"median after {median.execs:,} executions in {median.seconds:.2f} s.{found}",
            command=command_line("zoo", "run", bug.id, "--campaigns", median.seeds, *switch),
        )
    twins = [one for one in results if one.cell.bug == bug.id and not one.cell.planted]
    if twins:
        wrong = [one for one in twins if one.found]
        executions = sum(one.executions for one in twins)
        said = "; ".join(f"{one.check}: {one.message}" for one in wrong) or "no violation"
        yield Tried(
            row=row,
            column="repaired",
            word=f"{executions:,}",
            kind=_FALSE if wrong else _CLEAN,
            detail=f"Without the bug: {executions:,} executions, {said}.",
            command=command_line("zoo", "run", bug.id, "--repaired"),
        )
