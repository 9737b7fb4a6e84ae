# SPDX-License-Identifier: GPL-2.0-or-later
"""The site's sources: every page of docs has a place, the reference is the code's, the pages' own
commands run. `make docs` builds the site itself, with warnings as errors."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from guestemu.cli.main import find_verbs, main
from guestemu.program.ops import SPECS

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs" / "site").glob("*.md"))
COMMAND = re.compile(r"^    \$ guestemu (.+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_build", ROOT / "docs" / "site" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(ROOT))
    return module


def test_every_page_has_one_place(site: ModuleType) -> None:
    placed = [file for pages in site.navigation().values() for file in pages.values()]
    assert len(placed) == len(set(placed))
    docs = {path.name for path in (ROOT / "docs").glob("*.md")} | {path.name for path in GUIDES}
    docs |= {f"facts/{path.name}" for path in (ROOT / "docs" / "facts").glob("*.md")}
    generated = {file for file, _ in site.REFERENCE.values()} | {"studies.md"}
    assert set(placed) == docs | generated


def test_the_reference_is_the_codes(site: ModuleType) -> None:
    verbs = site.verbs()
    assert [verb for verb in find_verbs() if f"## guestemu {verb}\n" not in verbs] == []
    operations = site.operations()
    assert [one.name for one in SPECS.values() if f"| `{one.name}` |" not in operations] == []
    assert "## status" in site.checks()
    assert "[K3-c](facts/facts.md#K3-c)" in site.fact_index()


def test_pages_have_their_pictures(site: ModuleType) -> None:
    page = site.page_of(ROOT / "docs" / "site" / "how-it-works.md")
    assert page.count('role="img"') == 5
    assert page.count('class="race ') == 2  # for wide windows and for narrow ones
    assert "<!--" not in page


@pytest.mark.parametrize("page", GUIDES, ids=lambda path: path.stem)
def test_commands_of_the_guides_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("corpora", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    for line in COMMAND.findall(page.read_text(encoding="utf-8")):
        if line == "demo":
            continue  # the README's test runs it
        words = [
            str(path)
            for word in shlex.split(line)
            for path in (sorted(Path().glob(word)) if "*" in word else [word])
        ]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words)
        assert status in (0, 1), (line, err.getvalue())


def test_commands_are_sessions_that_a_button_copies(site: ModuleType) -> None:
    page = site.page_of(ROOT / "docs" / "campaigns.md")
    assert "```console\n$ guestemu fuzz msr --execs 300 --workdir first\n$ guestemu status" in page
    assert "    journal/           inputs and violations as workers met" in page  # no command: kept
    assert "](read-a-finding.md)" in page  # pages of docs/site stand beside those of docs
