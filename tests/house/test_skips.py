# SPDX-License-Identifier: GPL-2.0-or-later
"""Where CI=true, a skip without a line in allowed_skips.toml fails the run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("ci", "workers", "status"), [("true", "0", 1), ("true", "2", 1), ("", "0", 0)]
)
def test_a_skip_that_is_not_allowed_fails_the_run(ci, workers, status, tmp_path):
    for name in ("conftest.py", "held.py"):
        shutil.copy(TESTS / name, tmp_path)
    (tmp_path / "allowed_skips.toml").write_text(
        '[[skip]]\ntest = "test_one.py::*"\nsays = "no such machine"\nwhy = "here"\n'
    )
    (tmp_path / "test_one.py").write_text(
        "import pytest\ndef test_a(): pytest.skip('no such machine')\n"
        "def test_b(): pytest.skip('too tired')\n"
        "@pytest.mark.xfail\ndef test_c(): assert False\n"
    )
    (tmp_path / "test_two.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", workers, "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    told = done.stdout.partition("not in tests/allowed_skips.toml")[2].splitlines()
    assert ("test_one.py::test_b: Skipped: too tired" in told) == bool(ci)
    assert any(line.startswith("test_two.py: ") for line in told) == bool(ci)
    assert not any("no such machine" in line for line in told)
