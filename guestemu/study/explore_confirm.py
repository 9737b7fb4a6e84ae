# SPDX-License-Identifier: GPL-2.0-or-later
"""The order model against the machine: interleavings re-run as whole migrations.

Every losing interleaving that the model lists, and as many others drawn at random that it says are
harmless, run as programs (programs.py) from a source guest to a destination guest whose memory has
another key. The guest's read at the end gives the machine's two verdicts: they must be the model's.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias

import msgspec

from guestemu.checks.lost import LOST_DEFINED, LOST_STRICT
from guestemu.migration.model.count import Space
from guestemu.migration.model.order_model import PageVerdict, Scenario
from guestemu.migration.model.programs import LinkKind, check_rules, interleaving_ops
from guestemu.migration.model.witness import Witness, format_witness, replay, unrank
from guestemu.program.program import Header
from guestemu.report.document import Chapter, Document, Grid, Paragraph
from guestemu.runner.testbed import Testbed, build_testbed

MAX_DISAGREEMENTS: Final = 20
"""Of these the interleaving is kept; all are counted."""

_TRIES: Final = 1000
"""Draws for one harmless interleaving before a cell counts as having none (left)."""


Judge: TypeAlias = Callable[[Iterable[Witness], LinkKind], Iterator[tuple[Witness, PageVerdict]]]
"""Runs interleavings on machines, pages by this link; each with its verdict, in any
order."""


class VerdictMismatch(msgspec.Struct, frozen=True):
    """An interleaving whose verdicts differ, each (lost_strict, lost_defined)."""

    order: str
    script: str
    interleaving: str
    model: PageVerdict
    machine: PageVerdict


class Confirmation(msgspec.Struct, frozen=True):
    """`confirmed` runs gave the model's verdicts, `disagreements` did not. `losing` of all runs
    lose by the model's `lost_strict`, `lost_defined` by that, `others` do not lose; `seconds` are
    those of the migrations; `first` are the disagreements that were kept."""

    confirmed: int
    disagreements: int
    losing: int
    lost_defined: int
    others: int
    link: str
    seconds: float
    is_interrupted: bool = False
    first: tuple[VerdictMismatch, ...] = ()

    @property
    def runs(self) -> int:
        """Migrations that were made."""
        return self.confirmed + self.disagreements


def confirmation_document(found: Confirmation) -> Document:
    """What was confirmed, and each disagreement that was kept."""
    losing = f"{found.losing} by lost_strict, {found.lost_defined} by lost_defined"
    figures = (
        ("migrations", f"{found.runs} by the {found.link} link"),
        ("losing", losing),
        ("others", found.others),
        ("confirmed", found.confirmed),
        ("disagreements", found.disagreements),
    )
    chapters = tuple(
        Chapter(
            "",
            (
                Paragraph(f"order {one.order}, script {one.script}: {one.interleaving}"),
                Paragraph(f"model {_words(one.model)}, machine {_words(one.machine)}"),
            ),
        )
        for one in found.first
    )
    return Document("", chapters, (Grid((), figures),))


def _words(verdict: PageVerdict) -> str:
    lost = {LOST_STRICT: verdict.lost_strict, LOST_DEFINED: verdict.lost_defined}
    return " and ".join(name for name, is_lost in lost.items() if is_lost) or "not lost"


def machine_verdict(testbed: Testbed, witness: Witness, link: LinkKind) -> PageVerdict:
    """Runs an interleaving on the machine."""
    steps = (moment.step for moment in witness.moments)
    outcome = testbed.run(interleaving_ops(witness.scenario.order, steps, link))
    names = {violation.check for violation in outcome.violations}
    return PageVerdict(LOST_STRICT in names, LOST_DEFINED in names)


def judge_here(
    witnesses: Iterable[Witness], link: LinkKind
) -> Iterator[tuple[Witness, PageVerdict]]:
    """`machine_verdict` of each, in one warm testbed of this process."""
    testbed = build_testbed(Header())
    try:
        for witness in witnesses:
            yield witness, machine_verdict(testbed, witness, link)
    finally:
        testbed.close()


def choose(spaces: Sequence[Space], most: int | None, seed: int) -> Iterator[Witness]:
    """The losing interleavings of `spaces`, at most `most`, taken from the cells in turn and spread
    over each; then as many harmless ones, drawn at random over all cells."""
    places = [
        (rank, space)
        for space, count in zip(spaces, _shares(spaces, most), strict=True)
        for rank in _spread(space.tally.lost_strict, count)
    ]
    for rank, space in places:
        yield unrank(space, rank)
    yield from _harmless(spaces, len(places), random.Random(seed))


def planned(spaces: Sequence[Space], most: int | None) -> int:
    """The number of losing interleavings that `choose` gives."""
    return sum(_shares(spaces, most))


def _shares(spaces: Sequence[Space], most: int | None) -> list[int]:
    """How many losing interleavings of each cell: one after the other while there are some."""
    left = [space.tally.lost_strict for space in spaces]
    if most is None or most >= sum(left):
        return left
    shares = [0] * len(left)
    while most:
        for index, count in enumerate(left):
            if most and shares[index] < count:
                shares[index] += 1
                most -= 1
    return shares


def _spread(count: int, wanted: int) -> list[int]:
    return [place * count // wanted for place in range(wanted)] if wanted else []


def _harmless(spaces: Sequence[Space], wanted: int, rng: random.Random) -> Iterator[Witness]:
    for _ in range(wanted):
        for _attempt in range(_TRIES):
            witness = _draw(rng.choice(spaces).scenario, rng)
            if not witness.verdict.lost_strict:
                yield witness
                break
        else:
            return


def _draw(scenario: Scenario, rng: random.Random) -> Witness:
    places = frozenset(rng.sample(range(scenario.steps), len(scenario.script.steps)))
    return replay(scenario, tuple(place in places for place in range(scenario.steps)))


def confirm(
    spaces: Sequence[Space],
    most: int | None = None,
    seed: int = 0,
    link: LinkKind = LinkKind.PLAIN,
    on_run: Callable[[], None] = lambda: None,
    judge: Judge | None = None,
) -> Confirmation:
    """Runs what `choose` gives in one warm testbed, or by `judge`; `on_run` is called after each
    migration.

    Ctrl-C ends it early with what was found. Raises `InputError` for rules other than those of G.2.
    """
    for space in spaces:
        check_rules(space.scenario.rules)
    tally = Counter[str]()
    first: list[VerdictMismatch] = []
    is_interrupted = False
    start = time.perf_counter()
    try:
        for witness, found in (judge or judge_here)(choose(spaces, most, seed), link):
            expected = witness.verdict
            tally["right" if found == expected else "wrong"] += 1
            tally["strict"] += expected.lost_strict
            tally["defined"] += expected.lost_defined
            if found != expected and len(first) < MAX_DISAGREEMENTS:
                first.append(_disagreement(witness, found))
            on_run()
    except KeyboardInterrupt:
        is_interrupted = True
    return Confirmation(
        confirmed=tally["right"],
        disagreements=tally["wrong"],
        losing=tally["strict"],
        lost_defined=tally["defined"],
        others=tally["right"] + tally["wrong"] - tally["strict"],
        link=link,
        seconds=time.perf_counter() - start,
        is_interrupted=is_interrupted,
        first=tuple(first),
    )


def _disagreement(witness: Witness, found: PageVerdict) -> VerdictMismatch:
    scenario = witness.scenario
    return VerdictMismatch(
        scenario.order.name,
        scenario.script.name,
        format_witness(witness),
        witness.verdict,
        found,
    )
