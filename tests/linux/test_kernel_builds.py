# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels built from Debian's source with the configurations of examples/kernel-loop: every guest
kind that they are for is tested, and `git bisect run` finds the commit that broke one.

A build takes ten minutes of CPU time. Trees in the directory that GUESTEMU_KERNEL_TREES names are
used as they are, built or not; without it the sources are fetched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LOOP = Path(__file__).parents[2] / "examples" / "kernel-loop"
TOOLS = ("make", "gcc", "flex", "bison", "bc", "pahole", "git")
GUESTEMU = f"{sys.executable} -m guestemu"

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        not all(shutil.which(tool) for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}"
    ),
]


def run(command: list[str], cwd: Path) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "GUESTEMU": GUESTEMU},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    ("series", "row", "kinds"),
    [
        ("6.1", "2gib-overflow", "sev es snp"),
        ("6.12", "cpu-offline", "sev es snp tdx"),
        ("7.3", "2gib-overflow", "sev es snp tdx"),
    ],
)
def test_a_kernel_of_ones_own_is_built_tested_and_bisected(
    tmp_path: Path, series: str, row: str, kinds: str
) -> None:
    trees = Path(os.environ.get("GUESTEMU_KERNEL_TREES", tmp_path))
    name = f"linux-source-{series}"
    if not (trees / name).exists():
        run([*GUESTEMU.split(), "kernel", "fetch", series, "--source"], cwd=trees)
    said = run([str(LOOP / "kernel-loop"), name], cwd=trees)
    table = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.strip()}
    for kind in kinds.split():
        right, _, wrong, _ = map(int, table[kind])
        assert right > 30
        assert wrong == 0
    said = run([str(LOOP / "bisect"), name, row], cwd=trees)
    assert said.splitlines()[-1] == f"bisect: {row} right -> known defect ({row})"
