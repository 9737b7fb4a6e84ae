# SPDX-License-Identifier: GPL-2.0-or-later
import os
import sys
from pathlib import Path

import pytest

from guestemu.oracle.image import TestedKernel

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A function: from now on QEMU is the fake machine with this defect."""

    def use(defect=""):
        program = tmp_path / f"qemu-{defect or 'good'}"
        program.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
            f"from tests.oracle.fake_machine import main\nmain({defect!r})\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("GUESTEMU_QEMU", str(program))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))

    return use


@pytest.fixture
def kernel(tmp_path):
    image = tmp_path / "bzImage"
    image.write_bytes(b"\0" * 0x202 + b"HdrS")
    return TestedKernel(name="fake", kernel=image, modules={})
