# SPDX-License-Identifier: GPL-2.0-or-later
"""The atheris engine and the libFuzzer entry points."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_command import PLANTED, fuzz_json

pytestmark = pytest.mark.atheris
pytest.importorskip("atheris")

FUZZ = Path(__file__).parents[2] / "fuzz"


def run_entry(target: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FUZZ / f"{target}.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_counters_guide_libfuzzer(tmp_path):
    figures = fuzz_json(
        "hypercall", "--execs", "3000", "--engine", "atheris", cwd=tmp_path, status=0
    )
    assert figures["executions"] == 3000
    assert figures["corpus_size"] > 20
    assert figures["coverage"]["model_states"] > 50


@pytest.mark.parametrize(
    ("host", "target", "check"),
    [
        ("AttributeBit0", "hypercall", "record"),
        ("LatePrivilege", "hypercall", "results"),
        ("WordBoundary", "hypercall", "record"),
        ("ReservedBits", "msr", "migration-control"),
        ("EncryptIgnored", "conversion", "status"),
    ],
)
def test_planted_bug_is_found(host, target, check, tmp_path):
    execs = "600" if target == "conversion" else "40000"
    figures = fuzz_json(
        *(target, "--execs", execs, "--engine", "atheris", "--host", f"{PLANTED}:{host}"),
        cwd=tmp_path,
        status=1,
    )
    assert check in {finding["check"] for finding in figures["findings"]}
    assert figures["infrastructure"] == []
    assert figures["executions"] == int(execs)


@pytest.mark.parametrize("target", ["hypercall", "msr", "conversion"])
def test_entry_point_is_a_libfuzzer_program(target, tmp_path):
    (tmp_path / "corpus").mkdir()
    done = run_entry(target, "-runs=200", "-max_total_time=20", "corpus", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Done 200 runs" in done.stderr
    assert any((tmp_path / "corpus").iterdir())


def test_entry_point_merges_a_corpus(tmp_path):
    for name in ("full", "small"):
        (tmp_path / name).mkdir()
    run_entry("hypercall", "-runs=2000", "full", cwd=tmp_path)
    done = run_entry("hypercall", "-merge=1", "small", "full", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 0 < len(list((tmp_path / "small").iterdir())) <= len(list((tmp_path / "full").iterdir()))
