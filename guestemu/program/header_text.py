# SPDX-License-Identifier: GPL-2.0-or-later
"""The header of a program as lines of text, one field a line.

    guest snippet:6.1
    host map-gpa-range
    switches none
    sev sev
    cbit 39
    memory 64
    vcpus 1
    seed 0
    budget 1000000
    coherent yes
    cache incoherent

The writer gives every field, so that a file keeps its meaning when a default changes; only `cache`
and `layout` are left out where there is none, which will stay the default. The reader
takes a field left out at its default and refuses an unknown or repeated one.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi.caches import CacheModel
from guestemu.program.lexer import Place, Word, nearest, parse_number, quote, shown
from guestemu.program.program import Header, SevKind
from guestemu.program.validity import header_problem

FIELDS: Final = tuple(name for name in Header.__struct_fields__ if name != "plugin")
_NONE: Final = "none"
_YES_NO: Final = {"yes": True, "no": False}


class HeaderReader:
    """Collects header lines; `finish` gives the `Header` out."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[str, tuple[list[Word], Place]] = {}

    def take(self, words: list[Word], place: Place) -> None:
        """One line of at least one word. Raises `InputError` for a field unknown or repeated."""
        name = words[0].text
        if words[0].quoted or name not in FIELDS:
            raise place.error(f"no header field {shown(name)}; {nearest(name, FIELDS)}")
        if name in self._lines:
            first = self._lines[name][1].line
            raise place.error(f"{name} was given on line {first} already; keep one")
        self._lines[name] = (words[1:], place)

    def finish(self, end: Place) -> Header:
        """The header; `end` is the line of `---`. Raises `InputError` for a value out of range."""
        default = Header()
        header = Header(
            guest=self._text("guest", default.guest),
            host=self._text("host", default.host),
            switches=self._names("switches", "switch"),
            sev=self._sev(default.sev),
            cbit=self._number("cbit", default.cbit),
            memory=self._number("memory", default.memory),
            vcpus=self._number("vcpus", default.vcpus),
            seed=self._number("seed", default.seed),
            budget=self._number("budget", default.budget),
            coherent=self._flag("coherent", default.coherent),
            cache=self._cache(default.cache),
            layout=self._text("layout", default.layout),
            beside=self._names("beside", "host"),
        )
        problem = header_problem(header)
        if problem is not None:
            field, text = problem
            raise (self._lines[field][1] if field in self._lines else end).error(text)
        return header

    def _value(self, name: str) -> tuple[Word, Place] | None:
        if name not in self._lines:
            return None
        words, place = self._lines[name]
        if len(words) != 1:
            raise place.error(f"{name} takes one value, {len(words)} are given")
        return words[0], place

    def _text(self, name: str, default: str) -> str:
        found = self._value(name)
        return default if found is None else found[0].text

    def _number(self, name: str, default: int) -> int:
        found = self._value(name)
        if found is None:
            return default
        return parse_number(found[0].text, found[1], name)

    def _sev(self, default: SevKind) -> SevKind:
        found = self._value("sev")
        if found is None:
            return default
        for kind in SevKind:
            if kind.value == found[0].text:
                return kind
        known = ", ".join(kind.value for kind in SevKind)
        raise found[1].error(f"sev {shown(found[0].text)}; use {known}")

    def _cache(self, default: CacheModel) -> CacheModel:
        found = self._value("cache")
        if found is None:
            return default
        for model in CacheModel:
            if model.value == found[0].text:
                return model
        known = ", ".join(model.value for model in CacheModel)
        raise found[1].error(f"cache {shown(found[0].text)}; use {known}")

    def _flag(self, name: str, default: bool) -> bool:
        found = self._value(name)
        if found is None:
            return default
        if found[0].text not in _YES_NO:
            raise found[1].error(f"{name} {shown(found[0].text)}; use yes or no")
        return _YES_NO[found[0].text]

    def _names(self, field: str, what: str) -> tuple[str, ...]:
        if field not in self._lines:
            return ()
        words, place = self._lines[field]
        if words == [Word(_NONE)]:
            return ()
        if not words:
            raise place.error(f"{field} takes names separated by blanks, or none")
        names = tuple(word.text for word in words)
        if len(set(names)) < len(names):
            raise place.error(f"a {what} is named twice; keep one")
        return names


def _names_text(names: tuple[str, ...]) -> str:
    return " ".join(quote(name, (_NONE,)) for name in names) or _NONE


def format_header(header: Header) -> list[str]:
    """Every field of `header` as a line, without newlines."""
    values = {
        "guest": quote(header.guest),
        "host": quote(header.host),
        "switches": _names_text(header.switches),
        "sev": header.sev.value,
        "cbit": str(header.cbit),
        "memory": str(header.memory),
        "vcpus": str(header.vcpus),
        "seed": str(header.seed),
        "budget": str(header.budget),
        "coherent": "yes" if header.coherent else "no",
    }
    if header.cache is not CacheModel.NONE:
        values["cache"] = header.cache.value
    if header.layout:
        values["layout"] = quote(header.layout)
    if header.beside:
        values["beside"] = _names_text(header.beside)
    return [f"{name} {values[name]}" for name in FIELDS if name in values]
