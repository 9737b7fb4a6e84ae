# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu explain` knows: facts, ops, checks, keys of findings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.facts import CITATION, canonical_id, facts, find_fact, members, sentences
from guestemu.abi.names import plural
from guestemu.report.document import Bullets, Content, Document, Item, Paragraph

_ROOT: Final = Path(__file__).parents[2]
_SEARCHED: Final = ("guestemu", "docs", "corpora", "examples", "README.md")
_SUFFIXES: Final = frozenset({".py", ".md", ".prog", ".c", ".h", ".s", ".S"})
_MOST_PLACES: Final = 12
_KEY: Final = re.compile(r"([a-z][a-z0-9_-]*)-[0-9a-f]{6,}$")
"""Of a finding: check-digest or check-operation-digest."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What `id` stands for. `kind` is "fact", "op" or "check"; `used` lists FILE:LINE of a fact's
    citations, as far as the files are here (a wheel has no docs/)."""

    id: str
    kind: str
    text: str
    source: str
    used: tuple[str, ...] = ()


def document(found: Explanation) -> Document:
    """For people."""
    lead: list[Content] = [Bullets(tuple(found.text.splitlines()))]
    if found.source:
        lead.append(Paragraph(f"source: {found.source}"))
    if found.used:
        lines = list(found.used[:_MOST_PLACES])
        if len(found.used) > _MOST_PLACES:
            lines.append(f"... and {len(found.used) - _MOST_PLACES} more; --json lists them all")
        lead.append(Paragraph(f"used in {plural(len(found.used), 'place')}:"))
        lead.append(Bullets(tuple(lines)))
    return Document("", lead=(Item(f" ({found.kind})", (), "bold", found.id), *lead))


def explanation(text: str) -> Explanation:
    """The explanation of `text`.

    Raises:
        InputError: nothing is called so; the message has a suggestion.
    """
    text = " ".join(text.split())
    ops, checks = _ops(), _checks()
    name = text.lower()
    if name in ops:
        return Explanation(id=name, kind="op", text=ops[name], source="docs/program-format.md")
    key = _KEY.fullmatch(name)
    check = _check_of(key[1], checks) if key else name
    if check in checks:
        property_, source = checks[check]
        return Explanation(id=text, kind="check", text=property_, source=source)
    family = members(text[:1].upper() + text[1:])
    if family:
        told = "\n".join(f"{fact.id}: {fact.sentence}" for fact in family)
        return Explanation(id=text, kind="fact", text=told, source=f"docs/facts/{family[0].sheet}")
    try:
        fact = find_fact(text)
    except InputError as error:
        close = get_close_matches(text, [*ops, *checks, *facts()], 1)
        remedy = f"; did you mean {close[0]}?" if close else f": {error}"
        raise InputError(f"nothing is called {text!r}{remedy}") from None
    used = tuple(_citations(fact.id))
    return Explanation(id=fact.id, kind="fact", text=fact.text, source=fact.source, used=used)


def _check_of(words: str, checks: Iterable[str]) -> str:
    """The check whose name `words` starts with, the longest of them; `words` without one."""
    fitting = [name for name in checks if words == name or words.startswith(f"{name}-")]
    return max(fitting, key=len, default=words)


def _ops() -> dict[str, str]:
    from guestemu.program.ops import SPECS

    found = {}
    for spec in SPECS.values():
        arguments = " ".join(f"{argument.name}=" for argument in spec.arguments)
        operand = " PAGE" if spec.has_page else ""
        found[spec.name] = f"{spec.name}{operand} {arguments}".rstrip() + f"\n{spec.help}"
    return found


def _checks() -> Mapping[str, tuple[str, str]]:
    """Of each kind of violation, by name: what its check demands, what it means, the facts behind
    it; and the source."""
    from guestemu.checks import standard_checks
    from guestemu.checks.base import Oracle
    from guestemu.checks.lost import LostCheck
    from guestemu.report.trace.explain import demand, explain

    found: dict[str, tuple[str, str]] = {}
    for check in (*standard_checks(), LostCheck()):
        about = inspect.getdoc(type(check)) or ""
        cited = [f"{key}: {sentence}" for key, sentence in sentences(about)]
        module = f"{type(check).__module__.replace('.', '/')}.py"
        own = check.demands if isinstance(check, Oracle) else {}
        for name in own:
            meaning = (explain(name), f"Expected: {demand(name)}")
            found.setdefault(name, ("\n".join((*meaning, *cited)), module))
        if check.name not in own:
            kinds = f"Its violations: {', '.join(own)}." if own else ""
            parts = ("" if about.startswith("See") else about.partition("\n\n")[0], kinds)
            found.setdefault(check.name, ("\n".join(filter(None, parts)), module))
    return found


def _citations(key: str) -> Iterator[str]:
    """FILE:LINE of each citation of the fact `key`."""
    for name in _SEARCHED:
        path = _ROOT / name
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        for file in files:
            if file.suffix not in _SUFFIXES or "facts" in file.parts:
                continue
            text = file.read_text(encoding="utf-8", errors="replace")
            if key.split(".")[0] not in text:
                continue
            for number, line in enumerate(text.splitlines(), 1):
                if any(canonical_id(match[1]) == key for match in CITATION.finditer(line)):
                    yield f"{file.relative_to(_ROOT)}:{number}"
