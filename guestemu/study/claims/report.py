# SPDX-License-Identifier: GPL-2.0-or-later
"""Decided claims as the records of `--json`, and as lines for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import msgspec

from guestemu.study.claims.claim import Claim
from guestemu.study.claims.debate import Decided
from guestemu.study.claims.result import ClaimResult, ClaimVerdict, ClaimWitness, Evidence, Plot


class ClaimReport(msgspec.Struct, frozen=True):
    """One claim in `--json`; see `Claim` and `ClaimResult`. `seconds` is the experiment's time,
    `plots` names the files that `--plots` writes, `real_test` what could decide a claim whose
    experiment runs models alone ("" otherwise)."""

    id: str
    text: str
    who: str
    verdict: ClaimVerdict
    condition: str
    evidence: tuple[Evidence, ...]
    guests: tuple[str, ...]
    witnesses: tuple[ClaimWitness, ...]
    remark: str
    plots: tuple[str, ...]
    seconds: float
    real_test: str


class Skipped(msgspec.Struct, frozen=True):
    """A claim that was not tested, and what the machine lacks for it."""

    id: str
    needs: str


class DebateReport(msgspec.Struct, frozen=True):
    """The object of `guestemu claims --json`."""

    claims: tuple[ClaimReport, ...]
    skipped: tuple[Skipped, ...]


def report(decided: Iterable[Decided], skipped: Iterable[Claim]) -> DebateReport:
    """Everything in one object."""
    return DebateReport(
        tuple(_claim(each) for each in decided),
        tuple(Skipped(claim.ident, claim.needs.value) for claim in skipped),
    )


def _claim(decided: Decided) -> ClaimReport:
    claim, result = decided.claim, decided.result
    return ClaimReport(
        id=claim.ident,
        text=claim.text,
        who=claim.who,
        verdict=result.verdict,
        condition=condition(result),
        evidence=result.evidence,
        guests=result.guests,
        witnesses=result.witnesses,
        remark=result.remark,
        plots=tuple(file_name(plot) for plot in result.plots),
        seconds=decided.seconds,
        real_test=claim.real_test if result.is_model_only else "",
    )


def file_name(plot: Plot) -> str:
    """Of the file that holds a plot."""
    return f"{plot.name}.svg"


def condition(result: ClaimResult) -> str:
    """What completes the verdict "true only if"; "" for any other."""
    return result.condition if result.verdict is ClaimVerdict.CONDITIONAL else ""


def verdict_words(result: ClaimResult) -> str:
    """The verdict with its condition."""
    rest = condition(result)
    return f"{result.verdict.value} {rest}" if rest else result.verdict.value


def value_words(evidence: Evidence) -> str:
    """The value with its unit."""
    value = evidence.value
    shown = f"{value:.3g}" if isinstance(value, float) else str(value)
    unit = evidence.unit
    if value == 1 and " that " not in unit:
        unit = re.sub(r"(?<=[a-z])s\b", "", unit, count=1)
    return f"{shown} {unit}" if unit else shown


def lines(decided: Decided) -> Iterator[str]:
    """A claim with all its evidence, in plain lines."""
    claim, result = decided.claim, decided.result
    yield f"{claim.ident}  {claim.text}"
    yield f"    said by: {claim.who}"
    yield f"    {verdict_words(result)}"
    yield f"    tested on: {', '.join(result.guests)}"
    if result.is_model_only:
        yield f"    models alone; what could decide it: {claim.real_test}"
    for evidence in result.evidence:
        how = f"  ({evidence.how})" if evidence.how else ""
        yield f"      {evidence.name}: {value_words(evidence)}{how}"
    for witness in result.witnesses:
        first, *rest = witness.text.splitlines() or [""]
        yield f"    witness: {first}"
        yield from (f"             {line}" for line in rest)
        if witness.command:
            yield f"             $ {witness.command}"
    for plot in result.plots:
        yield f"    plot: {file_name(plot)}: {plot.title}"
    if result.remark:
        yield f"    note: {result.remark}"
