# SPDX-License-Identifier: GPL-2.0-or-later
"""The site is searched as files, too: its worker runs although browsers start none from a file."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.report.browser import Browser

SITE = Path(__file__).parents[2] / "docs" / "site"
_WORKER = """
let words = [];
importScripts("more.js").then(() => words.push("loaded"));
addEventListener("message", (event) => postMessage([event.data, ...words, typeof more].join(" ")));
"""
_ASK = """
new Promise((done) => {
  const worker = new Worker("worker.js");
  const heard = [];
  worker.addEventListener("message", (event) => {
    heard.push(event.data);
    if (heard.length < 2) setTimeout(() => worker.postMessage("second"), 200);
    else done(heard);
  });
  worker.postMessage("first");
})
"""


def test_a_worker_of_a_file_answers(tmp_path: Path) -> None:
    shutil.copy(SITE / "iframe-worker.js", tmp_path)
    (tmp_path / "worker.js").write_text(_WORKER)
    (tmp_path / "more.js").write_text("var more = 1;")
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><title>t</title><script src=iframe-worker.js></script><p>x")
    with Browser(tmp_path / "profile") as browser:
        browser.open(page, 800, False)
        first, second = browser.evaluate(_ASK)
    assert first.startswith("first")
    assert second == "second loaded number"
