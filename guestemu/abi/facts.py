# SPDX-License-Identifier: GPL-2.0-or-later
"""The facts that the models follow: what docs/facts says under each id.

The sheets are Markdown. A fact starts at an anchor, `<a id="K3-c"></a>`, and ends before the next
anchor, heading or rule; an anchor in a table row stands for that row. So the sheets stay the only
place where a fact is written, and a corrected sheet needs no change here.

Ids: A1 to F17 and K1-a to K5-f (Linux, KVM, QEMU, the SEV firmware, mirror VMs), C1 to C31 (claims
of the mailing-list debate), M1 to M76 (known bugs), H.4.1 to H.4.7 (the properties that checks
look at, cited as "H.4 item 1"), N (SNP page states), T (TDX guests), U (user space), V, GM and LV
(hosts of 2026), and the sections A to I of facts.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.shipped import shipped_path

_ANCHOR: Final = re.compile(r'<a id="([^"]+)"></a>')
_HEADING: Final = re.compile(r"#{1,6} ")
_RULE: Final = re.compile(r"\|[-| :]+\|$")
_ITEM: Final = re.compile(r"([A-I]\.\d+),? items? (\d+)$")
_VARIANT: Final = re.compile(r"(M\d+)[a-z]$")
_TAG: Final = re.compile(r" ?\[[SMDURG](?:[ ;,][^\]]*)?\]")
_STOP: Final = re.compile(r"[().;](?= |$)|[()]")
_SHORT: Final = 60
"""A semicolon ends a sentence only behind so many characters, a full stop behind half of them."""
_PROVENANCE: Final = re.compile(r"(?:Sources?|Facts|Firmware facts)\b")
_MAX_SENTENCE: Final = 240

CITATION: Final = re.compile(
    r"(?<![\w.\[-])"
    r"([A-H]\d{1,2}[a-d]?|GM\d{1,2}|LV\d|K[1-5]-[a-z]|M\d{1,2}[a-z]?|[NTV]\d{1,2}|U(?!32|64)\d{1,2}"
    r"|[A-I]\.\d{1,2}(?:,? items? \d+)?)"
    r"(?![\w\[(=-])"
)
"""How code, docs and corpora cite a fact (U32 and U64 are names of masks)."""


class CitedFact(msgspec.Struct, frozen=True):
    """One fact: its `id`, `text` (Markdown without the anchor), the `sheet` and `section` it stands
    in, and what that section says about its `provenance` (may be empty)."""

    id: str
    text: str
    sheet: str
    section: str
    provenance: str = ""

    @property
    def source(self) -> str:
        """Where the fact stands, and what it was read from."""
        place = f"docs/facts/{self.sheet}#{self.id}, {self.section}"
        return f"{place}. {self.provenance}" if self.provenance else place

    @property
    def sentence(self) -> str:
        """The first sentence, without Markdown and tags, cut to 240 characters; the title of a
        section."""
        plain = re.sub(r"[*`]", "", " ".join(self.text.split())).replace("\\|", "|")
        plain = _TAG.sub("", plain)
        plain = re.sub(rf"^(Claim )?{re.escape(self.id)}(?![\w.])", "", plain).lstrip(" -–:.|")
        words = plain[: _first_stop(plain)].rstrip(" :;,")
        return words if len(words) <= _MAX_SENTENCE else words[: _MAX_SENTENCE - 2].rstrip() + " …"


@cache
def facts() -> Mapping[str, CitedFact]:
    """All facts by id, in the order of the sheets."""
    found: dict[str, CitedFact] = {}
    for path in sorted(shipped_path("facts").glob("*.md")):
        for fact in _read_sheet(path.name, path.read_text(encoding="utf-8")):
            found[fact.id] = fact
    return found


def canonical_id(text: str) -> str:
    """`text` as the sheets write the id: "H.4 item 1" is H.4.1, "M39a" (a variant) is M39."""
    text = " ".join(text.split())
    item = _ITEM.fullmatch(text)
    if item:
        return f"{item[1]}.{item[2]}"
    variant = _VARIANT.fullmatch(text)
    if variant and text not in facts():
        return variant[1]
    return text


def find_fact(text: str) -> CitedFact:
    """The fact that `text` cites, upper or lower case.

    Raises:
        InputError: no sheet has it.
    """
    wanted = canonical_id(text)
    known = facts()
    if wanted in known:
        return known[wanted]
    folded = {key.lower(): key for key in known}
    key = folded.get(canonical_id(text.upper()).lower(), folded.get(wanted.lower()))
    if key is None:
        raise InputError(f"no fact {text!r}; docs/facts/README.md lists them")
    return known[key]


def members(prefix: str) -> tuple[CitedFact, ...]:
    """The facts of a family cited as one: "K3" stands for K3-a, K3-b and so on."""
    return tuple(fact for key, fact in facts().items() if key.startswith(f"{prefix}-"))


def sentences(citation: str) -> tuple[tuple[str, str], ...]:
    """Id and sentence of each fact that `citation` ("A.9, H.4 item 2") names."""
    found: dict[str, str] = {}
    for match in CITATION.finditer(citation):
        fact = facts().get(canonical_id(match[1]))
        if fact is not None:
            found[match[1]] = fact.sentence
    return tuple(found.items())


def cite(citation: str) -> str:
    """`citation` for a reader: each fact's sentence with its id behind it.

    A range ("D1 to D23") and what no sheet has stays as it is.
    """
    found = () if " to " in citation else sentences(citation)
    if not found:
        return citation
    return " ".join(f"{sentence.rstrip('.')} [{key}]." for key, sentence in found)


def _first_stop(text: str) -> int:
    """Where the first sentence of `text` ends: outside parentheses, not at a list's number."""
    depth = 0
    for match in _STOP.finditer(text):
        mark, at = match[0], match.start()
        if mark in "()":
            depth = max(0, depth + (1 if mark == "(" else -1))
        elif depth == 0 and mark == "." and at >= _SHORT // 2 and not text[at - 1].isdigit():
            return at + 1
        elif depth == 0 and mark == ";" and at >= _SHORT:
            return at
    return len(text)


