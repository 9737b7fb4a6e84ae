# SPDX-License-Identifier: GPL-2.0-or-later
"""The floor of conversion programs makes the calls that they make."""

from __future__ import annotations

import pytest

from guestemu.bench import programs as programs_module
from guestemu.bench.programs import Programs
from guestemu.bench.scene import BenchScene
from guestemu.campaign.executor import Executor
from guestemu.campaign.fastpath.library import load_library
from guestemu.campaign.feedback import Feedback
from guestemu.campaign.targets import find_target
from guestemu.events.exits import HypercallExit

library = BenchScene().library
if library is None or load_library() is None:
    pytest.skip("no C compiler", allow_module_level=True)


def test_the_same_hypercalls_with_and_without_hooks(monkeypatch):
    monkeypatch.setattr(programs_module, "_INPUTS", 60)
    programs = Programs()
    target = find_target("conversion")
    executor = Executor(target, target.header, target.kinds, Feedback())
    expected = sum(
        isinstance(event, HypercallExit)
        for program in programs.programs
        for result in executor.testbed.run(executor.decode(program.data)).results
        for event in result.events
    )
    assert expected > 20
    for hooks in (False, True):
        floor = programs.make_floor(library, hooks)
        work = programs.in_c(floor)
        work(2)
        assert floor.state.hypercalls == 2 * expected
    programs.run(2)
