# SPDX-License-Identifier: GPL-2.0-or-later
"""The race: what guest and host do in turn while a migration runs, one lane each, with the host's
passes as bands and the step after which the page is lost.

One struct, three forms: JSON (the struct itself), text for a terminal of 80 columns (`race_lines`)
and SVG (`race_svg`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from html import escape
from typing import Final

import msgspec

from guestemu.report.strip import StripLine

GUEST: Final = "guest"
HOST: Final = "host"

_LANE: Final = 35
_GUTTER: Final = 4
_COLUMNS: Final = 78


class RaceStep(msgspec.Struct, frozen=True):
    """Operation `op`, in the lane of who does it ("guest", "guest CPU 1", "host"); `band` is the
    pass that it falls into, from 1 on, 0 outside; `effects` are what changed by it."""

    op: int
    lane: str
    text: str
    band: int
    effects: tuple[str, ...]


class Race(msgspec.Struct, frozen=True, kw_only=True):
    """`lost_at` is the index of the first step after which nothing that the host still does saves
    the page, None if the page is kept; `before` and `after` are 16 bytes of the page from `offset`
    on as the guest had them and as it reads them at the destination."""

    steps: tuple[RaceStep, ...]
    lost_at: int | None = None
    place: str = ""
    offset: int = 0
    before: str = ""
    after: str = ""
    sentence: str = ""

    @property
    def lanes(self) -> tuple[str, ...]:
        """The lanes, the host's last."""
        guests = sorted({step.lane for step in self.steps} - {HOST})
        return (*guests, HOST)


def race_lines(race: Race, is_ascii: bool = False) -> tuple[StripLine, ...]:
    """`race` for a terminal of 80 columns, the guest on the left, the host on the right."""
    rule, bar, arrow = ("-", "|", ">") if is_ascii else ("─", "│", "▶")
    lines = [_line("", f"{'':{_GUTTER}}{GUEST:<{_LANE + 3}}{HOST}", "bold")]
    band = 0
    for number, step in enumerate(race.steps):
        if step.band != band:
            if step.band:
                lines.append(_line(f"{'':{_GUTTER}}", f"pass {step.band} ".ljust(74, rule), "dim"))
            band = step.band
        is_left = step.lane != HOST
        text = f"{step.lane.removeprefix('guest ')}: {step.text}" if _is_other(step) else step.text
        side = bar if step.band else " "
        for place, (part, style) in enumerate(_wrapped(text, step.effects)):
            head = f"{step.op:>3} " if place == 0 else f"{'':{_GUTTER}}"
            left, right = (part, "") if is_left else ("", part)
            lines.append(_line(f"{head}", f"{left:<{_LANE}} {side} {right}".rstrip(), style))
        if number == race.lost_at:
            words = f"{arrow * 3} the page is lost from here on "
            lines.append(_line("", words.ljust(_COLUMNS, rule), "red"))
    if race.before:
        lines.append(_line("", ""))
        lines.append(_line("", f"{race.place}, from byte {race.offset:#x} on"))
        lines.append(_line("  the guest wrote        ", race.before))
        style = "red" if race.before != race.after else "green"
        lines.append(_line("  the destination reads  ", race.after, style))
    style = "red" if race.lost_at is not None else "green"
    lines += (_line("", part, style) for part in textwrap.wrap(race.sentence, _COLUMNS))
    return tuple(lines)


def _is_other(step: RaceStep) -> bool:
    return step.lane not in (GUEST, HOST)


def _line(head: str, text: str, style: str = "") -> StripLine:
    return StripLine(((head, "dim"), (text, style)))


