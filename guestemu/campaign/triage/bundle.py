# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes with a finding: an explanation with the guest code around it, and a test.

KEY.prog      the program
KEY.md        what was expected, by which fact, what happened, guest code, how to reproduce
test_KEY.py   fails as long as the defect is there
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from guestemu.campaign.triage.explain import run_command, words_of
from guestemu.campaign.triage.identify import Finding
from guestemu.program.op_text import format_op
from guestemu.program.program import Program
from guestemu.program.text import format_text
from guestemu.report.trace.run import Run
from guestemu.report.trace.shown import ShownOp, show_program
from guestemu.report.trace.summary import tell_op

SHOWN_INSTRUCTIONS: Final = 48
_DEPTH: Final = 5
_MAX_CALLS: Final = 60


class Bundle(msgspec.Struct, frozen=True):
    """The texts that go with one finding."""

    explanation: str
    test: str


def make_bundle(finding: Finding, program: Program, path: Path, workplace: str) -> Bundle:
    """The texts for `finding`, whose program lies at `path`; `workplace` says where it was found.

    Runs the program once more with every instruction recorded.
    """
    run, shown = show_program(
        msgspec.structs.replace(program, expectations=()), _DEPTH, SHOWN_INSTRUCTIONS
    )
    lines = list(_explanation(finding, program, path, workplace, run, shown))
    return Bundle("\n".join(lines) + "\n", _test(finding, program, path))


def _explanation(
    finding: Finding,
    program: Program,
    path: Path,
    workplace: str,
    run: Run,
    shown: tuple[ShownOp, ...],
) -> Iterator[str]:
    header = program.header
    yield f"# {finding.key}"
    yield ""
    yield f"Found by {workplace}: guest {header.guest}, host {header.host}, C-bit {header.cbit}."
    yield ""
    for violation in finding.violations:
        yield from (f"{line}  " for line in words_of(violation))
        yield ""
    if finding.places:
        yield "Host code that runs only when this goes wrong:"
        yield ""
        yield from (f"    {place}" for place in finding.places)
        yield ""
    yield "Reproduce:"
    yield ""
    yield f"    {run_command(str(path), header)}"
    yield ""
    yield "## What happens"
    yield ""
    for index, op in enumerate(program.ops):
        yield from _told(run, index, format_op(op), shown)
        yield ""


def _told(run: Run, index: int, text: str, shown: tuple[ShownOp, ...]) -> Iterator[str]:
    yield f"    {index}  {text}"
    told = tell_op(run, index)
    yield from (f"         {line}" for line in told.lines)
    yield from (f"       ! {first}" for first, *_ in told.violations)
    if index >= len(shown) or not shown[index].instructions:
        return
    part = shown[index]
    yield f"         {part.instructions} guest instructions:"
    for call in part.calls[:_MAX_CALLS]:
        mark = "* " if call.is_site else ""
        times = f" ({call.times} times)" if call.times > 1 else ""
        yield f"           {'  ' * call.depth}{mark}{call.name}{times}"
    if not told.violations:
        return
    yield ""
    for line in part.code:
        site = f"  * {line.site}" if line.site else ""
        yield f"           {line.where:<34} {line.text}{site}"


def _test(finding: Finding, program: Program, path: Path) -> str:
    """The pytest file for the directory of `path`; it runs in every working directory."""
    violation = finding.violation
    plain = msgspec.structs.replace(program, expectations=())
    text = format_text(plain).rstrip("\n").replace("\\", "\\\\")
    name = finding.key.replace("-", "_")
    message = violation.message.replace("\\", "\\\\").replace('"', "'")
    imports = testbed = allow = ""
    if program.header.plugin:
        place = os.path.relpath(Path(program.header.plugin).parent, path.absolute().parent)
        imports = "from pathlib import Path\n\nfrom guestemu.host.permission import permissions\n"
        testbed = "from guestemu.runner.testbed import with_plugin\n"
        allow = (
            f"    allowed = permissions([Path(__file__).parent / {place!r}])\n"
            "    program = with_plugin(program, allowed, Path(__file__))\n"
        )
    return f'''"""Fails as long as the defect {finding.key} is there.

{message}
"""

{imports}from guestemu.program.text import parse_text
{testbed}from guestemu.report.trace.run import run_program

PROGRAM = """\\
{text}
"""


def test_{name}() -> None:
    program = parse_text(PROGRAM, "{finding.key}.prog")
{allow}    run = run_program(program)
    found = [v.message for v in run.outcome.violations if v.check == "{violation.check}"]
    assert found == []
'''
