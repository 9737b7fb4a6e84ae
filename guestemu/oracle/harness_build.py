# SPDX-License-Identifier: GPL-2.0-or-later
"""Compiles the programs of the oracle, /init of the machine under test above all: static programs
for x86-64 Linux.

The compiler is $CC, `cc`, `gcc` or `clang`, whichever makes a static program, else the one in the
Python package `ziglang`, with its own C library. The result is kept in the user's cache under a
name made of the sources and the command.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from guestemu.abi.errors import MissingError
from guestemu.guest.linux.images import cache_root

SOURCES: Final = Path(__file__).parent / "harness"
FLAGS: Final = ("-std=gnu11", "-O2", "-static", "-pthread", "-Wall", "-Wextra")
_SECONDS: Final = 120
_LINUX_KVM: Final = "linux/kvm.h"


def _compilers() -> Iterator[list[str]]:
    if os.environ.get("CC"):
        yield shlex.split(os.environ["CC"])
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            yield [path]
    if importlib.util.find_spec("ziglang") is not None:
        yield [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-musl"]


def _is_for_x86(program: bytes) -> bool:
    return program.startswith(b"\x7fELF\x02\x01") and program[18:20] == b"\x3e\x00"


def build_init() -> tuple[bytes, str]:
    """/init and the command that made it; see `build`."""
    path, command = build("init")
    return path.read_bytes(), command


def build(name: str) -> tuple[Path, str]:
    """The program made of `name`.c, and the command that made it. Raises `MissingError` with the
    compilers' words where there is none that makes it."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    said = []
    for compiler in _compilers():
        command = [*compiler, *FLAGS]
        key = hashlib.sha256(digest.digest() + repr(command).encode()).hexdigest()[:24]
        kept = cache_root() / "oracle" / f"{name}-{key}"
        if kept.is_file():
            return kept, shlex.join(command)
        program, words = _compile(command, SOURCES, [f"{name}.c"])
        if program and _is_for_x86(program):
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = kept.with_name(f".{kept.name}.{os.getpid()}")
            part.write_bytes(program)
            part.chmod(0o700)
            part.replace(kept)
            return kept, shlex.join(command)
        said.append(f"{Path(compiler[-1]).name}: {words or 'makes no x86-64 program'}")
    why = "; ".join(said) or "no C compiler"
    raise MissingError(
        f"cannot build {name}.c for the machine under test: {why}; install gcc and libc6-dev, or "
        "the Python package ziglang"
    )


def build_static(directory: Path, units: Sequence[str]) -> bytes:
    """A static program for x86-64 Linux from the C files `units` in `directory`. Raises
    `MissingError` as `build`."""
    said = []
    for compiler in _compilers():
        program, words = _compile([*compiler, *FLAGS], directory, units)
        if program and _is_for_x86(program):
            return program
        said.append(f"{Path(compiler[-1]).name}: {words or 'makes no x86-64 program'}")
    raise MissingError(f"cannot build a static program: {'; '.join(said) or 'no C compiler'}")


def _compile(command: list[str], directory: Path, units: Sequence[str]) -> tuple[bytes, str]:
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "program")
        try:
            done = subprocess.run(
                [*command, "-o", str(output), *units],
                cwd=directory,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_SECONDS,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return b"", str(error)
        if done.returncode or not output.is_file():
            lines = [line for line in done.stderr.splitlines() if "error" in line]
            return b"", (lines or [f"status {done.returncode}"])[0].strip()
        return output.read_bytes(), ""