def _wrapped(text: str, effects: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The lines of a step in its lane: its text, cut into words, then what changed."""
    yield from ((part, "") for part in _cut(text, ""))
    for effect in effects:
        yield from ((part, "yellow") for part in _cut(effect, "  = "))


def _cut(text: str, head: str) -> Iterator[str]:
    line = head
    for word in text.split():
        word = word[: _LANE - 4]
        if len(line) + len(word) > _LANE and line.strip():
            yield line.rstrip()
            line = "    "
        line += f"{word} "
    yield line.rstrip()


# SVG ------------------------------------------------------------------------------------------

RACE_STYLE: Final = (
    ".race text{font-size:12px;fill:var(--ink)}.race .dim{fill:var(--dim)}"
    ".race .effect{fill:var(--ink);font-style:italic}"
    ".race .box{fill:var(--page);stroke:var(--grid)}"
    ".race .host{stroke:var(--link)}.race .passband{fill:var(--panel);stroke:var(--line)}"
    ".race .lost{stroke:var(--bad);stroke-width:2;stroke-dasharray:6 3}"
    ".race .lostword{fill:var(--bad);font-weight:600}.race .rail{stroke:var(--line)}"
    ".race .mono{font-family:ui-monospace,monospace;white-space:pre}"
    ".race.narrow{display:none}"
    "@media(max-width:700px){.race.wide{display:none}.race.narrow{display:block}}"
)
_BOX: Final = 26
_NOTE: Final = 15
_GAP: Final = 8
_CHARACTER: Final = 6.7


class _Form(msgspec.Struct, frozen=True):
    """Where things stand: lanes from `left` on, `apart` from each other, boxes `box` wide; a wide
    race names its passes beside the lanes, a narrow one above the boxes."""

    width: int
    left: int
    apart: float
    box: float
    is_narrow: bool


def race_figure(race: Race, identity: str) -> str:
    """`race` as inline SVG for wide windows and for narrow ones, of which a page shows one."""
    return race_svg(race, identity) + race_svg(race, f"{identity}-narrow", is_narrow=True)


def race_svg(race: Race, identity: str, *, is_narrow: bool = False) -> str:
    """`race` as inline SVG with the page's colours; named and described for screen readers. Lanes
    stand beside each other, in a narrow one shifted."""
    lanes = race.lanes
    form = _Form(900, 60, 840 / len(lanes), 840 / len(lanes) - 14, False)
    if is_narrow:
        form = _Form(370, 4, 44 / (len(lanes) - 1 or 1), 318, True)
    body: list[str] = []
    y = 34.0
    spans: dict[int, list[float]] = {}
    for number, step in enumerate(race.steps):
        height = _BOX + _NOTE * len(step.effects)
        if step.band:
            if step.band not in spans:
                y += 20 if is_narrow else 0
                spans[step.band] = [y - (24 if is_narrow else 4), 0]
            spans[step.band][1] = y + height + 4
        body.append(_box(step, form, form.left + lanes.index(step.lane) * form.apart, y))
        y += height + _GAP
        if number == race.lost_at:
            body.append(
                f'<line class="lost" x1="0" x2="{form.width}" y1="{y + 2:.0f}" y2="{y + 2:.0f}"/>'
                f'<text class="lostword" x="{form.left}" y="{y + 17:.0f}">'
                "the page is lost from here on</text>"
            )
            y += 28
    bands = "".join(
        f'<rect class="passband" x="2" y="{top:.0f}" width="{form.width - 4}" '
        f'height="{bottom - top:.0f}" rx="6"/>'
        f'<text class="dim" x="8" y="{top + 16:.0f}">pass {number}</text>'
        for number, (top, bottom) in spans.items()
    )
    rails = "".join(
        f'<text x="{form.left + place * (90 if is_narrow else form.apart) + 8:.0f}" y="16" '
        f'font-weight="600">{escape(lane)}{" (blue)" if is_narrow and lane == HOST else ""}</text>'
        for place, lane in enumerate(lanes)
    )
    if race.before:
        for line in _bytes_read(race, is_narrow):
            body.append(
                f'<text class="mono" x="{form.left}" y="{y + 16:.0f}">{escape(line)}</text>'
            )
            y += 18
        y += 6
    name, least = escape(identity), "" if is_narrow else ";min-width:640px"
    return (
        f'<svg id="{name}" class="race {"narrow" if is_narrow else "wide"}" role="img" '
        f'viewBox="0 0 {form.width} {y + 8:.0f}" style="max-width:{form.width}px{least}" '
        f'aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{escape(race.sentence)}</title>'
        f'<desc id="{name}-d">{escape(describe_race(race))}</desc>'
        f"{bands}{rails}{''.join(body)}</svg>"
    )


def _bytes_read(race: Race, is_narrow: bool) -> Iterator[str]:
    """What the guest wrote and what it reads at the destination; less where it is narrow."""
    most = 8 * 3 - 1 if is_narrow else len(race.before)
    yield f"{race.place} from byte {race.offset:#x} on"
    yield f"the guest wrote       {race.before[:most]}"
    yield f"the destination reads {race.after[:most]}"


def _box(step: RaceStep, form: _Form, x: float, y: float) -> str:
    room = int((form.box - 32) / _CHARACTER)
    text = step.text if len(step.text) <= room else f"{step.text[: room - 1]}…"
    kind = "box host" if step.lane == HOST else "box"
    return (
        f'<rect class="{kind}" x="{x:.0f}" y="{y:.0f}" width="{form.box:.0f}" '
        f'height="{_BOX - 4}" rx="4"><title>{escape(step.text)}</title></rect>'
        f'<text class="dim" x="{x + 6:.0f}" y="{y + 15:.0f}">{step.op}</text>'
        f'<text x="{x + 30:.0f}" y="{y + 15:.0f}">{escape(text)}</text>'
        + "".join(
            f'<text class="effect" x="{x + 30:.0f}" y="{y + _BOX + 9 + place * _NOTE:.0f}">'
            f"{escape(effect)}</text>"
            for place, effect in enumerate(step.effects)
        )
    )


def describe_race(race: Race) -> str:
    """The race read out."""
    parts = []
    for number, step in enumerate(race.steps):
        where = f", pass {step.band}" if step.band else ""
        effects = f": {', '.join(step.effects)}" if step.effects else ""
        parts.append(f"{step.op}, {step.lane}{where}: {step.text}{effects}.")
        if number == race.lost_at:
            parts.append("The page is lost from here on.")
    return " ".join(parts)
