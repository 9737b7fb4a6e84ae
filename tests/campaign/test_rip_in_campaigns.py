# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of a campaign run without a right RIP at each load and store; what is reported has it,
and nothing is counted twice."""

from __future__ import annotations

from guestemu.campaign.executor import Executor
from guestemu.campaign.feedback import Feedback
from guestemu.campaign.targets import find_target
from guestemu.machine.pc_sync import find_switch
from guestemu.program.text import parse_text
from guestemu.runner.testbed import build_testbed

WRONG = "early_set_memory_decrypted V[0] size=4096 offset=0"
GOOD = "set_memory_decrypted D[3] pages=2"


def test_what_is_wrong_runs_again_with_a_right_rip_and_counts_once():
    ops = parse_text(f"guestemu-program 1\n---\n{GOOD}\n{WRONG}\n", "t").ops
    target = find_target("conversion")
    feedback, exact = Feedback(), Feedback()
    executor = Executor(target, target.header, target.kinds, feedback)
    watch = executor.testbed.guest.machine.hooks.watch
    seen = []
    observe = executor.testbed.observe
    executor.testbed.observe = lambda view: (seen.append(bool(watch.unsynced)), observe(view))
    found = executor.run(ops)

    testbed = build_testbed(target.header)
    exact.attach(testbed)
    wanted = list(testbed.run(ops).violations)
    assert found == wanted != []
    assert feedback.save() == exact.save()
    if find_switch() is not None:
        assert seen == [True, True, False, False]
    assert executor.run(ops[:1]) == []
    assert not watch.unsynced
    testbed.close()
    executor.testbed.close()
