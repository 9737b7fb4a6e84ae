# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the libraries of machine code in place: `python -m guestemu.native`."""

from __future__ import annotations

import sys

from guestemu.native import REMEDY
from guestemu.native.build import BuildError, build_missing


def main() -> int:
    """Builds what is missing and says what was built; returns the exit status."""
    try:
        made = build_missing()
    except BuildError as error:
        sys.stderr.write(f"{error}; {REMEDY}\n")
        return 3
    for path in made:
        sys.stdout.write(f"built   {path.name}\n")
    if not made:
        sys.stdout.write("up to date\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
