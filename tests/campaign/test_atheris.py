# SPDX-License-Identifier: GPL-2.0-or-later
"""The atheris engine and the libFuzzer entry points."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fuzz_command import PLANTED, fuzz_json
from held import DEADLINE_S

from guestemu.campaign.targets import TARGETS

pytestmark = pytest.mark.atheris
pytest.importorskip("atheris")

FUZZ = Path(__file__).parents[2] / "fuzz"


def run_entry(target: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FUZZ / f"{target}.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
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
    ("host", "target", "check", "execs"),
    [
        ("NumberOnly32", "hypercall", "results", "4000"),
        pytest.param("AttributeBit0", "hypercall", "record", "40000", marks=pytest.mark.soak),
        pytest.param("LatePrivilege", "hypercall", "results", "40000", marks=pytest.mark.soak),
        pytest.param("WordBoundary", "hypercall", "record", "40000", marks=pytest.mark.soak),
        pytest.param("ReservedBits", "msr", "migration-control", "40000", marks=pytest.mark.soak),
        pytest.param("EncryptIgnored", "conversion", "record", "600", marks=pytest.mark.soak),
    ],
)
def test_planted_bug_is_found(host, target, check, execs, tmp_path):
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


def test_a_merge_that_leaves_nothing_is_an_error(tmp_path):
    for name in ("into", "empty"):
        (tmp_path / name).mkdir()
    done = run_entry("hypercall", "-merge=1", "into", "empty", cwd=tmp_path)
    assert done.returncode == 2
    assert "-merge=1 into into: 0 files merged; put inputs into empty" in done.stderr


def test_a_finding_is_a_crash_file_that_shrinks_and_shows_it_again(tmp_path, monkeypatch):
    monkeypatch.setenv("GUESTEMU_HOST", f"{PLANTED}:ReservedBits")
    found = run_entry("msr", "-runs=20000", "-seed=1", cwd=tmp_path)
    assert found.returncode not in {0, 2, 3}
    assert "migration-control at op" in found.stdout
    assert "guestemu-program 1" in found.stdout
    (crash,) = tmp_path.glob("crash-*")
    shrunk = run_entry(
        *("msr", "-minimize_crash=1", "-runs=300", "-exact_artifact_path=small", crash.name),
        cwd=tmp_path,
    )
    assert shrunk.returncode == 0, shrunk.stderr
    small = tmp_path / "small" if (tmp_path / "small").exists() else crash
    assert len(small.read_bytes()) <= len(crash.read_bytes())
    again = run_entry("msr", small.name, cwd=tmp_path)
    assert "reserved bits" in again.stdout
    assert again.returncode not in {0, 2, 3}


def test_fork_mode_fuzzes_in_processes_of_its_own(tmp_path):
    (tmp_path / "corpus").mkdir()
    done = run_entry("msr", "-fork=1", "-max_total_time=3", "corpus", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert any((tmp_path / "corpus").iterdir())


def test_the_build_recipe_makes_what_clusterfuzz_wants(tmp_path):
    out = tmp_path / "out"
    built = subprocess.run(
        ["sh", str(FUZZ / "build.sh")],
        env={"PATH": "/usr/bin:/bin", "OUT": str(out), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    with_seeds = {path.name.split("_seed_")[0] for path in out.glob("*_seed_corpus.zip")}
    assert with_seeds >= {"hypercall", "msr", "conversion", "migration"}
    for target in with_seeds:
        assert zipfile.ZipFile(out / f"{target}_seed_corpus.zip").namelist()
    scripts = {path.stem for path in FUZZ.glob("*.py")} - {"prepare"}
    assert scripts == {target.replace("-", "_") for target in TARGETS} | {"hostile_td"}
    for script in scripts:
        assert os.access(out / script, os.X_OK)
        assert "max_len" in (out / f"{script}.options").read_text()
    done = subprocess.run(
        [str(out / "msr"), "-runs=300", f"-dict={out}/msr.dict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Dictionary:" in done.stderr
    assert "Done 300 runs" in done.stderr
