# SPDX-License-Identifier: GPL-2.0-or-later
"""Rebuilds the committed machine code from its assembly: `python -m guestemu.machine.assemble`.

Every `.S` in `SOURCES` becomes an ELF file beside it, by GNU `as` and `ld` with fixed flags: no
build-id, no time stamp, no debug sections, no paths, symbols kept. The same binutils give the same
bytes. Nothing here runs when guestemu runs; the ELF files are committed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError, MissingError
from guestemu.machine.layout import MODES

PACKAGE: Final = Path(__file__).resolve().parent.parent
SNIPPETS: Final = ("5.10", "2020", "5.17", "6.1", "6.12", "6.12-tdx", "6.12-snp")

_AS_FLAGS: Final = ("--64", "-mx86-used-note=no", "--fatal-warnings", "--strip-local-absolute")
_LD_FLAGS: Final = (
    *("-m", "elf_x86_64", "--build-id=none", "--fatal-warnings", "--strip-debug", "--discard-all"),
    *("-z", "noexecstack", "-z", "max-page-size=0x1000"),
)
PLACED: Final = ("-static", "--no-dynamic-linker", "--nmagic")
"""Flags of `ld` for code that a linker script or an address places."""


class AssemblySource(msgspec.Struct, frozen=True):
    """One `.S` and how it is linked.

    `path` is relative to the package `guestemu`. `link` are the flags of `ld` that place it: a
    linker script beside the source, or a fixed address for code that is one `.text` section, or
    nothing for a shared library.
    """

    path: str
    link: tuple[str, ...]

    @property
    def source(self) -> Path:
        """The assembly file."""
        return PACKAGE / self.path

    @property
    def output(self) -> Path:
        """The committed ELF file."""
        return self.source.with_suffix(".elf")


def _blob(path: str, base: int) -> AssemblySource:
    return AssemblySource(path, (*PLACED, f"-Ttext={base:#x}", "--entry=0"))


SOURCES: Final = (
    _blob("machine/native/modes.S", MODES),
    _blob("host/mirror/handler.S", 0),
    *(
        AssemblySource(f"guest/snippet/snippet-{name}.S", (*PLACED, "--script=snippet.ld"))
        for name in SNIPPETS
    ),
)


def _run(arguments: list[str], directory: Path) -> None:
    done = subprocess.run(arguments, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{arguments[0]} refused its input, correct it: {done.stderr.strip()}")


def build(source: AssemblySource, output: Path) -> None:
    """Assembles and links `source` into the ELF file `output`.

    Errors: `MissingError` without binutils, `InputError` with the message of `as` or `ld`.
    """
    for tool in ("as", "ld"):
        if shutil.which(tool) is None:
            raise MissingError(f"{tool} is not installed: install binutils (GNU as and ld, x86-64)")
    directory = source.source.parent
    with tempfile.TemporaryDirectory() as scratch:
        # Both tools run beside the source with short names, so that no path gets into the file.
        unit = str(Path(scratch) / "unit.o")
        _run(["as", *_AS_FLAGS, "-o", unit, source.source.name], directory)
        _run(["ld", *_LD_FLAGS, *source.link, "-o", str(output.resolve()), unit], directory)
    output.chmod(0o644)


def build_all(files: Iterable[tuple[str, Callable[[], None]]]) -> int:
    """Builds files, each a name and what builds it, and says so; returns the exit status."""
    for name, make in files:
        try:
            make()
        except InputError as error:
            sys.stderr.write(f"{name}: {error}\n")
            return 2
        except MissingError as error:
            sys.stderr.write(f"{error}\n")
            return 3
        sys.stdout.write(f"built   {name}\n")
    return 0


def main() -> int:
    """Rebuilds every file of `SOURCES`; returns the exit status."""
    return build_all(
        (str(source.output.relative_to(PACKAGE)), partial(build, source, source.output))
        for source in SOURCES
    )


if __name__ == "__main__":
    sys.exit(main())
