# SPDX-License-Identifier: GPL-2.0-or-later
"""What the documents point at exists: files, headings, verbs and their options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import typer.main

from guestemu.cli.main import _build, find_verbs

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
)
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)
ANCHOR = re.compile(r"<a (?:id|name)=\"([^\"]+)\"")


def anchors(page: Path) -> set[str]:
    """The names that a link can give after `#`, as GitHub makes them from headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found = set(ANCHOR.findall(text))
    for heading in HEADING.findall(text):
        shown = LINK.sub(lambda link: link.group().partition("](")[0][1:], heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number = 0
        while (unique := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(unique)
    return found


def dead_links(page: Path) -> Iterator[str]:
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{page.relative_to(ROOT)}: {link}: no such file"
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            yield f"{page.relative_to(ROOT)}: {link}: no such heading"


def test_links_lead_somewhere() -> None:
    assert [line for page in PAGES for line in dead_links(page)] == []


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `guestemu …` in a code block, lines that end with a backslash joined."""
    for block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if line.startswith("guestemu "):
                try:
                    yield shlex.split(line, comments=True)[1:]
                except ValueError:
                    yield line.split()[1:]


class Verbs:
    """The options of every verb, read from its declaration."""

    def __init__(self) -> None:
        app, _ = _build(find_verbs())
        self._verbs = typer.main.get_command(app).commands

    def problem(self, words: list[str]) -> str:
        """Why this command line cannot be right; empty if none is known."""
        if not words or words[0].startswith(("-", "V", "…", "[")):
            return ""
        if words[0] not in self._verbs:
            return f"no verb {words[0]}"
        node = self._verbs[words[0]]
        rest = words[1:]
        while rest and hasattr(node, "commands") and rest[0] in node.commands:
            node, rest = node.commands[rest[0]], rest[1:]
        known = {"--help", "-h"}
        for parameter in node.params:
            known |= {*parameter.opts, *parameter.secondary_opts}
        for word in rest:
            if word in {"|", "&&", ";", "||", ">"}:
                break
            option = word.partition("=")[0]
            if re.fullmatch(r"--?[a-zA-Z][\w-]*", option) and option not in known:
                return f"{' '.join(words[:2])} has no option {option}"
        return ""


@pytest.fixture(scope="module")
def verbs() -> Verbs:
    return Verbs()


def test_commands_exist_with_their_options(verbs: Verbs) -> None:
    wrong = [
        f"{page.relative_to(ROOT)}: {verbs.problem(words)}: {' '.join(words)}"
        for page in PAGES
        for words in commands(page.read_text(encoding="utf-8"))
        if verbs.problem(words)
    ]
    assert wrong == []


def test_the_check_finds_what_is_wrong(tmp_path: Path, verbs: Verbs, monkeypatch) -> None:
    monkeypatch.setattr("test_docs_links.ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# One: `two`\n# One: `two`\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](none.md) [b](other.md#one-two-1) [c](other.md#three) [d](https://example.org)\n"
        "```\n$ guestemu fuzz msr --no-such \\\n  --jobs 2\nguestemu nothing\n```\n"
    )
    assert list(dead_links(page)) == [
        "page.md: none.md: no such file",
        "page.md: other.md#three: no such heading",
    ]
    assert [verbs.problem(words) for words in commands(page.read_text())] == [
        "fuzz msr has no option --no-such",
        "no verb nothing",
    ]
