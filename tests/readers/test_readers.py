# SPDX-License-Identifier: GPL-2.0-or-later
"""Every reader of the command line against mutated inputs: a status, one line, no more.

The ordinary suite takes a few of each; `make soak` takes 20,000 (`python test_readers.py 20000`
prints what they did).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from inputs import API, READERS

CHILD = Path(__file__).parent / "child.py"
SEED = 1
SOAK = 20_000
NAMES = (*READERS, *API)
WEIGHTS = {"program": 5, "trace": 2, "csv": 3, "image": 3, "recording": 2}
SLOW = frozenset({"campaign", "journal", "corpus", "finding"})
"""Readers that start a guest for each input."""


def shares(total: int) -> dict[str, int]:
    """How many inputs each reader gets."""
    weights = {name: WEIGHTS.get(name, 1) for name in NAMES}
    return {name: -(-total * weight // sum(weights.values())) for name, weight in weights.items()}


def attack(name: str, count: int, directory: Path, seed: int = SEED) -> dict[str, object]:
    """Runs `count` mutated inputs of one reader; what a child found, deaths included."""
    statuses: Counter[str] = Counter()
    faults: list[object] = []
    runs, slowest, peak = 0, 0.0, 0.0
    environment = {**os.environ, "XDG_CACHE_HOME": str(directory / "cache"), "NO_COLOR": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(CHILD.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    next_one = 0
    while next_one < count:
        command = [sys.executable, str(CHILD), name, str(seed), str(next_one)]
        command += [str(min(2000, count - next_one)), str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        try:
            report = json.loads(done.stdout)
        except ValueError:
            number = int((directory / "number").read_text())
            path = directory / "here" / (READERS[name].place if name in READERS else "")
            text = path.read_bytes().hex() if path.is_file() else ""
            why = f"died ({done.returncode}): {done.stderr[-600:]}"
            faults.append({"number": number, "wrong": why, "input": text})
            runs += number + 1 - next_one
            next_one = number + 1
            continue
        statuses.update(report["statuses"])
        faults += report["faults"]
        slowest = max(slowest, report["slowest"])
        peak = max(peak, report["peak_mib"])
        runs += report["runs"]
        next_one += report["runs"]
    return {
        "reader": name,
        "runs": runs,
        "statuses": dict(sorted(statuses.items())),
        "slowest_s": round(slowest, 2),
        "peak_mib": peak,
        "faults": faults,
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_few_inputs_of_each_reader(name: str, tmp_path: Path) -> None:
    found = attack(name, 4 if name in SLOW else 10, tmp_path)
    assert found["faults"] == []


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_many_inputs_of_each_reader(name: str, tmp_path: Path) -> None:
    found = attack(name, shares(SOAK)[name], tmp_path)
    assert found["faults"] == []


def main(total: int, seed: int, names: list[str]) -> None:
    """Prints what `total` inputs over the readers did."""
    for name, count in shares(total).items():
        if names and name not in names:
            continue
        with tempfile.TemporaryDirectory() as directory:
            print(json.dumps(attack(name, count, Path(directory), seed)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else SEED, sys.argv[3:])
