# SPDX-License-Identifier: GPL-2.0-or-later
"""Libraries of machine code are built from C, never stale, and never needed."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from held import DEADLINE_S

from guestemu import native
from guestemu.machine import assemble
from guestemu.native import build
from guestemu.native.__main__ import main
from guestemu.native.build import BuildError

ROOT = Path(native.__file__).parents[2]
STRICT = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter")

needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="no C compiler")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with nothing but the sources of the libraries, where they are built."""
    package = tmp_path / "guestemu"
    for library in build.LIBRARIES:
        directory = package / library.directory
        directory.mkdir(parents=True)
        for name in library.headers + library.units:
            shutil.copy(build.PACKAGE / library.directory / name, directory)
    (package / "native").mkdir()
    monkeypatch.setattr(build, "PACKAGE", package)
    monkeypatch.setattr(build, "DIRECTORY", package / "native")
    return package


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch):
    """Forgets what was loaded, before and after."""
    native._prepare.cache_clear()
    native._load.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    native._prepare.cache_clear()
    native._load.cache_clear()


def built(package: Path) -> set[Path]:
    """What was compiled: libraries, and programs for a guest."""
    files = (package / "native").iterdir()
    return {path for path in files if path.suffix in {".so", ".guest"}}


def without_compilers(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(build, "ZIG", "no_such_package")


@needs_compiler
@pytest.mark.parametrize("library", build.LIBRARIES, ids=lambda library: library.name)
def test_the_sources_compile_without_a_warning(library, tmp_path) -> None:
    made = tmp_path / "made.so"
    build.compile_library(library, made, STRICT)
    if library.runs_in_guest:
        assert made.read_bytes().startswith(b"\x7fELF")
        return
    assert ctypes.PyDLL(str(made))


@needs_compiler
def test_a_change_of_the_sources_is_another_library(tree: Path, capsys) -> None:
    assert main() == 0
    before = {library.path for library in build.LIBRARIES}
    assert built(tree) == before
    assert main() == 0
    assert capsys.readouterr().out.endswith("up to date\n")
    with (tree / "campaign/fastpath/fast.h").open("a") as header:
        header.write("/* more */\n")
    assert [library.name for library in build.missing()] == ["fastpath"]
    assert main() == 0
    after = built(tree)
    assert len(before & after) == len(build.LIBRARIES) - 1
    assert after == {library.path for library in build.LIBRARIES}


def test_without_a_compiler_it_says_what_to_do(tree: Path, tmp_path, monkeypatch, capsys) -> None:
    without_compilers(monkeypatch, tmp_path)
    assert main() == 3
    said = capsys.readouterr().err
    assert "no C compiler" in said
    assert "install a C compiler" in said
    assert not built(tree)


@needs_compiler
def test_a_compiler_that_does_not_work_is_passed_over(tmp_path, monkeypatch) -> None:
    works = build.find_compiler()
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert build.find_compiler() == works


@needs_compiler
def test_what_the_compiler_says_is_passed_on(tree: Path) -> None:
    (tree / "machine/native/hooks.c").write_text("#error nonsense\n")
    with pytest.raises(BuildError, match=r"refuses machine/native: (.|\n)*nonsense"):
        build.build_missing()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_package_that_cannot_be_written_is_named(tree: Path) -> None:
    (tree / "native").chmod(0o555)
    with pytest.raises(BuildError, match="native"):
        build.build_missing()


@needs_compiler
def test_a_checkout_builds_a_missing_library_by_itself(tree: Path, fresh) -> None:
    fresh.setattr(native, "_is_checkout", lambda: True)
    assert native.why_not() == ""
    assert not build.missing()


def test_an_installation_without_libraries_says_why(tree: Path, fresh) -> None:
    assert native.load(build.HOOKS) is None
    assert "not built when guestemu was installed" in native.why_not()


def test_a_library_that_cannot_be_loaded_is_not_used(tree: Path, fresh) -> None:
    for library in build.LIBRARIES:
        library.path.write_bytes(bytes(4096))
    assert native.load(build.FASTPATH) is None
    assert "ELF" in native.why_not()


def guestemu(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "guestemu", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_switched_off_everything_runs_in_python_and_says_so(tmp_path: Path) -> None:
    done = guestemu("doctor", "--json", GUESTEMU_NATIVE="off")
    (found,) = (row for row in json.loads(done.stdout)["checks"] if row["name"] == "native code")
    assert found["state"] == "optional"
    assert found["detail"].startswith("GUESTEMU_NATIVE=off; Python runs in place of machine code")
    work = str(tmp_path / "work")
    fuzz = ("fuzz", "hypercall", "--execs", "50", "--workdir", work, "--json")
    done = guestemu(*fuzz, GUESTEMU_NATIVE="off")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["coverage"]["guest_blocks"] > 0
    first, second, *_ = done.stderr.splitlines()
    assert first.startswith("no fast path: ")
    assert "hypercall programs take 12 times the time" in second
    page = tmp_path / "page.html"
    assert guestemu("report", work, "-o", str(page)).returncode == 0
    assert "Python (no fast path: " in page.read_text()


@needs_compiler
def test_a_campaign_says_why_it_has_no_fast_path(tmp_path: Path) -> None:
    done = guestemu("fuzz", "sync", "--execs", "20", "--workdir", str(tmp_path / "work"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("no fast path: ")
    assert "Python runs in place" not in done.stderr


def test_committed_machine_code_is_code_of_guests() -> None:
    """Every ELF file is made by `make snippets` and runs on an emulated CPU."""
    made = {source.output.relative_to(build.PACKAGE) for source in assemble.SOURCES}
    for directory in ("campaign/planted/snippets", "study/ledger/snippets"):
        made |= {
            path.relative_to(build.PACKAGE) for path in (build.PACKAGE / directory).glob("*.elf")
        }
    files = {path.relative_to(build.PACKAGE) for path in build.PACKAGE.rglob("*.elf")}
    assert files == made


def build_wheel(tmp_path: Path, **environment: str) -> Path:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(
        ".venv", ".git", "build", "__pycache__", "*.so", "*.guest", ".*_cache"
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", tmp_path, source],
        env=os.environ | environment,
        check=True,
        timeout=540,
    )
    (wheel,) = tmp_path.glob("guestemu-*.whl")
    return wheel


def run_wheel(wheel: Path, tmp_path: Path, command: str) -> str:
    """Runs Python code on what the wheel holds, with this environment's other packages."""
    place = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(place)
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S,
    )
    return done.stdout


SAYS = "import guestemu.native as n; print(n.__file__, repr(n.why_not()))"


@pytest.mark.soak
@needs_compiler
def test_a_wheel_has_the_libraries_and_runs_them(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    assert wheel.name.split("-", 2)[2].startswith("py3-none-linux")
    said = run_wheel(wheel, tmp_path, SAYS)
    assert said == f"{tmp_path}/installed/guestemu/native/__init__.py ''\n"


@pytest.mark.soak
def test_a_wheel_without_machine_code_is_for_every_platform(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, GUESTEMU_NATIVE="off")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "not built when guestemu was installed" in run_wheel(wheel, tmp_path, SAYS)


@pytest.mark.soak
def test_without_a_compiler_the_installation_downloads_one(tmp_path: Path) -> None:
    """Needs the network: 101 MB."""
    wheel = build_wheel(tmp_path, PATH=str(tmp_path), CC="")
    assert run_wheel(wheel, tmp_path, SAYS).endswith(" ''\n")
