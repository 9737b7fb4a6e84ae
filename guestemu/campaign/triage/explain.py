# SPDX-License-Identifier: GPL-2.0-or-later
"""A finding in words: what was expected, by which fact, what happened, where to look."""

from __future__ import annotations

import shlex

from guestemu.abi.facts import cite
from guestemu.campaign.triage.identify import Finding
from guestemu.checks.base import Violation
from guestemu.host.permission import option_words
from guestemu.program.program import Header
from guestemu.report.trace.explain import explain


def words_of(violation: Violation) -> list[str]:
    """A violation in lines: what happened, what demands otherwise, what it means."""
    lines = [f"Check {violation.check}, after op {violation.op}: {violation.message}"]
    if violation.fact:
        lines.append(f"Rule: {cite(violation.fact)}")
    why = explain(violation.check)
    if why:
        lines.append(why)
    return lines


def run_command(path: str, header: Header) -> str:
    """The command line that runs the program at `path`, whose host may be code of the user's."""
    return shlex.join(["guestemu", "run", path, *option_words(header.plugin)])


def unstable_comment(key: str, violation: Violation, where: str, command: str) -> str:
    """The comment on top of a program that showed `violation` once and then not again."""
    return "\n".join(
        [
            f"Finding {key} of {where}.",
            *words_of(violation),
            "It did not show again with this program: it depends on something outside of it.",
            "Look for state that a reset leaves, for random numbers, for the time.",
            f"Run it again: {command}",
        ]
    )


def comment_of(finding: Finding, where: str, command: str) -> str:
    """The comment on top of a finding's program; `where` it was found, `command` reproduces it."""
    lines = [f"Finding {finding.key} of {where}.", *words_of(finding.violation)]
    if finding.places:
        lines.append("Host code that runs only when this goes wrong:")
        lines += (f"  {place}" for place in finding.places)
    lines.append(f"Reproduce: {command}")
    return "\n".join(lines)
