# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the example handlers with the compiler that builds guestemu's own C."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from guestemu.native.build import find_compiler

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "native-host" / "my_vmm.c"
HEADERS = ROOT / "guestemu" / "host" / "native"


def compile_c(out: Path, *sources: Path, flags: tuple[str, ...] = ()) -> Path:
    """Compiles C files into the shared object or program `out`."""
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C compiler")
    shared = ("-shared", "-fPIC") if out.suffix == ".so" else ()
    command = [*compiler, *shared, "-O1", "-Wall", "-Werror", f"-I{HEADERS}", *flags]
    subprocess.run([*command, "-o", str(out), *map(str, sources)], check=True)
    return out


def example(directory: Path, bug: int) -> Path:
    """The example handler with one of its bugs, 0 for none."""
    return compile_c(directory / f"bug{bug}.so", EXAMPLE, flags=(f"-DBUG={bug}",))


def example_program(directory: Path, bug: int) -> Path:
    """The example handler as a program of its own."""
    flags = ("-DGUESTEMU_SERVE_MAIN", f"-DBUG={bug}")
    return compile_c(
        directory / f"program{bug}", EXAMPLE, HEADERS / "guestemu_serve.c", flags=flags
    )
