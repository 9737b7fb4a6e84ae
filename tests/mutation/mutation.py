# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the tests of the judging layers on changed code, and names the changes that no test saw.

    python tests/mutation/mutation.py [PART ...] [--every N]

PART is a file below guestemu/ (default: all of JUDGES), `--every` takes each N-th mutant. A
survivor that changes nothing that can be seen stands in survivors.toml with the reason. Exit status
1: a survivor that does not.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.machinery
import importlib.util
import io
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import pytest
from mutants import Mutant, c_mutants, python_mutants

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "guestemu"
SURVIVORS = Path(__file__).with_name("survivors.toml")
SECONDS = 60
"""After which a mutant counts as noticed: it does not end."""

_JUDGE = ("tests/native/test_native_judge.py",)
_CHECKS = ("tests/checks/test_checks.py",)
JUDGES = {
    "campaign/fastpath/judge.c": _JUDGE,
    "checks/conversion.py": _JUDGE + _CHECKS,
    "checks/record.py": _JUDGE + _CHECKS,
    "checks/results.py": _JUDGE + _CHECKS,
    "checks/migration_control.py": _CHECKS,
    "checks/progress.py": _CHECKS,
    "checks/ready.py": _CHECKS,
    "checks/free.py": _CHECKS,
    "campaign/triage/symptom.py": ("tests/findings/test_symptom.py",),
    "campaign/triage/rules.py": ("tests/findings/test_symptom.py",),
    "campaign/triage/lower.py": ("tests/findings/test_lower.py",),
    "campaign/triage/lost_bits.py": ("tests/findings/test_lost_bits.py",),
    "campaign/lockstep/known.py": ("tests/lockstep/test_known.py",),
    "campaign/lockstep/compare.py": ("tests/lockstep/test_lockstep.py",),
}
"""The files that judge, and their tests, the quickest first."""


class _Changed(importlib.machinery.SourceFileLoader):
    """Loads a module from other source text than its file's."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> object:
        return compile(self._source, self.path, "exec", dont_inherit=True)


class _Finder:
    def __init__(self, name: str, path: Path, source: str) -> None:
        self._name = name
        self._loader = _Changed(name, str(path), source)

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> object:
        if name != self._name:
            return None
        return importlib.util.spec_from_loader(name, self._loader)


def _imported(module: str) -> set[str]:
    """The modules of guestemu that the source of `module` names."""
    path = getattr(sys.modules[module], "__file__", None)
    tree = ast.parse(Path(path).read_text(encoding="utf-8")) if path else ast.Module([], [])
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _users_of(target: str) -> set[str]:
    """`target` and the loaded modules that import it, over any number of others; and the tests."""
    ours = {name for name in sys.modules if name.split(".")[0] == "guestemu"}
    imports = {name: _imported(name) for name in ours}
    found = {target}
    while more := {name for name in ours - found if imports[name] & found}:
        found |= more
    tests = str(ROOT / "tests")
    here = {"mutants", "__main__", "mutation"}
    return found | {
        name
        for name, module in sys.modules.items()
        if str(getattr(module, "__file__", "")).startswith(tests) and name not in here
    }


def _change_c(part: str, source: str) -> None:
    """Makes the build take its sources from a copy with the change."""
    from guestemu.native import build

    place = Path(tempfile.mkdtemp(prefix="mutant-"))
    for library in build.LIBRARIES:
        shutil.copytree(PACKAGE / library.directory, place / library.directory)
    (place / part).write_text(source, encoding="utf-8")
    build.PACKAGE = place


def _child(part: str, mutant: Mutant) -> int:
    """In a process of its own: the tests of `part` with the mutant; 0 if they passed."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    signal.alarm(SECONDS)
    path = PACKAGE / part
    if path.suffix == ".c":
        _change_c(part, mutant.source)
    else:
        name = ".".join(("guestemu", *Path(part).with_suffix("").parts))
        sys.meta_path.insert(0, _Finder(name, path, mutant.source))
        for user in _users_of(name):
            sys.modules.pop(user, None)
        importlib.import_module(name)  # pytest has an importer of its own for our modules
    return _test(part)


def _test(part: str, *more: str) -> int:
    tests = [str(ROOT / test) for test in JUDGES[part]]
    plugins = ("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:hypothesispytest")
    return int(pytest.main(["-q", "-x", *plugins, "-m", "not soak", *more, *tests]))


def survives(part: str, mutant: Mutant) -> bool:
    """Whether the tests of `part` pass with the mutant."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = _child(part, mutant)
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def mutants_of(part: str) -> list[Mutant]:
    """Every mutant of a file."""
    source = (PACKAGE / part).read_text(encoding="utf-8")
    return list(c_mutants(source) if part.endswith(".c") else python_mutants(source))


def explained() -> dict[str, dict[str, str]]:
    """For each file the survivors that are no defect of the tests, and why."""
    with SURVIVORS.open("rb") as file:
        return tomllib.load(file)


def run(parts: list[str], every: int) -> int:
    """Says what survives; the exit status."""
    known = explained()
    wrong = 0
    for part in parts:
        mutants = mutants_of(part)[::every]
        start = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):
            _test(part, "--collect-only")  # loads what the processes below then have
        reasons = known.get(part, {})
        left = new = 0
        for mutant in mutants:
            if survives(part, mutant):
                left += 1
                if mutant.name not in reasons:
                    new += 1
                    print(f"  {mutant.name}", flush=True)  # at once: a run may be cut short
        wrong += new
        print(
            f"{part}: {len(mutants)} mutants, {left} survive, {new} unexplained "
            f"({time.monotonic() - start:.0f} s)",
            flush=True,
        )
    return 1 if wrong else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="a file below guestemu/")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each N-th mutant")
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - JUDGES.keys()
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: no judge; use one of {', '.join(JUDGES)}")
    return run(options.parts or list(JUDGES), options.every)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
