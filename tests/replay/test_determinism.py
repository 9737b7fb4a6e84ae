# SPDX-License-Identifier: GPL-2.0-or-later
"""A program has one trace: in one process twice, in two processes, in a used testbed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from guestemu.program.text import load_program
from guestemu.report.trace.derive import events_of
from guestemu.report.trace.digest import trace_hash
from guestemu.report.trace.run import run_in, run_program
from guestemu.runner.testbed import build_testbed

CORPORA = Path(__file__).parents[2] / "corpora"
PROGRAMS = [
    CORPORA / name
    for name in (
        "hypercall/modes.prog",
        "msr/gp-survived.prog",
        "conversion/hole-middle.prog",
        "conversion/cbit-51.prog",
        "conversion/two-vcpus.prog",
        "dma/decrypt-fails-6.1.prog",
    )
]
CODE = """
import sys
from guestemu.program.text import load_program
from guestemu.report.trace.derive import events_of
from guestemu.report.trace.digest import trace_hash
from guestemu.report.trace.run import run_program
for path in sys.argv[1:]:
    print(trace_hash(events_of(run_program(load_program(path)))))
"""


def digest(path: Path) -> str:
    return trace_hash(events_of(run_program(load_program(path))))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_twice_in_one_process(path: Path) -> None:
    assert digest(path) == digest(path)


@pytest.mark.parametrize("seed", ["1", "2"])
def test_in_another_process(seed: str) -> None:
    command = [sys.executable, "-c", CODE, *map(str, PROGRAMS)]
    environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == [digest(path) for path in PROGRAMS]


def test_a_used_testbed_gives_the_same_trace() -> None:
    first, other = load_program(PROGRAMS[2]), load_program(PROGRAMS[0])
    testbed = build_testbed(first.header)
    before = trace_hash(events_of(run_in(testbed, first)))
    run_in(testbed, other)
    assert trace_hash(events_of(run_in(testbed, first))) == before == digest(PROGRAMS[2])


def test_another_program_has_another_trace() -> None:
    assert len({digest(path) for path in PROGRAMS}) == len(PROGRAMS)
