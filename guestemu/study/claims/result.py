# SPDX-License-Identifier: GPL-2.0-or-later
"""What the experiment behind a claim found: a verdict, and the evidence that it was taken from.

A verdict is computed, by `decide`, from conditions on measured values. None is written by hand: an
experiment whose outcome fits none of its conditions, or more than one, ends as undecided.
"""

from __future__ import annotations

import enum

import msgspec

from guestemu.report.race import Race


class ClaimVerdict(enum.StrEnum):
    """How a claim fares."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    CONDITIONAL = "true only if"
    """Under the conditions that `ClaimResult.condition` names, and false without them."""
    UNDECIDED = "undecided"
    """The experiment had an unforeseen outcome: look at it before believing either."""


class Evidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """One measured value.

    `unit` is what is counted ("interleavings", "pages", "s"; "" for a word or a truth value), `how`
    one line on where the value comes from.
    """

    name: str
    value: int | float | str
    unit: str = ""
    how: str = ""


class ClaimWitness(msgspec.Struct, frozen=True):
    """A smallest example, to look at and to run again.

    `text` is a program, an interleaving or a list of steps; `command` what shows it from a checkout
    ("" where `text` says all), with PROGRAM for a file that holds `text`. `race` draws an
    interleaving of the order model.
    """

    text: str
    command: str = ""
    race: Race | None = None


class Plot(msgspec.Struct, frozen=True):
    """A picture of measured values: `name` of its file without ".svg", one line that says what it
    shows, and the file's text."""

    name: str
    title: str
    svg: str


class ClaimResult(msgspec.Struct, frozen=True):
    """The outcome of one experiment.

    `condition` completes "true only if ..." (required for that verdict, "" else); `guests` names
    what the experiment ran on: guests as `--guest` takes them, or "order model", "firmware model",
    "host model" where no guest runs; `remark` is for what the verdict cannot say.
    """

    verdict: ClaimVerdict
    evidence: tuple[Evidence, ...]
    guests: tuple[str, ...]
    condition: str = ""
    witnesses: tuple[ClaimWitness, ...] = ()
    remark: str = ""
    plots: tuple[Plot, ...] = ()

    @property
    def is_model_only(self) -> bool:
        """Whether no guest code ran: the outcome rests on this project's models alone."""
        return not any(guest.startswith(("snippet:", "linux:")) for guest in self.guests)


def decide(
    *, confirmed: bool = False, refuted: bool = False, conditional: bool = False
) -> ClaimVerdict:
    """The verdict whose condition holds; `ClaimVerdict.UNDECIDED` if none or more than one does.

    An experiment passes conditions on what it measured, never constants.
    """
    holding = [
        verdict
        for verdict, holds in (
            (ClaimVerdict.CONFIRMED, confirmed),
            (ClaimVerdict.REFUTED, refuted),
            (ClaimVerdict.CONDITIONAL, conditional),
        )
        if holds
    ]
    return holding[0] if len(holding) == 1 else ClaimVerdict.UNDECIDED
