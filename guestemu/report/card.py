# SPDX-License-Identifier: GPL-2.0-or-later
"""The card of a finding: what is wrong, whose defect it is, shown as a strip, and how to see it
again. One struct, rendered as HTML here; the terminal prints the same fields."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import msgspec

from guestemu.report.page import command_line
from guestemu.report.race import Race, race_figure
from guestemu.report.strip import Strip, strip_legend, strip_svg, strip_words


class CitedRule(msgspec.Struct, frozen=True):
    """A fact that demands what was not done: its id, its first sentence, its text, its source."""

    id: str
    sentence: str
    text: str
    source: str


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """One finding. `headline` is one sentence; `owner` says whose defect it is; `meaning` what the
    guest suffers; `expected` what the check demands; `seen` its words; `trace` the run step by
    step; `state` "shown", "gone" or "error: WHY"; `met` how often and when first."""

    key: str
    check: str
    headline: str
    owner: str
    meaning: str
    expected: str
    seen: str
    rules: tuple[CitedRule, ...]
    strip: Strip | None
    race: Race | None
    program: str
    trace: tuple[str, ...]
    places: tuple[str, ...]
    command: str
    state: str
    met: str


def card_html(card: Card) -> str:
    """The card as HTML; its id is the finding's key."""
    kind = "card gone" if card.state == "gone" else "card"
    tags = [card.owner, f"check: {card.check}", card.met, card.key]
    if card.state != "shown":
        tags.insert(0, card.state)
    parts = [
        f'<article class="{kind}" aria-labelledby="{escape(card.key)}">',
        f'<h3 id="{escape(card.key)}">{escape(card.headline)}</h3>',
        f"<p>{''.join(f'<span class=tag>{escape(tag)}</span>' for tag in tags if tag)}</p>",
    ]
    if card.meaning:
        parts.append(f"<p>{escape(card.meaning)}</p>")
    if card.strip is not None:
        parts += (
            strip_legend(card.strip),
            f'<div class="scroll" role="region" aria-label="Strip of {escape(card.key)}" '
            f'tabindex="0">{strip_svg(card.strip, f"strip-{card.key}")}</div>',
            strip_words(card.strip, card.headline),
        )
    if card.race is not None:
        parts.append(
            f'<div class="scroll" role="region" aria-label="Race of {escape(card.key)}" '
            f'tabindex="0">{race_figure(card.race, f"race-{card.key}")}</div>'
        )
    parts.append('<div class="two">')
    if card.seen:
        expected = escape(card.expected or "as the check says")
        parts += (
            f"<div><h4>Expected</h4><p>{expected}</p></div>",
            f"<div><h4>Seen</h4><p>{escape(card.seen)}</p></div>",
        )
    if card.program:
        parts.append(f"<div><h4>Smallest program</h4><pre>{escape(card.program)}</pre></div>")
    if card.places:
        places = escape("\n".join(card.places))
        parts.append(
            f"<div class=whole><h4>Host code that runs only then</h4><pre>{places}</pre></div>"
        )
    parts.append("</div>")
    if card.command:
        parts.append(f"<h4>See it again</h4>{command_line(card.command)}")
    return "".join((*parts, *_folded(card))) + "</article>"


def _folded(card: Card) -> Iterator[str]:
    """What is read by those who want to know more."""
    if card.trace:
        trace = escape("\n".join(card.trace))
        yield f"<details><summary>What happened, step by step</summary><pre>{trace}</pre></details>"
    if card.rules:
        rules = "".join(_rule(rule) for rule in card.rules)
        yield f"<details><summary>Facts behind it</summary>{rules}</details>"


def _rule(rule: CitedRule) -> str:
    return (
        f'<p class="dim"><a href="#fact-{escape(rule.id)}">{escape(rule.id)}</a>: '
        f"{escape(rule.sentence)}</p>"
    )
