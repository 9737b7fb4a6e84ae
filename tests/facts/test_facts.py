# SPDX-License-Identifier: GPL-2.0-or-later
"""The fact sheets: ids, sentences, and that nothing cites a fact that does not exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from guestemu.abi.errors import InputError
from guestemu.abi.facts import CITATION, canonical_id, cite, facts, find_fact, members
from guestemu.abi.shipped import CHECKOUT_PLACES
from guestemu.cli.main import main

ROOT = Path(__file__).parents[2]
SHEETS = ROOT / "docs" / "facts"
CITING = ("guestemu", "docs", "corpora", "examples", "fuzz", "README.md", "CONTRIBUTING.md")
SUFFIXES = {".py", ".md", ".prog", ".c", ".h", ".s", ".S", ".ipynb"}
NOT_CITED = {"T0", "C39", "C51"}
"""SNP termination codes (T0/0) and C-bit positions in the sheets."""


def cited() -> dict[str, str]:
    """Each id that the tree cites, with one place."""
    found: dict[str, str] = {}
    for name in CITING:
        path = ROOT / name
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.suffix in SUFFIXES:
                text = file.read_text(encoding="utf-8")
                for match in CITATION.finditer(text):
                    found.setdefault(canonical_id(match[1]), str(file.relative_to(ROOT)))
    return found


def test_every_cited_id_is_a_fact() -> None:
    places = cited()
    assert {"A26c", "K3-c", "H.4.1", "M71", "C13"} <= set(places), "the citations are not seen"
    unknown = {key: place for key, place in places.items() if key not in facts()}
    assert set(unknown) <= NOT_CITED, unknown


def test_a_citation_of_an_unknown_fact_is_seen() -> None:
    text = 'see A99 and (K3-z); H.4 item 9, "M98"; not 0xA98, x.A97, L6.1, D[3] or U64'
    seen = [canonical_id(match[1]) for match in CITATION.finditer(text)]
    assert seen == ["A99", "K3-z", "H.4.9", "M98"]
    assert not set(seen) & set(facts())


def test_ids_stand_once() -> None:
    ids = re.findall(r'<a id="([^"]+)"', "".join(p.read_text() for p in SHEETS.glob("*.md")))
    assert len(ids) == len(set(ids))
    assert set(ids) == set(facts())


def test_each_fact_has_text_and_a_sentence() -> None:
    for fact in facts().values():
        assert fact.text, fact.id
        assert 1 < len(fact.sentence) <= 240, fact.id
        assert "**" not in fact.sentence, fact.id
        assert fact.section, fact.id


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("K3-c", "CPL ≠ 0 → -KVM_EPERM"),
        ("T18", "| retry, R11 = start, x1 or x2 |"),
        ("H.4 item 2", "No page in the free list"),
        ("N45", "guest does: **not noticed**"),
        ("M2", "CVE-2024-35939"),
        ("a26C", "HOLES ARE POPULATED"),
        ("M39a", "v10 list"),
        ("A.9", "dma_direct_alloc"),
    ],
)
def test_a_fact_is_found_with_its_whole_text(key: str, words: str) -> None:
    assert words in find_fact(key).text


def test_a_fact_ends_before_the_next() -> None:
    assert "K3-d" not in find_fact("K3-c").text
    assert "A27" not in find_fact("A26c").text
    assert "M3 " not in find_fact("M2").text


def test_families_and_unknown_ids() -> None:
    assert [fact.id for fact in members("K4")] == ["K4-a", "K4-b", "K4-c", "K4-d"]
    with pytest.raises(InputError, match=r"no fact 'A99'; docs/facts/README.md lists them"):
        find_fact("A99")


def test_what_outputs_print_is_the_sentence_with_the_id_behind_it() -> None:
    told = cite("A.9, H.4 item 2, M2")
    assert "No page in the free list has C = 0 / status shared [H.4 item 2]." in told
    assert told.startswith("Callers: memset and failure policy [A.9].")
    assert cite("D1 to D23") == "D1 to D23"
    assert cite("") == ""


def test_the_index_names_every_sheet() -> None:
    index = (SHEETS / "README.md").read_text()
    for sheet in SHEETS.glob("*.md"):
        assert sheet.name == "README.md" or f"({sheet.name}" in index


def test_no_sheet_names_a_place_that_readers_do_not_have() -> None:
    for sheet in SHEETS.glob("*.md"):
        assert not re.search(r"prototypes/|spec/seeds|/work/|/root/|/tmp/", sheet.read_text())


def test_the_wheel_carries_what_a_checkout_has() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for name, place in CHECKOUT_PLACES.items():
        assert f'"{place}" = "guestemu/data/{name}"' in text
        assert (ROOT / place).exists()


def test_explain_prints_a_fact_with_source_and_places(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "H.4", "item", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["id"] == "H.4.1"
    assert found["kind"] == "fact"
    assert found["text"].startswith("After every completed conversion")
    assert found["source"].startswith("docs/facts/facts.md#H.4.1")
    assert any(place.startswith("guestemu/checks/conversion.py:") for place in found["used"])


@pytest.mark.parametrize(
    ("words", "kind", "text"),
    [
        (["set_memory_decrypted"], "op", "set_memory_decrypted"),
        (["free-pages"], "check", "the host can read it"),
        (["status-5d2f1a90"], "check", "arrives as garbage"),
        (["record-hypercall-554c437a"], "check", "not what it was told"),
        (["free-pages-dma_free-554c437a"], "check", "the host can read it"),
        (["lost_strict"], "check", "another status"),
        (["K3"], "fact", "K3-m: "),
    ],
)
def test_explain_knows_ops_checks_keys_families(
    words: list[str], kind: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *words]) == 0
    out = capsys.readouterr().out
    assert f"({kind})" in out
    assert text in out


def test_explain_begins_with_what_a_finding_means(capsys: pytest.CaptureFixture[str]) -> None:
    """Several classes judge the record; their common meaning is said once."""
    assert main(["explain", "record-hypercall-554c437a"]) == 0
    lines = capsys.readouterr().out.splitlines()
    meaning = "  The host's record is not what it was told: "
    assert lines[1].startswith(meaning)
    assert sum(line.startswith(meaning) for line in lines) == 1


def test_explain_suggests(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "set_memory_decryptd"]) == 2
    assert "did you mean set_memory_decrypted?" in capsys.readouterr().err
    assert main(["explain", "Q99"]) == 2
    assert "docs/facts/README.md" in capsys.readouterr().err
