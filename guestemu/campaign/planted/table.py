# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/zoo.md: the planted bugs and what found them, written from a file of results."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

import msgspec

from guestemu.campaign.planted.bug import ZooBug
from guestemu.campaign.planted.catalogue import repaired_configurations
from guestemu.campaign.planted.cell import BLIND, OURS, PLAIN, CellResult
from guestemu.campaign.planted.results import SIGNIFICANT, Median, compare, median_of

_INTRODUCTION: Final = """\
# The zoo

Known bugs of this field, planted one at a time in guests and hosts, and the campaigns that must
find them. This page is written by `guestemu zoo table`; do not edit it.

    guestemu zoo list                 the bugs
    guestemu zoo list --repaired      the configurations without any
    guestemu zoo run M6 M31           campaigns against two of them
    guestemu zoo run --repaired --time 600
    guestemu zoo table RESULTS -o docs/zoo.md
    guestemu zoo run M6 M31 --results zoo.jsonl --html zoo.html
    guestemu zoo run M6 M31 --results zoo.jsonl --engine blind

With --html a page is written whose coloured cells lead to what a campaign found and to its
command.

A bug has the number of its fact in docs/facts; a letter distinguishes several bugs of one fact. A
bug is planted by a switch of a host model, by a class that changes one behaviour of the reference
host or of the firmware, or by a few changed lines of the guest's assembly
(`guestemu/campaign/planted/variants.py` has them). Its *repaired twin* differs in nothing else.

Campaigns of three kinds search for a bug. *Ours* are atheris with guestemu's feedback (guest
blocks, model states) and its mutator; *plain* are atheris with its own mutator and the coverage of
Python bytecode in all of guestemu; *blind* are new programs alone, from the generator that ours
draw theirs from. All start from an empty corpus without a dictionary, and have the same targets,
decoding, checks and seeds. *Executions* and *seconds* (CPU time of the campaign's process, without
booting) are those of the median campaign over the seeds, until the check named in the table failed;
`>` marks a median campaign that ended before that. Once more than half of the seeds found nothing,
the median is known, and the other seeds were not run. A dash: no campaign was run. libFuzzer's
first two inputs are empty: ours and plain ones need three executions at least, and *ahead* leaves
the two out.

*Ahead* is the share of all pairs of one of our campaigns and a blind one in which ours needed fewer
executions (0.50: no difference); *p* says how likely as large a difference is by chance (Mann and
Whitney's test, two-sided).
"""

_REPAIRED: Final = """\
Violations of any check on the same targets with the bug repaired. Seconds are of the clock; several
campaigns may have shared a processor.
"""

_FIGURES: Final = ("found", "executions", "seconds")
_DASH: Final = "–"
_LEAST_P: Final = 0.001
_KINDS: Final = (OURS, PLAIN, BLIND)
_MEDIAN: Final = re.compile(r"(\d+)/(\d+) \| (>?)(\d+) \| >?([\d.]+)")

Medians: TypeAlias = Mapping[tuple[str, str], Median]
"""By bug and kind of campaign."""

Comparisons: TypeAlias = Mapping[str, tuple[str, str]]
"""By bug: how often ours are ahead of blind ones, and p, as the page has them."""


def _cell(median: Median | None) -> tuple[str, str, str]:
    if median is None:
        return _DASH, _DASH, _DASH
    bound = ">" if median.is_bound else ""
    found = f"{median.found}/{median.seeds}"
    return found, f"{bound}{median.execs}", f"{bound}{median.seconds:.2f}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(headings)} |", f"|{' --- |' * len(headings)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _found_rows(
    bugs: Sequence[ZooBug], medians: Medians, comparisons: Comparisons
) -> list[list[str]]:
    rows = []
    for bug in bugs:
        row = [bug.id, bug.check]
        for kind in _KINDS:
            row += _cell(medians.get((bug.id, kind)))
        rows.append([*row, *comparisons.get(bug.id, (_DASH, _DASH))])
    return rows


def _summary(bugs: Sequence[ZooBug], medians: Medians, comparisons: Comparisons) -> str:
    """A sentence for each kind: how many bugs its median campaign found, and the slowest."""
    sentences = []
    for arm in _KINDS:
        own = {bug.id: medians[bug.id, arm] for bug in bugs if (bug.id, arm) in medians}
        found = {name: one.execs for name, one in own.items() if not one.is_bound}
        if not own:
            continue
        sentence = f"{arm.capitalize()}: {len(found)} of {len(own)} bugs found"
        if found:
            slowest = max(found, key=found.__getitem__)
            middle = statistics.median_low(found.values())
            sentence += (
                f", the median bug after {middle} executions, the last of them ({slowest}) after "
                f"{found[slowest]}"
            )
        missed = [name for name, one in own.items() if one.is_bound]
        sentences.append(f"{sentence}{'; not: ' + ', '.join(missed) if missed else ''}.\n")
    both = [
        (medians[bug.id, OURS], medians[bug.id, PLAIN])
        for bug in bugs
        if (bug.id, OURS) in medians and (bug.id, PLAIN) in medians
    ]
    if both:
        by_executions = sum(_is_ahead(*pair, pair[0].execs, pair[1].execs) for pair in both)
        by_seconds = sum(_is_ahead(*pair, pair[0].seconds, pair[1].seconds) for pair in both)
        sentences.append(
            f"Of {len(both)} bugs that both arms ran on, ours needed fewer executions for "
            f"{by_executions} and less time for {by_seconds}.\n"
        )
    if comparisons:
        told = [
            (float(ahead), name)
            for name, (ahead, p) in comparisons.items()
            if float(p.removeprefix("<")) < SIGNIFICANT
        ]
        behind = [name for ahead, name in told if ahead < 1 / 2]
        sentences.append(
            f"Of {len(comparisons)} bugs that ours and blind campaigns ran on, ours needed fewer "
            f"executions for {len(told) - len(behind)} and more for {len(behind)}"
            f"{' (' + ', '.join(behind) + ')' if behind else ''}; for the others there is no "
            f"difference at p < {SIGNIFICANT}.\n"
        )
    return "\n".join(sentences)


