# SPDX-License-Identifier: GPL-2.0-or-later
"""Replay results as SARIF 2.1.0, which code-scanning services show beside the lines of files.

Each expectation that does not hold is a result at its `expect` line; a program that expects nothing
and goes wrong, and a file that is not a program, are results at the first line.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import quote

import msgspec

from guestemu import __version__
from guestemu.replay.suite import Result
from guestemu.report.trace.explain import explain

VERSION: Final = "2.1.0"
SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
BAD_INPUT: Final = "bad-input"
_UNEXPECTED: Final = "no violation of "

_RULES: Final = {
    BAD_INPUT: "The file is not a program that can be run.",
    "outcome": "The run ends as its program expects.",
    "violation": "The checks fail that the program expects to fail, and no others.",
    "hypercalls": "The guest makes as many hypercalls as expected.",
    "trace_hash": "The run takes the expected course, event by event.",
    "result": "An operation returns what is expected.",
    "value": "A load gives what is expected.",
    "exception": "An operation ends in the expected exception.",
    "warning": "The guest warns as expected.",
    "run": "The run comes to an end.",
}


class _Region(msgspec.Struct, rename="camel"):
    start_line: int


class _Text(msgspec.Struct):
    text: str


class _Artifact(msgspec.Struct):
    uri: str


class _Physical(msgspec.Struct, rename="camel"):
    artifact_location: _Artifact
    region: _Region


class _Location(msgspec.Struct, rename="camel"):
    physical_location: _Physical


class _Result(msgspec.Struct, rename="camel"):
    rule_id: str
    rule_index: int
    level: str
    message: _Text
    locations: list[_Location]
    partial_fingerprints: dict[str, str]


class _Rule(msgspec.Struct, rename="camel"):
    id: str
    short_description: _Text


def _rule_of(expectation: str) -> str:
    """The rule that an expectation, as `format_expectation` writes it, comes under."""
    if expectation.startswith(_UNEXPECTED):
        return "violation"
    words = expectation.split()
    name = words[1] if words[:1] == ["expect"] else "run"
    return name if name in _RULES else "run"


def _meaning(expectation: str) -> str:
    """What the check's violation means: "expect violation CHECK" or "no violation of CHECK"."""
    words = expectation.removeprefix(_UNEXPECTED).removeprefix("expect violation ").split()
    return explain(words[0]) if words else ""


def _line_of(lines: Sequence[str], expectation: str) -> int:
    """The line that says `expectation`, else the first."""
    words = expectation.split()
    for number, line in enumerate(lines, 1):
        if line.split() == words:
            return number
    return 1


def _uri(path: Path) -> str:
    """Relative to the working directory where it lies below, for services that know the repository
    and not this machine."""
    absolute = path.resolve()
    here = Path.cwd()
    if absolute.is_relative_to(here):
        return quote(os.fsencode(PurePosixPath(absolute.relative_to(here))))
    return absolute.as_uri()


def _storable(text: str) -> str:
    """`text` without what UTF-8 cannot hold: undecodable bytes of file names."""
    return text.encode("utf-8", "backslashreplace").decode()


def _results(results: Sequence[Result], index: dict[str, int]) -> Iterator[_Result]:
    for result in results:
        if result.passed:
            continue
        path = Path(result.program)
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        found = [
            (m.expectation, f"expected: {m.expectation}; found: {m.found}")
            for m in result.mismatches
        ]
        if result.bad is not None:
            found.append((BAD_INPUT, result.bad))
        for expectation, text in found:
            rule = BAD_INPUT if expectation == BAD_INPUT else _rule_of(expectation)
            why = _meaning(expectation) if rule == "violation" else ""
            uri = _uri(path)
            words = f"{uri}\n{_storable(expectation)}"
            digest = hashlib.sha256(words.encode()).hexdigest()
            place = _Physical(_Artifact(uri), _Region(_line_of(lines, expectation)))
            yield _Result(
                rule,
                index[rule],
                "error",
                _Text(_storable(f"{text} {why}".strip())),
                [_Location(place)],
                {"expectation/v1": digest[:32]},
            )


def sarif_log(results: Sequence[Result]) -> bytes:
    """One SARIF log with one run."""
    index = {name: number for number, name in enumerate(_RULES)}
    rules = [_Rule(name, _Text(text)) for name, text in _RULES.items()]
    driver = {"name": "guestemu", "version": __version__, "rules": rules}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [{"executionSuccessful": all(r.bad is None for r in results)}],
        "results": list(_results(results, index)),
    }
    log = {"$schema": SCHEMA, "version": VERSION, "runs": [run]}
    return msgspec.json.format(msgspec.json.encode(log), indent=2) + b"\n"
