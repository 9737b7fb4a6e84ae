# SPDX-License-Identifier: GPL-2.0-or-later
"""Durations on the command line: 90, 90s, 10m, 1.5h, 1h30m."""

from __future__ import annotations

import re
from typing import Final

import typer

_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)", re.IGNORECASE)


def parse_duration(text: str | float) -> float:
    """Seconds of `text`; typer calls it for options that are durations.

    Raises:
        typer.BadParameter: not a positive duration.
    """
    parts = _PART.findall(str(text))
    is_whole = "".join(number + unit for number, unit in parts) == str(text)
    has_units = len(parts) < 2 or all(unit for _, unit in parts)
    seconds = sum(float(number) * _UNITS[unit.lower()] for number, unit in parts)
    if not (parts and is_whole and has_units and seconds > 0):
        raise typer.BadParameter(f"{text!r}: give a duration such as 90, 90s, 10m or 1h30m")
    return seconds
