# SPDX-License-Identifier: GPL-2.0-or-later
"""Rebuilds the libraries of campaigns from their C sources: `python -m guestemu.campaign.build`.

Part of `make snippets`. The libraries are committed, so nobody needs a compiler to use them; each
names its sources (`Source.digest`), for another compiler makes other bytes of them.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError, MissingError
from guestemu.bench.floor import find_compiler
from guestemu.machine.assemble import build_all

_CAMPAIGN: Final = Path(__file__).resolve().parent


class Source(msgspec.Struct, frozen=True):
    """A shared library and the files in its directory that it is made from: units, then headers."""

    library: Path
    units: tuple[str, ...]
    headers: tuple[str, ...] = ()

    def digest(self) -> str:
        """What the library made from the present sources says in its `*_source`."""
        directory = self.library.parent
        together = b"".join((directory / name).read_bytes() for name in self.headers + self.units)
        return hashlib.sha256(together).hexdigest()


FASTPATH: Final = Source(
    _CAMPAIGN / "fastpath" / "fastpath.elf",
    ("decode.c", "tables.c", "judge.c", "feedback.c", "host.c", "run.c"),
    ("fast.h",),
)
MUTATOR: Final = Source(_CAMPAIGN / "native" / "mutator.elf", ("mutator.c",))

_FLAGS: Final = (
    *("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"),
    *("-ffreestanding", "-fPIC", "-fvisibility=hidden", "-fno-ident"),
    *("-fno-asynchronous-unwind-tables", "-fno-stack-protector"),
    *("-nostdlib", "-shared", "-s", "-Wl,-Bsymbolic,--build-id=none,-z,noexecstack"),
)


def build(source: Source, output: Path) -> None:
    """Compiles `source` into the shared library `output`.

    Errors: `MissingError` without a C compiler, `InputError` with the compiler's message.
    """
    compiler = find_compiler()
    if compiler is None:
        raise MissingError("no C compiler is installed: install gcc or clang")
    done = subprocess.run(
        [
            *(compiler, *_FLAGS, f'-DSOURCE="{source.digest()}"'),
            *("-o", str(output.resolve()), *source.units),
        ],
        cwd=source.library.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise InputError(f"{compiler} refused the sources, correct them: {done.stderr.strip()}")
    output.chmod(0o644)


def main() -> int:
    """Rebuilds the committed libraries; returns the exit status."""
    return build_all(
        (str(source.library.relative_to(_CAMPAIGN)), partial(build, source, source.library))
        for source in (FASTPATH, MUTATOR)
    )


if __name__ == "__main__":
    sys.exit(main())
