# SPDX-License-Identifier: GPL-2.0-or-later
"""Every page in a real browser at 1200 and 400 pixels, light and dark: readable contrast, no text
on another, names for screen readers, links that lead somewhere, nothing fetched, under 1 MB.

GUESTEMU_SCREENSHOTS=DIR keeps the screenshots.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser
from page_samples import HOSTILE, WRITERS, documents, page_writers

from guestemu.campaign.store import CampaignRecord, Store
from guestemu.cli.main import main
from guestemu.dma.document import dma_document
from guestemu.dma.model import ModelRun
from guestemu.dma.source import open_trace
from guestemu.program.table import op_table
from guestemu.report.document import document_page

ROOT = Path(__file__).parents[2]
OWN = ("campaign", "dma", "ledger", "race", "explore")
"""Pages of real runs, looked at in both widths and both schemes."""

MADE = ("witness", "sweep", "kernels", "tested", "kinds", "answers", "conversions", "zoo", "claims")
"""Pages of made-up figures: all of them come from one renderer."""

LOOKS = [(name, width, is_dark) for name in OWN for width in (1200, 400) for is_dark in (0, 1)] + [
    (name, *look) for name in MADE for look in ((1200, 0), (400, 1))
]
FINDINGS = {
    "status-hypercall-00000001": "examples/demo/forgotten-error.prog",
    "status-hypercall-00000002": "corpora/conversion/hole-middle.prog",
    "td-hypercall-00000003": "corpora/tdx/cut-conversion.prog",
    "status-hypercall-00000004": "corpora/conversion/round-trip-6.12.prog",
}


def campaign(root: Path) -> Path:
    """A campaign with findings of known programs: three shown, one gone, one without a program."""
    record = CampaignRecord(HOSTILE, "snippet:6.1", "map-gpa-range", 39, False, ops=op_table([]))
    Store.create(root, record, resume=False)
    counts = []
    for number, (key, path) in enumerate({**FINDINGS, "lost-read-00000005": ""}.items()):
        counts.append(
            {"key": key, "check": key.split("-")[0], "count": 9 - number, "first_seen_s": 1.5}
        )
        if path:
            text = (ROOT / path).read_text()
            comment = f"# {HOSTILE}\n"
            if number == 0:
                comment += f"# Host code that runs only when this goes wrong:\n#   {HOSTILE}\n"
            head, rest = text.split("\n", 1)
            (root / "findings").mkdir(exist_ok=True)
            (root / "findings" / f"{key}.prog").write_text(f"{head}\n{comment}{rest}")
    (root / "findings.json").write_text(json.dumps(counts))
    return root


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    campaign(root / "w")
    assert main(["report", str(root / "w"), "-o", str(root / "campaign.html")]) == 0
    run = ModelRun("6.1", 256)
    with open_trace(ROOT / "tests/data/dma-traces/linux-6.12-q35-boot.trace") as reader:
        for event in reader:
            run.step(event)
    page = document_page(dma_document(run.report(), f"boot {HOSTILE}", run.address_map()))
    (root / "dma.html").write_text(page, encoding="utf-8")
    words = ["--policy", "warn", "--flow", "decrypt-1", "--html", str(root / "ledger.html")]
    assert main(["ledger", *words]) == 0
    race = ROOT / "corpora/migration/status-before-dirty-s1.prog"
    assert main(["race", str(race), "-o", str(root / "race.html")]) == 1
    assert main(["explore", "--html", str(root / "explore.html")]) == 1
    for name, document in documents().items():
        (root / f"{name}.html").write_text(document_page(document), encoding="utf-8")
    return {name: root / f"{name}.html" for name in (*OWN, *MADE)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


def test_every_writer_of_a_page_is_looked_at(pages: dict[str, Path]) -> None:
    assert page_writers() == set(WRITERS)
    assert {name for names in WRITERS.values() for name in names} == set(pages)


@pytest.mark.parametrize(("name", "width", "is_dark"), LOOKS)
def test_a_page_can_be_read(
    name: str, width: int, is_dark: int, pages: dict[str, Path], browser: Browser, tmp_path: Path
) -> None:
    browser.open(pages[name], width, bool(is_dark))
    assert browser.audit() == []
    assert "owned" not in browser.evaluate("document.title.replaceAll('=\"owned\"', '')")
    kept = Path(os.environ.get("GUESTEMU_SCREENSHOTS", tmp_path))
    png = browser.screenshot(kept / f"{name}-{width}-{'dark' if is_dark else 'light'}.png")
    assert struct.unpack_from(">I", png, 16)[0] == width


def test_a_page_is_one_small_file_that_fetches_nothing(pages: dict[str, Path]) -> None:
    for path in pages.values():
        text = path.read_text(encoding="utf-8")
        assert len(text.encode()) < 1_000_000
        assert not re.search(r"\ssrc\s*=\s*[^&]|url\(|@import", re.sub(r"&[^;]+;.*?&gt;", "", text))
        assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', text))
        assert text.count("<script") == 1
        assert "default-src 'none'" in text


def test_tables_are_sorted_and_commands_copied(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["campaign"], 1200, False)
    first = "document.querySelector('tbody tr td').textContent"
    assert browser.evaluate(first) == "status-hypercall-00000001"
    browser.evaluate("document.querySelector('th button').click()")
    assert browser.evaluate(first) == "lost-read-00000005"
    assert browser.evaluate("document.querySelector('th').ariaSort") == "ascending"
    browser.evaluate("document.querySelector('button.copy').click()")
    said = "new Promise(f => setTimeout(() => f(document.querySelector('.copy').textContent), 0))"
    assert browser.evaluate(said) in ("Copied", "Copy")


def test_a_card_says_what_is_wrong_and_whose_defect_it_is(
    pages: dict[str, Path], browser: Browser
) -> None:
    browser.open(pages["campaign"], 1200, False)
    text = browser.evaluate(
        "document.getElementById('status-hypercall-00000002').parentNode.innerText"
    )
    assert "D[5]: page tables shared, host's record private." in text
    assert "the guest's defect: it did not tell the host" in text
    assert "set_memory_decrypted D[3] pages=3" in text
    assert "guestemu run " in text
    gone = "document.getElementById('status-hypercall-00000004').parentNode.className"
    assert browser.evaluate(gone) == "card gone"


def test_a_policy_stops_scripts_of_others(pages: dict[str, Path], browser: Browser) -> None:
    """Even where an escape were forgotten."""
    path = pages["campaign"].with_name("injected.html")
    text = pages["campaign"].read_text(encoding="utf-8")
    path.write_text(text.replace("<h1>", f"<h1>{HOSTILE}", 1), encoding="utf-8")
    browser.open(path, 1200, False)
    assert browser.evaluate("document.title") != "owned"
