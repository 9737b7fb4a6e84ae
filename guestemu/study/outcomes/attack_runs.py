# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks on a kernel's conversions as a file of JSON lines, so that a sweep can be continued."""

from __future__ import annotations

from pathlib import Path

from guestemu.abi.json_lines import read_json_lines
from guestemu.study.outcomes.attacks import AttackRun, RowKey


def read_runs(path: Path) -> dict[RowKey, list[AttackRun]]:
    """The runs in `path` by row, none if there is no such file.

    Raises `InputError` for a malformed line; a last line cut off by a crash is dropped.
    """
    found: dict[RowKey, list[AttackRun]] = {}
    for run in read_json_lines(path, AttackRun, "the run of an attack"):
        found.setdefault(run.key, []).append(run)
    return found
