# SPDX-License-Identifier: GPL-2.0-or-later
"""A program as the text of a witness: without the header lines that have their default."""

from __future__ import annotations

from collections.abc import Sequence

from guestemu.program.ops import Op
from guestemu.program.program import Header, Program
from guestemu.program.text import format_text
from guestemu.study.claims.result import ClaimWitness

_SEPARATOR = "---"


def program_witness(header: Header, ops: Sequence[Op], note: str = "") -> ClaimWitness:
    """The program of `ops` and the command that runs it; `note` becomes a comment at its end."""
    default = set(format_text(Program(Header())).splitlines())
    lines = format_text(Program(header, tuple(ops))).rstrip().splitlines()
    end = lines.index(_SEPARATOR)
    kept = [
        line
        for number, line in enumerate(lines)
        if number == 0 or number >= end or line not in default or line.startswith("guest ")
    ]
    if note:
        kept.append(f"# {note}")
    return ClaimWitness("\n".join(kept), "guestemu run PROGRAM")
