# SPDX-License-Identifier: GPL-2.0-or-later
"""`make sanitize`: the tests of native code on libraries that are built with ASan and UBSan.

    python tests/native/sanitize.py [EXECUTIONS]

EXECUTIONS (default 200,000) are those of the fuzz of decoder and judge. Needs gcc or clang with
the runtime of its sanitizers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from guestemu.native import build

TESTS = Path(__file__).parents[1]
FILES = (
    "native/test_hostile_records.py",
    "native/test_native_judge.py",
    "native/test_runs.py",
    "campaign/test_native_mutator.py",
    "campaign/test_fastpath.py",
    "machine/test_machine_hooks.py",
    "machine/test_machine_memory.py",
)
RUNTIMES = ("libasan.so", "libubsan.so")

# Capstone asks for RTLD_DEEPBIND where there is one; ASan refuses such libraries.
PYTEST = "import os, sys; del os.RTLD_DEEPBIND; import pytest; sys.exit(pytest.main(sys.argv[1:]))"


def find_runtimes(compiler: list[str]) -> list[str]:
    """The sanitizers' runtime, which a Python without them has to load first."""
    found = []
    for name in RUNTIMES:
        asked = [*compiler, f"-print-file-name={name}"]
        path = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        if Path(path).is_absolute():
            found.append(path)
    return found


def main(arguments: list[str]) -> int:
    compiler = build.find_compiler()
    runtimes = [] if compiler is None else find_runtimes(compiler)
    if len(runtimes) < len(RUNTIMES):
        sys.stderr.write("no C compiler with libasan and libubsan; install gcc\n")
        return 3
    environment = os.environ | {build.SWITCH: "sanitize"}
    if arguments:
        environment["GUESTEMU_HOSTILE_EXECUTIONS"] = arguments[0]
    else:
        environment["GUESTEMU_HOSTILE_EXECUTIONS"] = "200000"
    subprocess.run([sys.executable, "-m", "guestemu.native"], env=environment, check=True)
    environment |= {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONMALLOC": "malloc",
    }
    command = [sys.executable, "-c", PYTEST, "-q", "-x", "-s", "-p", "no:cacheprovider"]
    files = [str(TESTS / name) for name in FILES]
    return subprocess.run([*command, *files], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
