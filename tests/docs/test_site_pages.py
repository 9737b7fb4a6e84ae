# SPDX-License-Identifier: GPL-2.0-or-later
"""The built site in a real browser, looked at as `tests/report/test_pages.py` looks at reports:
readable contrast, no text on another, names for screen readers, links that lead somewhere.

GUESTEMU_SCREENSHOTS=DIR keeps the screenshots.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report.browser import Browser

ROOT = Path(__file__).parents[2]
FACTS_AND_MORE = 45
"""Fewer pages than this, and the site was not built whole."""

_COPIED = """
(() => {
  const code = document.querySelector("pre > code");
  code.setAttribute("data-md-copying", "");
  const text = code.innerText;
  code.removeAttribute("data-md-copying");
  return text;
})()
"""
"""What the theme's button copies of the first block."""

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("no MkDocs; `make docs` installs it")
    spec = importlib.util.spec_from_file_location("site_made", ROOT / "docs" / "site" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.BUILD = tmp_path_factory.mktemp("build")
    module.SOURCES, module.SITE = module.BUILD / "site-sources", module.BUILD / "site"
    assert module.main([]) == 0
    assert isinstance(module.SITE, Path)
    return module.SITE


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_pages_can_be_read(
    site: Path, browser: Browser, width: int, is_dark: bool, tmp_path: Path
) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) >= FACTS_AND_MORE
    kept = Path(os.environ.get("GUESTEMU_SCREENSHOTS", tmp_path))
    wrong: dict[str, list[str]] = {}
    for page in pages:
        name = page.relative_to(site).with_suffix("").as_posix()
        browser.open(page, width, is_dark)
        scheme = browser.evaluate("document.body.dataset.mdColorScheme")
        assert scheme == ("slate" if is_dark else "default")
        if found := browser.audit():
            wrong[name] = found
        if kept != tmp_path:
            look = f"site-{name.replace('/', '-')}-{width}-{'dark' if is_dark else 'light'}.png"
            browser.screenshot(kept / look)
    assert wrong == {}


def test_a_pages_commands_are_copied_without_prompt_and_output(
    site: Path, browser: Browser
) -> None:
    browser.open(site / "campaigns.html", 1200, False)
    copied = browser.evaluate(_COPIED).split("\n")
    assert copied[0] == "guestemu fuzz msr --execs 300 --workdir first"
    assert all(re.match(r"guestemu |$", line) for line in copied)
    browser.open(site / "how-it-works.html", 1200, False)
    assert browser.evaluate(_COPIED).strip().startswith("guestemu run corpora/")