def _is_ahead(ours: Median, plain: Median, own: float, other: float) -> bool:
    return not ours.is_bound and (plain.is_bound or own < other)


def _kept_cells(bug: ZooBug, earlier: str) -> list[str]:
    """The figures of `bug` on the page `earlier`."""
    kept = re.search(rf"^\| {bug.id} \| {re.escape(bug.check)} \| (.*) \|$", earlier, re.MULTILINE)
    return kept[1].split(" | ") if kept else []


def _of(bug: ZooBug, kind: str, results: Sequence[CellResult]) -> list[CellResult]:
    return [
        one
        for one in results
        if (one.cell.bug, one.cell.kind) == (bug.id, kind) and one.cell.planted
    ]


def _medians(bugs: Sequence[ZooBug], results: Sequence[CellResult], earlier: str) -> Medians:
    """The medians of `results`; of a bug and kind without any, those of the page `earlier`."""
    found: dict[tuple[str, str], Median] = {}
    for bug in bugs:
        cells = _kept_cells(bug, earlier)
        for place, kind in enumerate(_KINDS):
            own = cells[3 * place : 3 * place + 3]
            median = median_of(_of(bug, kind, results)) or _read_median(" | ".join(own))
            if median is not None:
                seconds = round(median.seconds, 2)  # as the page has them
                found[bug.id, kind] = msgspec.structs.replace(median, seconds=seconds)
    return found


def _comparisons(
    bugs: Sequence[ZooBug], results: Sequence[CellResult], earlier: str
) -> Comparisons:
    """Those of `results`, else of the page `earlier`."""
    found: dict[str, tuple[str, str]] = {}
    for bug in bugs:
        compared = compare(_of(bug, OURS, results), _of(bug, BLIND, results))
        kept = tuple(_kept_cells(bug, earlier)[3 * len(_KINDS) :])
        if compared is not None:
            p = "<0.001" if compared.p < _LEAST_P else f"{compared.p:.3f}"
            found[bug.id] = (f"{compared.ahead:.2f}", p)
        elif len(kept) == 2 and _DASH not in kept:
            found[bug.id] = (kept[0], kept[1])
    return found


def _read_median(cells: str) -> Median | None:
    """What `_cell` wrote; None for dashes."""
    match = _MEDIAN.fullmatch(cells)
    if match is None:
        return None
    found, seeds, bound, execs, seconds = match.groups()
    return Median(int(seeds), int(found), int(execs), float(seconds), bool(bound))


def _repaired_rows(
    bugs: Sequence[ZooBug], results: Sequence[CellResult], earlier: str
) -> list[list[str]]:
    rows = []
    kept = {
        tuple(cells[1:3]): cells[4:8]
        for line in earlier.splitlines()
        if len(cells := re.split(r" ?\| ?", line)) == 9
    }
    for configuration in repaired_configurations(bugs):
        own = [
            result
            for result in results
            if not result.cell.planted
            and result.cell.bug in configuration.bugs
            and result.cell.arm == OURS
        ]
        names = (configuration.target, configuration.configuration.name)
        figures = kept.get(names, [_DASH] * 4)
        if own:
            figures = [
                str(sum(result.executions for result in own)),
                f"{sum(result.seconds for result in own):.0f}",
                f"{sum(result.cpu_seconds for result in own):.0f}",
                str(sum(result.found for result in own)),
            ]
        rows.append([*names, ", ".join(configuration.bugs), *figures])
    return rows


def zoo_page(bugs: Sequence[ZooBug], results: Sequence[CellResult], earlier: str = "") -> str:
    """The page for `bugs` with what `results` have on them. Figures of the page `earlier` stay
    where `results` have none for the same bug, check and arm, or for the same configuration."""
    medians = _medians(bugs, results, earlier)
    comparisons = _comparisons(bugs, results, earlier)
    bug_rows = [[bug.id, bug.title, bug.where, bug.target, bug.check, bug.facts] for bug in bugs]
    return "\n".join(
        (
            _INTRODUCTION,
            f"## The {len(bugs)} bugs\n",
            _table(("bug", "what is wrong", "where", "target", "check", "facts"), bug_rows),
            "## Campaigns\n",
            _summary(bugs, medians, comparisons),
            _table(
                (
                    *("bug", "check", *_FIGURES, "plain: found", *_FIGURES[1:]),
                    *("blind: found", *_FIGURES[1:], "ahead", "p"),
                ),
                _found_rows(bugs, medians, comparisons),
            ),
            "## Repaired configurations\n",
            _REPAIRED,
            _table(
                (
                    *("target", "configuration", "twin of", "executions", "seconds"),
                    *("CPU seconds", "false positives"),
                ),
                _repaired_rows(bugs, results, earlier),
            ),
        )
    )
