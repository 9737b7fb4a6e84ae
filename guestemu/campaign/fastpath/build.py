# SPDX-License-Identifier: GPL-2.0-or-later
"""Rebuilds `fastpath.elf` from its C sources: `python -m guestemu.campaign.fastpath.build`.

Part of `make snippets`. The library is committed, so nobody needs a compiler to use it; it names
the sources it was made from (`source_hash`), for another compiler makes other bytes of them.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Final

from guestemu.abi.errors import InputError, MissingError
from guestemu.bench.floor import find_compiler

DIRECTORY: Final = Path(__file__).resolve().parent
LIBRARY: Final = DIRECTORY / "fastpath.elf"
_UNITS: Final = ("decode.c", "tables.c", "judge.c", "feedback.c", "run.c")
_FILES: Final = ("fast.h", *_UNITS)
_FLAGS: Final = (
    *("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"),
    *("-ffreestanding", "-fPIC", "-fvisibility=hidden", "-fno-ident"),
    *("-fno-asynchronous-unwind-tables", "-fno-stack-protector"),
    *("-nostdlib", "-shared", "-s", "-Wl,-Bsymbolic,--build-id=none,-z,noexecstack"),
)


def source_hash() -> str:
    """What `fast_source` of a library made from the present sources says."""
    together = b"".join((DIRECTORY / name).read_bytes() for name in _FILES)
    return hashlib.sha256(together).hexdigest()


def build(output: Path) -> None:
    """Compiles the sources into the shared library `output`.

    Errors: `MissingError` without a C compiler, `InputError` with the compiler's message.
    """
    compiler = find_compiler()
    if compiler is None:
        raise MissingError("no C compiler is installed: install gcc or clang")
    done = subprocess.run(
        [compiler, *_FLAGS, f'-DSOURCE="{source_hash()}"', "-o", str(output.resolve()), *_UNITS],
        cwd=DIRECTORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise InputError(f"{compiler} refused the sources, correct them: {done.stderr.strip()}")
    output.chmod(0o644)


def main() -> int:
    """Rebuilds the committed library; returns the exit status."""
    try:
        build(LIBRARY)
    except (InputError, MissingError) as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, InputError) else 3
    sys.stdout.write(f"built   {LIBRARY.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
