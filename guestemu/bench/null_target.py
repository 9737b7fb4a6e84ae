# SPDX-License-Identifier: GPL-2.0-or-later
"""An atheris target that does nothing: `python -m guestemu.bench.null_target SECONDS`."""

from __future__ import annotations

import sys


def test_one_input(data: bytes) -> None:
    """Nothing."""


def main() -> None:
    """Fuzzes for the seconds on the command line; libFuzzer ends the process."""
    import atheris

    atheris.Setup([sys.argv[0], f"-max_total_time={int(sys.argv[1])}"], test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
