# SPDX-License-Identifier: GPL-2.0-or-later
"""Room kept back on the campaign's disk, for the moment when it is full.

A file of a quarter of a megabyte holds the place of what must still be written then: the finding
at hand, the counts, the figures. The first process to run out of space gives it up and tries once
more; the campaign then ends and says so.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from guestemu.abi.files import FULL

SIZE: Final = 1 << 18


class Reserve:
    """The reserve of one directory. `is_used`: this process met a full disk."""

    def __init__(self, root: Path) -> None:
        self._path = root / ".reserve"
        self.is_used = False

    def fill(self) -> None:
        """Takes the room; without it (disk full already, no such call) nothing is kept back."""
        with contextlib.suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, SIZE)
            finally:
                os.close(fd)

    def write(self, action: Callable[[], None]) -> None:
        """Runs `action`, which writes; where the disk is full, gives the reserve up and runs it
        again. Raises OSError if the second run also fails."""
        try:
            action()
        except OSError as error:
            if error.errno not in FULL:
                raise
            self.is_used = True
            self._path.unlink(missing_ok=True)
            action()
