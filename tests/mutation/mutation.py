# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the tests of the judging layers on changed code, and names the changes that no test saw.

    python tests/mutation/mutation.py [PART ...] [--every N] [--only FUNCTION] [--files N]
        [--quick] [--outside] [--keep DIR]

PART is a file below guestemu/ (default: all of JUDGES), `--every` takes each N-th mutant, `--only`
those in a function (Class.function), `--outside` those outside of functions, `--files` runs only
the first N files of tests. `--keep` writes what is noticed to a file for each part, and passes over
what an earlier run noticed, as long as the part and its files of tests are the same. A survivor
that changes nothing that can be seen stands in survivors.toml with the reason. Exit status 1: a
survivor that does not.

The tests of a part are collected once and run once, file by file and watched: which of them reach
which line. A mutant of a function is put into a fork that has everything loaded: the code of the
function is exchanged, and only the tests that reach its lines run, the quickest first. A mutant of
C is compiled there. Later files, which take longer, run only while a mutant without a reason is
left. A survivor without a reason, and what is outside of functions, is tried again in a fork that
imports all users of the part anew and runs all tests, so that no value from before the change hides
it; with `--quick` nothing is tried in that way. A run that SIGTERM or Ctrl-C ends says what was
left until then. A part takes from a few seconds to two minutes, all of them about
25 minutes, on a CPU that does other things as well.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import gc
import hashlib
import importlib
import importlib.machinery
import importlib.util
import io
import itertools
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from mutants import Mutant, c_mutants, python_mutants

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "guestemu"
SURVIVORS = Path(__file__).with_name("survivors.toml")
SECONDS = 5
"""Of CPU time beside ten times what the tests take, after which a mutant counts as noticed: it does
not end."""
WAIT_SECONDS = 600
"""The same of real time, for one that waits."""

