# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/json.md against what the verbs print: the golden outputs, and some commands of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from guestemu.cli.main import find_verbs, main

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
WITHOUT_JSON = {"demo"}
BELOW = {"kernel", "zoo", "cache", "outcomes"}
SHAPES = {
    "run-lockstep": "lockstep",
    "hosts-check": "check",
    "explore-list": "cell",
    "explore-witness": "cell",
    "explore-pct": "random",
    "explore-confirm": "confirm",
    "explore-threats": "threats",
}
"""Golden outputs of a shape of their own."""


def documented() -> dict[str, set[str]]:
    """The top-level keys of each schema in docs/json.md."""
    found = {}
    for line in (ROOT / "docs" / "json.md").read_text().splitlines():
        match = re.match(r"\| (`guestemu\.[^|]+/1`) \| (.*) \|$", line)
        if match:
            outside = re.sub(r"\([^)]*\)", "", match[2])
            keys = {key.rstrip("[]{}") for key in re.findall(r"`([^`]+)`", outside)}
            found |= dict.fromkeys(re.findall(r"`([^`]+)`", match[1]), keys)
    return found


def goldens() -> list[tuple[str, str, set[str]]]:
    """Golden output, its schema, its keys."""
    found = []
    for path in sorted(GOLDENS.glob("*.json")):
        ran = json.loads(path.read_text())
        if "output" not in ran or not isinstance(ran["output"], dict):
            continue
        words = ran["command"].split()
        verb = [words[0]]
        if words[0] in BELOW or words[1:2] in (["mirror"], ["kernel-migration"]):
            verb.append(words[1])
        shape = [SHAPES[path.stem]] if path.stem in SHAPES else []
        found.append((path.stem, ".".join(["guestemu", *verb, *shape]) + "/1", set(ran["output"])))
    return found


@pytest.mark.parametrize(("name", "schema", "keys"), goldens(), ids=[row[0] for row in goldens()])
def test_what_a_verb_prints_is_documented(name: str, schema: str, keys: set[str]) -> None:
    assert schema in documented(), name
    assert keys <= documented()[schema]


def test_every_verb_with_json_is_documented() -> None:
    verbs = {schema.split(".")[1].split("/")[0] for schema in documented()}
    assert set(find_verbs()) - WITHOUT_JSON <= verbs


@pytest.mark.parametrize(
    ("words", "schema"),
    [
        (["targets"], "guestemu.targets/1"),
        (["explain", "A17"], "guestemu.explain/1"),
        (["explore", "--order", "2", "--script", "S1", "--list"], "guestemu.explore.cell/1"),
        (["explore", "--order", "2", "--script", "S1"], "guestemu.explore/1"),
        (["dma", "--list"], "guestemu.dma.patterns/1"),
        (["zoo", "list", "M6"], "guestemu.zoo.list/1"),
        (["zoo", "list", "M6", "--repaired"], "guestemu.zoo.list.repaired/1"),
        (["bench", "--list"], "guestemu.bench.list/1"),
        (["hosts"], "guestemu.hosts/1"),
        (
            ["run", "--host", "map-gpa-range,qemu-v4", "corpora/hypercall/eperm-32bit.prog"],
            "guestemu.run.lockstep/1",
        ),
        (["run", "missing.prog"], "guestemu.error/1"),
    ],
)
def test_an_object_says_its_schema_and_has_its_keys(
    words: list[str],
    schema: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert next(iter(found)) == "schema"
    assert found["schema"] == schema
    assert set(found) - {"schema"} <= documented()[schema]
