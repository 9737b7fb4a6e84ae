# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m guestemu` is the `guestemu` command."""

from guestemu.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
