# SPDX-License-Identifier: GPL-2.0-or-later
"""Every committed program gives what it records, and says why it is there."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

import pytest

from guestemu.program.text import load_program
from guestemu.replay.files import find_programs
from guestemu.replay.suite import replay_file

CORPORA = Path(__file__).parents[2] / "corpora"
PROGRAMS = find_programs([CORPORA])
IDS = [str(path.relative_to(CORPORA).with_suffix("")) for path in PROGRAMS]


def test_the_corpora_are_there() -> None:
    assert len(PROGRAMS) >= 40
    assert {path.parent.name for path in PROGRAMS} >= {"hypercall", "msr", "conversion", "dma"}


@pytest.mark.parametrize("path", PROGRAMS, ids=IDS)
def test_program_gives_what_it_records(path: Path) -> None:
    result = replay_file(path)
    assert result.bad is None
    assert result.mismatches == ()


def comment_of(path: Path) -> str:
    """The comment lines on top of a program."""
    lines = path.read_text().splitlines()[1:]
    return "\n".join(takewhile(lambda line: line.startswith("#"), lines))


def test_every_program_is_about_something() -> None:
    for path in PROGRAMS:
        assert re.search(r"[A-Za-z]{3,} ", comment_of(path)), path
        names = {line.name for line in load_program(path).expectations}
        assert {"outcome", "hypercalls"} <= names, path
