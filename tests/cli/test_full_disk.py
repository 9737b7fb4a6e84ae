# SPDX-License-Identifier: GPL-2.0-or-later
"""Output files on a full disk: one line, status 3, and the results are printed all the same."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from guestemu.cli.main import main

ROOT = Path(__file__).parents[2]
PROGRAM = str(ROOT / "corpora/conversion/round-trip-6.1.prog")
TRACE = str(ROOT / "tests/data/dma-traces/linux-6.12-q35-boot.trace")
DMA = ("dma", TRACE, "--guest", "model:6.1")

Captured = pytest.CaptureFixture[str]

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@pytest.mark.parametrize(
    ("words", "name", "printed"),
    [
        (("run", PROGRAM, "--trace"), "x.jsonl", "ok: 0 violations, 4 hypercalls"),
        (("replay", PROGRAM, "--junit"), "x.xml", "1 program, 1 as expected"),
        (("replay", PROGRAM, "--sarif"), "x.sarif", "1 program, 1 as expected"),
        ((*DMA, "--html"), "x.html", "allocations"),
        ((*DMA, "--perfetto"), "x.perfetto-trace", "allocations"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else value.partition(" ")[0],
)
def test_a_full_disk_loses_no_results(
    tmp_path: Path, capsys: Captured, words: tuple[str, ...], name: str, printed: str
) -> None:
    full = tmp_path / name
    full.symlink_to("/dev/full")
    assert main([*words, str(full)]) == 3
    out, err = capsys.readouterr()
    assert printed in out
    last = err.splitlines()[-1]
    assert last.startswith(f"guestemu: {full}: ")
    assert "No space left on device" in last


def test_an_example_project_that_does_not_fit_is_said(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: str, target: str, **_: object) -> None:
        raise OSError(28, os.strerror(28), target)

    defaults = list(shutil.copytree.__defaults__ or ())
    defaults[defaults.index(shutil.copy2)] = fail
    monkeypatch.setattr(shutil.copytree, "__defaults__", tuple(defaults))
    assert main(["init", str(tmp_path / "project")]) == 3
    assert capsys.readouterr().err == (
        f"guestemu: {tmp_path / 'project'}: not complete: No space left on device; "
        "name another place\n"
    )
