# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu doctor`: what this machine has and lacks."""

from __future__ import annotations

from typing import Final

from guestemu.cli import console
from guestemu.cli._options import AsJson
from guestemu.cli.errors import EXIT_MISSING, EXIT_OK

GROUP: Final = "Start"
ORDER: Final = 30

_STYLES = {"ok": "green", "optional": "yellow", "missing": "red"}


def command(as_json: AsJson = False) -> int:
    """Check what this machine has and lacks.

    Exit status 3: something needed is missing. Optional parts never change the status.
    """
    from guestemu.cli._machine import examine

    findings = examine()
    if as_json:
        console.emit_json({"checks": findings})
    else:
        for finding in findings:
            state = console.paint(f"{finding.state:<8}", _STYLES[finding.state])
            remedy = f"; {finding.remedy}" if finding.remedy else ""
            console.emit(f"{state}  {finding.name:<16} {finding.detail}{remedy}")
    return EXIT_MISSING if any(f.state == "missing" for f in findings) else EXIT_OK
