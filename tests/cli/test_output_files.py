# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that a verb writes: one way to write them, one message where that cannot be."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from guestemu.abi.files import write_atomically
from guestemu.cli.main import main

PROGRAM = "guestemu-program 1\n---\nhypercall nr=12 a0=0x400000 a1=1\n"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "a.prog"
    path.write_text(PROGRAM)
    return path


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("export", "PROGRAM", "--as", "kvm-unit-test", "-o"), "-o"),
        (("minimize", "PROGRAM", "-o"), "-o"),
        (("run", "PROGRAM", "--trace"), "--trace"),
        (("replay", "PROGRAM", "--junit"), "--junit"),
        (("replay", "PROGRAM", "--sarif"), "--sarif"),
        (("outcomes", "matrix", "--guest", "snippet:6.12", "--page"), "--page"),
        (("outcomes", "snp", "--page"), "--page"),
        (("ledger", "--html"), "--html"),
        (("claims", "--html"), "--html"),
        (("zoo", "run", "M1", "--html"), "--html"),
        (("kernel", "matrix", "--html"), "--html"),
        (("dma", "e1000", "--html"), "--html"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_missing_directory_is_named_with_the_option(
    words: tuple[str, ...], option: str, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = program.parent / "missing" / "out.jsonl"
    asked = [str(program) if word == "PROGRAM" else word for word in words]
    assert main([*asked, str(output)]) == 2
    expected = (
        f"{output}: No such file or directory; make its directory, or name another place with "
        f"{option}"
    )
    assert expected in capsys.readouterr().err


def test_a_directory_is_no_file(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["minimize", str(program), "-o", str(program.parent)]) == 2
    assert f"{program.parent}: Is a directory; name another place" in capsys.readouterr().err


def test_a_link_stays_a_link_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    link, target, pipe = tmp_path / "link", tmp_path / "target", tmp_path / "pipe"
    target.touch()
    link.symlink_to(target)
    write_atomically(link, b"data", "-o")
    assert link.is_symlink()
    assert target.read_bytes() == b"data"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_atomically(pipe, b"more", "-o")
    reader.join()
    assert read == [b"more"]
