# SPDX-License-Identifier: GPL-2.0-or-later
"""The process in which a shared object answers: `python -m guestemu.host.native.server FILE`."""

from __future__ import annotations

import ctypes
import os
import sys

from guestemu.host.native.wire import DESCRIPTORS
from guestemu.native import load
from guestemu.native.build import SERVE


def main(arguments: list[str]) -> int:
    """Serves until the other side closes the pipe. A library that cannot be served: status 2,
    and the reason on standard error."""
    read_end, write_end = map(int, os.environ[DESCRIPTORS].split(","))
    library = load(SERVE, is_global=True)  # what -fsanitize-coverage calls is there
    if library is None:
        os.write(2, b"guestemu's C libraries are not built\n")
        return 2
    serve = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_char_p)(
        ("guestemu_serve", library)
    )
    why = serve(read_end, write_end, os.fsencode(arguments[0]))
    if why:
        os.write(2, why + b"\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
