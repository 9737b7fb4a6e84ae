# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of the README run, in order, in one directory; those of docs/ exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main

from guestemu.cli import main as frame
from guestemu.cli.main import find_verbs, main
from guestemu.guest.linux.images import fetched_images

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted(
    path
    for path in (README, *ROOT.glob("docs/**/*.md"), ROOT / "examples/host-project/README.md")
    if "facts" not in path.parts
)
NUMBER = re.compile(r"\d[\d,.]*")
MEASURED = re.compile(r" s$|/s|in \d|0xffff")


class Shown(NamedTuple):
    """A command of the README and the lines printed below it there."""

    words: list[str]
    lines: list[str]


def shown_commands() -> Iterator[Shown]:
    lines = README.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("    $ guestemu "):
            below = []
            for printed in lines[number + 1 :]:
                if not printed.startswith("    ") or printed.startswith("    $ "):
                    break
                below.append(printed[4:].rstrip())
            yield Shown(shlex.split(line.strip()[2:])[1:], below)


def is_here(words: list[str]) -> bool:
    """Whether this machine has the kernel that a command wants."""
    return words[0] != "kernel" or any(image.series == "6.1" for image in fetched_images())


def as_compared(line: str) -> str:
    """A line without the figures that depend on the machine."""
    text = line.strip()
    return NUMBER.sub("N", text) if MEASURED.search(text) else text


def test_the_readme_runs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("corpora", "examples", "tests", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    ran = 0
    for words, lines in shown_commands():
        if not is_here(words) or words[:2] == ["kernel", "fetch"]:
            continue
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words)
        assert status in (0, 1), (words, err.getvalue())
        printed = {as_compared(line) for line in out.getvalue().splitlines()}
        missing = [line for line in lines if as_compared(line) not in printed]
        assert missing == [], (words, out.getvalue())
        ran += 1
    assert ran >= 15


def commands_of(text: str) -> Iterator[list[str]]:
    """What a page says to type: lines of code blocks that start with `guestemu`."""
    joined = text.replace("\\\n", " ")
    for line in joined.splitlines():
        match = re.match(r"(?:    |```)?\s*(?:\$ )?guestemu ([a-z].*)", line)
        if match and (line.startswith(("    ", "$ ")) or "$ guestemu" in line):
            code = re.split(r"\s[|#>]|  +", match[1])[0].strip()
            with contextlib.suppress(ValueError):
                yield shlex.split(code)


PAGE_COMMANDS = [
    (str(page.relative_to(ROOT)), words)
    for page in PAGES
    for words in commands_of(page.read_text())
]


@pytest.mark.parametrize("page", sorted({page for page, _ in PAGE_COMMANDS}))
def test_commands_of_the_docs_exist(page: str) -> None:
    """Verb and options are there: the parser takes them."""
    for place, words in PAGE_COMMANDS:
        if place == page:
            assert problem_of(words) is None, (page, words, problem_of(words))


def problem_of(words: list[str]) -> str | None:
    verbs = find_verbs()
    if words[0] not in verbs:
        return f"no verb {words[0]}"
    app, modules = frame._build({words[0]: verbs[words[0]]})
    command: object = typer.main.get_command(app)
    rest = frame._with_new_names(words, modules)
    parent = None
    while True:
        below = getattr(command, "commands", None)
        name = "guestemu" if parent is None else rest[0]
        if parent is not None:
            rest = rest[1:]
        try:
            parent = command.make_context(name, list(rest), parent=parent)
        except Exception as error:
            return str(error) or type(error).__name__
        if not below:
            return None
        rest = [*getattr(parent, "_protected_args", []), *parent.args]
        if not rest:
            return None
        if rest[0] not in below:
            return f"no verb {rest[0]}"
        command = below[rest[0]]


def test_a_command_that_does_not_exist_is_seen() -> None:
    assert problem_of(["fuzz", "hypercall", "--no-such-option"]) is not None
    assert problem_of(["kernel", "bot"]) is not None
    assert problem_of(["kernel", "boot", "--image", "6.1"]) is None
    assert problem_of(["fuzz", "msr", "--seeds", "none", "--time", "10m"]) is None


def test_the_readme_lists_every_verb() -> None:
    rows = re.findall(r"^\| [A-Z][a-z ]+ \| (`.*`) \|$", README.read_text(), re.MULTILINE)
    assert set(re.findall(r"`([a-z]+)`", " ".join(rows))) == set(find_verbs())
