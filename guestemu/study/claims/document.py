# SPDX-License-Identifier: GPL-2.0-or-later
"""Decided claims as a page: the verdicts in a table, then each claim with its evidence, plots and
the race of its witness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from guestemu.abi.errors import InputError
from guestemu.abi.names import command_line
from guestemu.program.text import parse_text
from guestemu.report.charts import inline_svg
from guestemu.report.document import (
    Chapter,
    Code,
    Content,
    Document,
    Grid,
    Legend,
    Paragraph,
    Picture,
    Svg,
)
from guestemu.report.page import TableCell
from guestemu.report.trace.races import has_migration, race_of
from guestemu.study.claims.debate import Decided
from guestemu.study.claims.report import value_words, verdict_words
from guestemu.study.claims.result import ClaimVerdict, ClaimWitness

_VALUES: Final = {
    ClaimVerdict.CONFIRMED: "good",
    ClaimVerdict.REFUTED: "bad",
    ClaimVerdict.CONDITIONAL: "warn",
    ClaimVerdict.UNDECIDED: "",
}


def claims_document(decided: Sequence[Decided]) -> Document:
    """The page of `guestemu claims --html`. Runs the programs of witnesses for their races."""
    rows = tuple(
        (
            TableCell(each.claim.ident, "", _place(each)),
            TableCell(each.result.verdict.value, _VALUES[each.result.verdict], note=_verdict(each)),
            TableCell(each.claim.text.replace("\n", " "), "text"),
        )
        for each in decided
    )
    verdicts = dict.fromkeys(each.result.verdict for each in decided)
    legend = Legend(tuple((one.value, _VALUES[one]) for one in verdicts if _VALUES[one]))
    words = Paragraph(
        "Statements of the mailing-list debate about live migration of SEV guests. Each has an "
        "experiment; its verdict is computed from what was measured."
    )
    return Document(
        "The claims of the debate",
        (
            Chapter(
                "", (words, legend, Grid(("claim", "verdict", "statement"), rows, "Claims", True))
            ),
            *(
                Chapter(
                    f"{each.claim.ident}: {_verdict(each)}", tuple(_contents(each)), _place(each)
                )
                for each in decided
            ),
        ),
    )


def _place(each: Decided) -> str:
    return f"claim-{each.claim.ident.lower()}"


def _verdict(each: Decided) -> str:
    return verdict_words(each.result)


def _contents(each: Decided) -> Iterator[Content]:
    claim, result = each.claim, each.result
    yield Paragraph(claim.text)
    yield Paragraph(f"Said by: {claim.who}. Tested on: {', '.join(result.guests)}.")
    if result.is_model_only:
        yield Paragraph(f"Models alone; what could decide it: {claim.real_test}.")
    rows = tuple((one.name, value_words(one), one.how or "-") for one in result.evidence)
    yield Grid(("measured", "value", "how"), rows, f"Evidence of {claim.ident}", is_words=True)
    for plot in result.plots:
        yield Svg(plot.title, inline_svg(plot.svg), has_caption=True)
    for witness in result.witnesses:
        yield from _witness(claim.ident, witness)
    if result.remark:
        yield Paragraph(result.remark)
    yield Code(command_line("claims", claim.ident), True)


def _witness(ident: str, witness: ClaimWitness) -> Iterator[Content]:
    race = witness.race
    if race is None and witness.text.startswith("guestemu-program"):
        try:
            program = parse_text(witness.text, ident)
            race = race_of(program)[0] if has_migration(program) else None
        except InputError:
            race = None
    yield Code(witness.text)
    if race is not None:
        yield Picture(f"The race of {ident}", race)
        yield Paragraph(race.sentence)
    if witness.command:
        yield Code(witness.command, True)