def _read_sheet(sheet: str, text: str) -> list[CitedFact]:
    """The facts of one sheet."""
    found: list[CitedFact] = []
    section, provenance = "", ""
    header: list[str] = []
    body: list[str] | None = None
    key = ""

    def close() -> None:
        nonlocal body
        if body is not None:
            found.append(CitedFact(key, "\n".join(body).strip(), sheet, section, provenance))
        body = None

    def keep(line: str) -> None:
        if body is not None:
            body.append(line)

    for line in text.splitlines():
        anchor = _ANCHOR.search(line)
        shown = _ANCHOR.sub("", line)
        if _HEADING.match(line) or line == "---":
            close()
            section, provenance = shown.lstrip("# "), ""
            title = [f"{re.sub(r'^[A-I](?:[.][0-9]+)?[.]? ', '', section)}."]
            key, body = (anchor[1], title) if anchor else ("", None)
        elif line.startswith("|") and not anchor:
            header = _header(header, line, body or [])
            keep(line)
        elif anchor and line.startswith("|"):
            close()
            found.append(CitedFact(anchor[1], _row(header, shown), sheet, section, provenance))
        elif anchor:
            close()
            key, body = anchor[1], [re.sub(r"^(?:- |\d\. )", "", shown)]
        else:
            provenance = provenance or _provenance(line)
            keep(line)
    close()
    return found


def _provenance(line: str) -> str:
    """`line` if it says what its section was read from."""
    return line if _PROVENANCE.match(line) else ""


def _header(known: list[str], line: str, above: list[str]) -> list[str]:
    """The headings of a table at its row `line`, below the lines `above`."""
    is_first = not above or above[-1][:1] != "|"
    return _cells(line) if is_first and not _RULE.match(line) else known


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def _row(header: list[str], line: str) -> str:
    """A table row as text: the second cell, then the others behind their headings."""
    cells = _cells(line)[1:]
    names = [*header[1:], *([""] * len(cells))][: len(cells)]
    parts = [
        cells[0],
        *(f"{name}: {cell}" for name, cell in zip(names[1:], cells[1:], strict=True)),
    ]
    return "; ".join(part.rstrip(".") for part in parts if part) + "."
