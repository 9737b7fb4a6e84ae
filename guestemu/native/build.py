# SPDX-License-Identifier: GPL-2.0-or-later
"""Compiles the libraries that run in the user's process (C beside the Python that uses it).

The build hook (`hatch_build.py`) runs this file by its path before guestemu or anything it needs is
installed: the standard library is all it may import. `python -m guestemu.native` runs it in place.

A library's file name has the digest of everything it was made from, so that a library of other
sources is never loaded. The compiler is $CC, `cc`, `gcc` or `clang`, whichever works first, else
the one in the Python package `ziglang`. The objects need no C library to link against.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

PACKAGE: Final = Path(__file__).resolve().parent.parent
"""The package `guestemu`: the paths of sources are relative to it."""

DIRECTORY: Final = PACKAGE / "native"
"""Where the libraries are put."""

SWITCH: Final = "GUESTEMU_NATIVE"
"""This environment variable with the value `off`: nothing is built, and Python bodies run. With
the value `sanitize` the libraries are built with ASan and UBSan, whose runtime has to be preloaded
(`make sanitize`)."""

ZIG: Final = "ziglang"
"""The package from PyPI that has a compiler, for machines without one."""

FLAGS: Final = (
    *("-std=c11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"),
    *("-ffreestanding", "-fno-stack-protector", "-nostdlib", "-Wl,-Bsymbolic,-z,noexecstack"),
)
WITHOUT_LIBC: Final = frozenset({"-ffreestanding", "-nostdlib"})
SANITIZERS: Final = (
    *("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"),
    "-fno-sanitize-recover=all",
)
GUEST_FLAGS: Final = (
    *("-std=gnu11", "-O2", "-static", "-nostdlib", "-fno-pie", "-no-pie", "-ffreestanding"),
    *("-fno-stack-protector", "-fno-builtin", "-mno-avx"),
    *("-Wl,-z,noexecstack", "-Wl,--build-id=none"),
)
"""Of a program that runs in a guest: x86-64 with SSE2, no library, no relocation."""

_COMPILERS: Final = ("cc", "gcc", "clang")
_SECONDS: Final = 120
_DIGITS: Final = 16


class BuildError(Exception):
    """A library cannot be built here; the message says why in one line."""


class Library(NamedTuple):
    """A shared library: `units` and the `headers` they include, in `directory` of the package.

    `needs` is "libc" for one that includes the C library's headers; "guest" for a static x86-64
    program instead, which only an emulated CPU executes.
    """

    name: str
    directory: str
    units: tuple[str, ...]
    headers: tuple[str, ...] = ()
    needs: str = ""

    @property
    def runs_in_guest(self) -> bool:
        """Whether it is a program for a guest."""
        return self.needs == "guest"

    @property
    def flags(self) -> tuple[str, ...]:
        """What the compiler is given."""
        if self.runs_in_guest:
            return GUEST_FLAGS
        left_out = WITHOUT_LIBC if self.needs == "libc" else ()
        return tuple(flag for flag in flags() if flag not in left_out)

    @property
    def path(self) -> Path:
        """Where the library made from the present sources for this machine is, if it is built."""
        digest = hashlib.sha256(repr((self.flags, sys.platform, platform.machine())).encode())
        for name in self.headers + self.units:
            digest.update((PACKAGE / self.directory / name).read_bytes())
        return DIRECTORY / f"{self._stem}{digest.hexdigest()[:_DIGITS]}{self._suffix}"

    @property
    def _stem(self) -> str:
        if self.runs_in_guest:
            return f"{self.name}-"
        return f"lib{self.name}-{'sanitized-' if is_sanitized() else ''}"

    @property
    def _suffix(self) -> str:
        return ".guest" if self.runs_in_guest else ".so"

    def outdated(self) -> set[Path]:
        """The files of this library that were made from other sources."""
        return set(DIRECTORY.glob(f"{self._stem}{'?' * _DIGITS}{self._suffix}")) - {self.path}


HOOKS: Final = Library("hooks", "machine/native", ("hooks.c", "psc.c", "deadline.c"))
FASTPATH: Final = Library(
    "fastpath",
    "campaign/fastpath",
    ("decode.c", "runs.c", "tables.c", "judge.c", "feedback.c", "host.c", "shadow.c", "run.c"),
    ("fast.h",),
)
MUTATOR: Final = Library("mutator", "campaign/native", ("mutator.c",))
SERVE: Final = Library(
    "serve", "host/native", ("guestemu_serve.c",), ("guestemu_host.h",), needs="libc"
)
INIT: Final = Library("init", "guest/linux/userland", ("init.c",), needs="guest")
LIBRARIES: Final = (
    *(HOOKS, FASTPATH, MUTATOR, SERVE),
    *((INIT,) if platform.machine() in {"x86_64", "AMD64"} else ()),
)
"""What this machine can build; a compiler for another processor makes no x86-64 program."""


def is_off() -> bool:
    """Whether the user wants no machine code."""
    return os.environ.get(SWITCH) == "off"


def is_sanitized() -> bool:
    """Whether the user wants libraries that check themselves."""
    return os.environ.get(SWITCH) == "sanitize"


def flags() -> tuple[str, ...]:
    """What the compiler is given."""
    return FLAGS + SANITIZERS if is_sanitized() else FLAGS


def _zig() -> list[str]:
    # Without a target, zig compiles for exactly this processor.
    return [sys.executable, "-m", ZIG, "cc", "-target", f"{platform.machine()}-linux-gnu"]


def _candidates() -> Iterator[list[str]]:
    if os.environ.get("CC"):
        yield shlex.split(os.environ["CC"])
    for name in _COMPILERS:
        if path := shutil.which(name):
            yield [path]
    if importlib.util.find_spec(ZIG) is not None:
        yield _zig()


def _run(command: list[str], directory: Path) -> str:
    """Runs a compiler; what it complained about, empty if it was content."""
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return done.stderr.strip() or f"status {done.returncode}" if done.returncode else ""


def find_compiler() -> list[str] | None:
    """The command of the first C compiler here that makes a shared library; None without one."""
    with tempfile.TemporaryDirectory() as scratch:
        unit = Path(scratch, "probe.c")
        unit.write_text("int probe(void)\n{\n\treturn 0;\n}\n", encoding="ascii")
        for command in _candidates():
            if not _run([*command, *FLAGS, "-o", "probe.so", unit.name], Path(scratch)):
                return command
    return None


def compile_library(library: Library, output: Path, extra: tuple[str, ...] = ()) -> None:
    """Compiles `library` into the file `output`, with flags `extra` behind the usual ones.

    Raises `BuildError` without a compiler, or with what the compiler says.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BuildError(f"no C compiler ({', '.join(_COMPILERS)} or the package {ZIG})")
    directory = PACKAGE / library.directory
    said = _run([*compiler, *library.flags, *extra, "-o", str(output), *library.units], directory)
    if said:
        raise BuildError(f"{' '.join(compiler)} refuses {library.directory}: {said}")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One process at a time builds in `DIRECTORY`."""
    with (DIRECTORY / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_missing() -> list[Path]:
    """Builds the libraries that are not there, removes those of other sources; the new files.

    Raises `BuildError`, also where the package's directory cannot be written to.
    """
    made = []
    try:
        with _alone():
            for library in LIBRARIES:
                target = library.path
                if target.exists():
                    continue
                with tempfile.TemporaryDirectory(dir=DIRECTORY, prefix=".build-") as scratch:
                    output = Path(scratch, target.name)
                    compile_library(library, output)
                    output.chmod(0o755)
                    output.replace(target)
                made.append(target)
            for library in LIBRARIES:
                for path in library.outdated():
                    path.unlink(missing_ok=True)
    except OSError as error:
        raise BuildError(f"{DIRECTORY}: {error.strerror}") from error
    return made


def missing() -> list[Library]:
    """The libraries of the present sources that are not built."""
    return [library for library in LIBRARIES if not library.path.exists()]
