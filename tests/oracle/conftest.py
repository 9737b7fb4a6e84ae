# SPDX-License-Identifier: GPL-2.0-or-later
import os
import shlex
import sys
from pathlib import Path

import pytest

from guestemu.native.build import find_compiler
from guestemu.oracle.image import TestedKernel

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A function: from now on QEMU is the fake machine with this defect. The client inside it is
    compiled all the same."""
    if find_compiler() is None:
        pytest.skip("no C compiler")

    def use(defect=""):
        program = tmp_path / f"qemu-{defect or 'good'}"
        body = program.with_suffix(".py")
        body.write_text(
            f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
            f"from tests.oracle.fake_machine import main\nmain({defect!r})\n"
        )
        # The interpreter's path may have a space, which the first line of a script cannot quote.
        program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, str(body)])} "$@"\n')
        program.chmod(0o755)
        monkeypatch.setenv("GUESTEMU_QEMU", str(program))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))

    return use


@pytest.fixture
def kernel(tmp_path):
    image = tmp_path / "bzImage"
    image.write_bytes(b"\0" * 0x202 + b"HdrS")
    return TestedKernel(name="fake", kernel=image, modules={})