_NATIVE = ("tests/native/test_native_judge.py",)
_STATUS = ("tests/checks/test_status_rules.py", *_NATIVE)
_RULES = "tests/checks/test_check_rules.py"
_STREAM = "tests/checks/test_stream_rules.py"
_PAGE_ENC = "tests/checks/test_page_enc_rules.py"
_WORLD = "tests/checks/test_host_world_rules.py"
_SEV = "tests/checks/test_sev_rules.py"
_HISTORIC = "tests/checks/test_historic_checks.py"
_OF_CHECKS = {
    "base": (_PAGE_ENC, _STREAM, *_STATUS),
    "cache": ("tests/checks/test_cache_rules.py", "tests/checks/test_cache_check.py"),
    "check_set": (_PAGE_ENC,),
    "conversion": _STATUS,
    "device": (_PAGE_ENC,),
    "first_state": (_STREAM,),
    "free": (_RULES,),
    "guest_memory": (_WORLD,),
    "host_ioctls": (_PAGE_ENC,),
    "lost": ("tests/checks/test_lost_rules.py", "tests/migration/test_migration_packets.py"),
    "migration_control": (_RULES,),
    "mirror": (_WORLD, "tests/mirror_migration/test_threats.py"),
    "packets": (_STREAM,),
    "page_enc": (_PAGE_ENC,),
    "page_states": ("tests/checks/test_page_state_rules.py", "tests/guest/test_snp_attacks.py"),
    "progress": (_STREAM,),
    "psc": (_STREAM,),
    "qemu_status": ("tests/checks/test_qemu_rules.py",),
    "ready": (_RULES,),
    "record": _STATUS,
    "resources": (_PAGE_ENC,),
    "results": _STATUS,
    "sev_firmware": (_SEV,),
    "sev_reference": (_SEV,),
    "td": (_STREAM, "tests/guest/test_td_attacks.py"),
}
"""Beside those of all checks."""
_CHECKS = (
    "tests/checks/test_checks.py",
    _HISTORIC,
    "tests/replay/test_corpora.py",
    "tests/zoo/test_zoo_witnesses.py",
)
_SYMPTOM = ("tests/findings/test_symptom.py",)
_DEFECTS = "tests/quality/test_defects.py"
_TRIAGE = (
    "tests/findings/test_finding_keys.py",
    "tests/findings/test_identify.py",
    "tests/findings/test_owners.py",
)
JUDGES = {
    "campaign/fastpath/judge.c": _NATIVE,
    **{
        f"checks/{path.name}": tuple(dict.fromkeys((*_OF_CHECKS.get(path.stem, ()), *_CHECKS)))
        for path in sorted(PACKAGE.glob("checks/*.py"))
        if path.name != "__init__.py"
    },
    "campaign/triage/symptom.py": _SYMPTOM,
    "campaign/triage/rules.py": _SYMPTOM,
    "campaign/triage/lower.py": ("tests/findings/test_lower.py",),
    "campaign/triage/lost_bits.py": ("tests/findings/test_lost_bits.py",),
    "campaign/triage/canonical.py": ("tests/findings/test_canonical.py", *_TRIAGE),
    "campaign/triage/explain.py": _TRIAGE,
    "campaign/triage/identify.py": (
        "tests/findings/test_identify_neighbours.py",
        "tests/findings/test_identify_steps.py",
        "tests/findings/test_identify_search.py",
        *_TRIAGE,
    ),
    "campaign/triage/probe.py": (
        "tests/findings/test_probe_rules.py",
        "tests/findings/test_probe_steps.py",
        "tests/findings/test_probe_naming.py",
        *_TRIAGE,
        _DEFECTS,
    ),
    "campaign/triage/single.py": ("tests/findings/test_single.py", *_TRIAGE),
    "replay/lockstep/known.py": ("tests/lockstep/test_known.py",),
    "replay/lockstep/compare.py": (
        "tests/lockstep/test_compare_sides.py",
        "tests/lockstep/test_lockstep.py",
    ),
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


def _change_c(part: str, source: str, place: Path) -> None:
    """Makes the build take its sources from a copy in `place` with the change."""
    from guestemu.native import build

    for library in build.LIBRARIES:
        shutil.copytree(PACKAGE / library.directory, place / library.directory)
    (place / part).write_text(source, encoding="utf-8")
    build.PACKAGE = place
    build.FLAGS = tuple("-O0" if flag == "-O2" else flag for flag in build.FLAGS)


_INSIDE = ".<locals>"
_CACHED = type(functools.cache(int))


def _classes(source: str) -> set[str]:
    """Names of the classes in `source` that are not inside of functions."""
    found: set[str] = set()

    def walk(nodes: list[ast.stmt], outer: str) -> None:
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                found.add(f"{outer}{node.name}")
                walk(node.body, f"{outer}{node.name}.")

    walk(ast.parse(source).body, "")
    return found


def _code_objects(code: CodeType) -> Iterator[CodeType]:
    """Every code object inside of `code`."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _code_objects(constant)


def _by_name(source: str, path: Path) -> dict[str, list[CodeType]]:
    """The code of each function in `source`, in its order; lambdas share names."""
    found: dict[str, list[CodeType]] = {}
    for code in _code_objects(compile(source, str(path), "exec", dont_inherit=True)):
        found.setdefault(code.co_qualname, []).append(code)
    return found


class Loaded:
    """The functions of a part that this process has loaded. `reached`: which tests reach which
    lines; `seconds`: how long each takes."""

    def __init__(self, path: Path, root: Path = ROOT) -> None:
        self.path = path
        self._module = ".".join(path.relative_to(root).with_suffix("").parts)
        source = path.read_text(encoding="utf-8") if path.suffix == ".py" else ""
        self._codes = _by_name(source, path)
        classes = _classes(source)
        self._outermost = {
            name.replace(_INSIDE, ""): outer
            for name in self._codes
            if not name.endswith(">") and (outer := name.partition(_INSIDE)[0]) not in classes
        }
        self.reached: dict[int, list[pytest.Item]] = {}
        self.seconds: dict[pytest.Item, float] = {}
        self._functions: dict[CodeType, list[FunctionType]] = {}
        self._caches: list[object] = []

    def has_function(self, name: str) -> bool:
        """Whether `name` is a function of the part, Class.function."""
        return name in self._outermost

    def tests_of(self, mutant: Mutant) -> list[pytest.Item]:
        """The tests that reach a line of the changed code, the quickest first."""
        lines = range(mutant.first, mutant.last + 1)
        found = {item for line in lines for item in self.reached.get(line, ())}
        return sorted(found, key=lambda item: (self.seconds[item], item.nodeid))

    def changes(self, mutant: Mutant) -> dict[CodeType, CodeType]:
        """What takes the place of which loaded code; empty where that cannot be exchanged."""
        outer = self._outermost.get(mutant.where)
        changed = _by_name(mutant.source, self.path)
        if outer is None or outer not in changed:
            return {}
        pairs: list[tuple[CodeType, CodeType]] = []
        for name, old in self._codes.items():
            new = changed.get(name, [])
            if len(old) == len(new) and (name == outer or name.startswith(f"{outer}{_INSIDE}.")):
                pairs += zip(old, new, strict=True)
        # what stands inside is made anew by the outer one; functions made before keep their code
        # where they use other variables now
        return {old: new for old, new in pairs if old.co_freevars == new.co_freevars}

    def look_up(self) -> None:
        """Finds the functions and caches of the part among all objects: once, as a fork that looks
        at all objects has to copy them."""
        self._functions.clear()
        path = str(self.path)
        for one in gc.get_objects():
            if isinstance(one, FunctionType) and one.__code__.co_filename == path:
                self._functions.setdefault(one.__code__, []).append(one)
        self._caches = [
            one
            for one in gc.get_objects()
            if isinstance(one, _CACHED) and one.__module__ == self._module
        ]

    def exchange(self, changes: dict[CodeType, CodeType]) -> None:
        """Puts changed code into the functions that `look_up` found, and drops what their caches
        hold."""
        for old, new in changes.items():
            for function in self._functions.get(old, ()):
                function.__code__ = new
        for cache in self._caches:
            cache.cache_clear()


_Trace = Callable[[FrameType, str, object], Any]


def _beside(one: _Trace, other: _Trace) -> _Trace:
    """Both trace functions in one."""

    def on_call(frame: FrameType, event: str, arg: object) -> _Trace | None:
        if frame.f_code.co_filename == __file__:
            return None
        found = [inner for trace in (one, other) if (inner := trace(frame, event, arg))]

        def on_event(frame: FrameType, event: str, arg: object) -> _Trace:
            for inner in found:
                inner(frame, event, arg)
            return on_event

        return on_event if found else None

    return on_call


def watch(items: list[pytest.Item], parts: Iterable[Loaded]) -> bool:
    """Runs `items` and notes which lines of `parts` each reaches; whether all passed."""
    watched = {str(part.path): part for part in parts}
    lines: set[tuple[str, int]] = set()

    def on_line(frame: FrameType, _event: str, _arg: object) -> _Trace | None:
        lines.add((frame.f_code.co_filename, frame.f_lineno))
        return on_line

    def on_call(frame: FrameType, event: str, arg: object) -> _Trace | None:
        return on_line(frame, event, arg) if frame.f_code.co_filename in watched else None

    settrace = sys.settrace

    def set_beside(trace: _Trace | None) -> None:
        settrace(on_call if trace in (None, on_call) else _beside(on_call, trace))

    threading.settrace(on_call)
    sys.settrace = set_beside  # what a test traces itself is watched all the same
    try:
        for item, following in zip(items, [*items[1:], None], strict=True):
            lines.clear()
            start = time.perf_counter()
            settrace(on_call)
            passed = _passes(item, following)
            settrace(None)
            seconds = time.perf_counter() - start
            if not passed:
                print(f"{item.nodeid} fails without any change")
                return False
            for part in watched.values():
                part.seconds[item] = seconds
            for name, line in lines:
                watched[name].reached.setdefault(line, []).append(item)
    finally:
        settrace(None)
        sys.settrace = settrace
        threading.settrace(None)  # type: ignore[arg-type]
    return True


def _passes(item: pytest.Item, following: pytest.Item | None) -> bool:
    """Runs one test; its fixtures stay as far as `following` uses them."""
    reports = runtestprotocol(item, log=False, nextitem=following)
    return not any(report.failed for report in reports)


def _in_fork(work: Callable[[], bool], seconds: float) -> bool:
    """What `work`, which takes `seconds` without a change, returns in a process of its own; False
    where that dies or takes too long."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            signal.setitimer(signal.ITIMER_PROF, SECONDS + 10 * seconds)
            signal.alarm(WAIT_SECONDS)
            status = 0 if work() else 1
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def _import_changed(part: str, mutant: Mutant, files: int | None) -> bool:
    """The tests of `part` on modules that are imported anew, with the mutant; whether they pass."""
    name = ".".join(("guestemu", *Path(part).with_suffix("").parts))
    sys.meta_path.insert(0, _Finder(name, PACKAGE / part, mutant.source))
    for user in _users_of(name):
        sys.modules.pop(user, None)
    importlib.import_module(name)  # pytest has an importer of its own for our modules
    return _test(part, [], files) == 0


class _Kept:
    """What was noticed of a part, in a file of `directory` that a later run goes on with; None
    keeps nothing. The file begins with a digest of the part and of its files of tests."""

    def __init__(self, part: str, directory: Path | None) -> None:
        self.names: frozenset[str] = frozenset()
        self._file: Path | None = None
        if directory is None:
            return
        digest = hashlib.sha256()
        for path in (PACKAGE / part, *(ROOT / test for test in JUDGES[part])):
            digest.update(path.read_bytes())
        directory.mkdir(parents=True, exist_ok=True)
        self._file = directory / f"{part.replace('/', '.')}.txt"
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []
        if lines[:1] == [digest.hexdigest()]:
            self.names = frozenset(lines[1:])
        else:
            self._file.write_text(digest.hexdigest() + "\n", encoding="utf-8")

    def add(self, name: str) -> None:
        """A mutant was noticed."""
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(f"{name}\n")


class _Session:
    """A plug-in of pytest: tries the mutants of `parts`, which have the same tests, in place of the
    tests. `wrong` counts survivors without a reason, and parts that were not tried as one each."""

    def __init__(
        self, parts: list[str], options: argparse.Namespace, say: Callable[[str], None]
    ) -> None:
        self.wrong = len(parts)
        self.is_tried = False
        self._parts = parts
        self._options = options
        self._say = say

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        tried = [_Part(part, self._options) for part in self._parts]
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return self._try_all(session, tried)
        except KeyboardInterrupt:
            for part in tried:
                part.say_left(self._say)
            raise

    def _try_all(self, session: pytest.Session, tried: list[_Part]) -> bool:
        start = time.monotonic()
        for _, items in itertools.groupby(session.items, key=lambda item: item.path):
            open_parts = [part for part in tried if part.is_open]
            if not open_parts:
                break
            tests = list(items)
            if not watch(tests, [part.loaded for part in open_parts]):
                return True
            for part in open_parts:
                part.try_watched(tests)
        self.is_tried = True
        for part in tried:
            new = part.unexplained(self._say)
            self.wrong += new - 1
            self._say(
                f"{part.name}: {part.count} mutants, {len(part.left)} survive, {new} unexplained "
                f"({time.monotonic() - start:.0f} s)"
            )
        return True


class _Part:
    """The mutants of a file. `left` are those that no test has noticed so far."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name = name
        self.loaded = Loaded(PACKAGE / name)
        self._is_c = name.endswith(".c")
        self._is_quick: bool = options.quick
        self._files: int | None = options.files
        self._reasons = explained().get(name, {})
        self._kept = _Kept(name, options.keep)
        chosen = [
            one
            for one in mutants_of(name)
            if options.only in ("", one.where)
            and not (self._is_quick and not self._is_inside(one))
            and not (options.outside and self._is_inside(one))
        ]
        chosen = chosen[:: options.every]
        self.count = len(chosen)
        self.left = [one for one in chosen if one.name not in self._kept.names]

    def _is_inside(self, mutant: Mutant) -> bool:
        return self._is_c or self.loaded.has_function(mutant.where)

    @property
    def is_open(self) -> bool:
        """Whether a mutant of a function is left for which there is no reason."""
        left = (one for one in self.left if one.name not in self._reasons)
        return any(map(self._is_inside, left))

    def try_watched(self, tests: list[pytest.Item]) -> None:
        """Puts each mutant that is left in place, and runs those of `tests`, which were watched
        last, that can notice it."""
        self.loaded.look_up()
        gc.freeze()  # or collecting garbage in a fork copies everything
        for mutant in [*self.left]:
            if self._is_noticed(mutant, tests):
                self._drop(mutant)
        gc.unfreeze()
        self.loaded.reached.clear()

    def _drop(self, mutant: Mutant) -> None:
        self.left.remove(mutant)
        self._kept.add(mutant.name)

    def _is_noticed(self, mutant: Mutant, tests: list[pytest.Item]) -> bool:
        if self._is_c:
            with tempfile.TemporaryDirectory(prefix="mutant-") as place:
                compiled = functools.partial(_compiled, self.name, mutant, tests, Path(place))
                return not _in_fork(compiled, self._seconds_of(tests))
        tests = self.loaded.tests_of(mutant)
        changes = self.loaded.changes(mutant) if tests else {}
        if not changes:
            return False
        exchanged = functools.partial(_exchanged, self.loaded, changes, tests)
        return not _in_fork(exchanged, self._seconds_of(tests))

    def _seconds_of(self, tests: Iterable[pytest.Item]) -> float:
        return sum(self.loaded.seconds[test] for test in tests)

    def say_left(self, say: Callable[[str], None]) -> None:
        """Names the mutants without a reason that were not noticed so far."""
        for mutant in self.left:
            if mutant.name not in self._reasons:
                say(f"  {self.name}, not noticed so far: {mutant.name}")

    def unexplained(self, say: Callable[[str], None]) -> int:
        """Tries what is left again on modules that are imported anew; how many survive that and
        have no reason. Each is said at once: a run may be cut short."""
        new = 0
        for mutant in [*self.left]:
            is_known = mutant.name in self._reasons
            is_final = is_known or self._is_quick or self._is_c
            anew = functools.partial(_import_changed, self.name, mutant, self._files)
            if not is_final and not _in_fork(anew, self._seconds_of(self.loaded.seconds)):
                self._drop(mutant)
            elif not is_known:
                new += 1
                say(f"  {mutant.name}")
        return new


def _exchanged(loaded: Loaded, changes: dict[CodeType, CodeType], tests: list[pytest.Item]) -> bool:
    """Whether `tests` pass with the changes in the loaded functions."""
    loaded.exchange(changes)
    return all(map(_passes, tests, [*tests[1:], None]))


def _compiled(part: str, mutant: Mutant, tests: list[pytest.Item], place: Path) -> bool:
    """Whether `tests` pass, which compile the C themselves, with the mutant among its sources, a
    copy of which is made in `place`."""
    _change_c(part, mutant.source, place)
    return all(map(_passes, tests, [*tests[1:], None]))


def _test(part: str, plugins: list[object], files: int | None = None) -> int:
    tests = [str(ROOT / test) for test in JUDGES[part][:files]]
    off = ("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:hypothesispytest")
    return int(pytest.main(["-q", "-x", *off, "-m", "not soak", *tests], plugins=plugins))


def mutants_of(part: str) -> list[Mutant]:
    """Every mutant of a file."""
    source = (PACKAGE / part).read_text(encoding="utf-8")
    return list(c_mutants(source) if part.endswith(".c") else python_mutants(source))


def explained() -> dict[str, dict[str, str]]:
    """For each file the survivors that are no defect of the tests, and why."""
    with SURVIVORS.open("rb") as file:
        return tomllib.load(file)


def groups_of(parts: Iterable[str]) -> list[list[str]]:
    """Parts with the same tests together."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for part in parts:
        groups.setdefault(JUDGES[part], []).append(part)
    return list(groups.values())


def run(parts: list[str], options: argparse.Namespace) -> int:
    """Says what survives; the exit status."""
    wrong = 0
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:  # past pytest's capture

        def say(line: str) -> None:
            print(line, file=out, flush=True)

        for group in groups_of(parts):
            session = _Session(group, options, say)
            with contextlib.redirect_stdout(io.StringIO()) as said:
                _test(group[0], [session], options.files)
            if not session.is_tried:
                say(said.getvalue()[-2000:])
            wrong += session.wrong
    return 1 if wrong else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="a file below guestemu/")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each N-th mutant")
    parser.add_argument("--only", default="", metavar="FUNCTION", help="mutants of one function")
    parser.add_argument("--files", type=int, metavar="N", help="the first N files of tests only")
    parser.add_argument("--quick", action="store_true", help="functions only, tried once")
    parser.add_argument("--outside", action="store_true", help="only what is outside of functions")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="go on with what is kept there")
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - JUDGES.keys()
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: no judge; use one of {', '.join(JUDGES)}")
    return run(options.parts or list(JUDGES), options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
