# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu doctor` looks at."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec

from guestemu.cli._cache import cached, root

_NEEDED: Final = (
    "bitarray",
    "capstone",
    "cryptography",
    "msgspec",
    "pyelftools",
    "rich",
    "typer",
    "unicorn",
)
_OPTIONAL: Final = {
    "atheris": "coverage-guided fuzzing: pip install 'guestemu[fuzz]' (Python below 3.14)",
    "hypothesis": "property-based fuzzing: pip install 'guestemu[fuzz]'",
    "pyarrow": "Parquet reports: pip install 'guestemu[analysis]'",
}
_TOOLS: Final = {
    ("as", "objcopy"): "rebuilding the snippet guests: install binutils",
    ("cc", "gcc", "clang"): "the C floor of the benchmarks: install gcc or clang",
}
_PARANOID: Final = Path("/proc/sys/kernel/perf_event_paranoid")


class MachineItem(msgspec.Struct, frozen=True):
    """One thing looked at: `state` is "ok", "optional" (not there and not needed) or "missing";
    `detail` is what there is, `remedy` how to get what is not."""

    name: str
    state: str
    detail: str
    remedy: str = ""


def examine() -> tuple[MachineItem, ...]:
    """Everything that matters on this machine, needed things first."""
    return (
        _python(),
        *(_package(name) for name in _NEEDED),
        _try("exception layout", _exception_layout),
        _try("guest code", _guest),
        _try("native code", _native_code),
        *(_optional_package(name, remedy) for name, remedy in _OPTIONAL.items()),
        *_tools(),
        _perf(),
        _cache(),
    )


def _python() -> MachineItem:
    detail = f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} CPUs"
    return MachineItem("python", "ok", detail)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _package(name: str) -> MachineItem:
    version = _version(name)
    if version is None:
        return MachineItem(name, "missing", "not installed", f"pip install {name}")
    return MachineItem(name, "ok", version)


def _optional_package(name: str, remedy: str) -> MachineItem:
    version = _version(name)
    if version is None:
        return MachineItem(name, "optional", "not installed", remedy)
    return MachineItem(name, "ok", version)


def _try(name: str, probe: Callable[[], MachineItem]) -> MachineItem:
    """What `probe` finds; anything it raises is something missing."""
    try:
        return probe()
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return MachineItem(name, "missing", text, "reinstall guestemu and unicorn 2.1.x")


def _exception_layout() -> MachineItem:
    from guestemu.machine.exceptions import exception_layout

    found = exception_layout()
    detail = f"found in libunicorn (context bytes {found.old_exception} and {found.error_code})"
    return MachineItem("exception layout", "ok", detail)


def _guest() -> MachineItem:
    """Boots the default guest and converts a page."""
    from guestemu.program.ops import Op, OpKind
    from guestemu.program.program import Program
    from guestemu.report.trace.run import run_program
    from guestemu.report.trace.words import OK, run_word

    run = run_program(Program(ops=(Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0)),)))
    word = run_word(run)
    if word != OK or len(run.outcome.results[0].exits) != 1:
        raise RuntimeError(f"the test program ended in {word}")
    return MachineItem("guest code", "ok", f"{run.program.header.guest} converts a page")


def _native_code() -> MachineItem:
    from guestemu import native

    why = native.why_not()
    if not why:
        return MachineItem("native code", "ok", "hooks, fast path and mutator run as machine code")
    return MachineItem("native code", "optional", f"{why}; {native.COST}", native.REMEDY)


def _tools() -> Iterator[MachineItem]:
    binutils, compilers = _TOOLS
    missing = [name for name in binutils if shutil.which(name) is None]
    if missing:
        detail = f"no {' and no '.join(missing)}"
        yield MachineItem("binutils", "optional", detail, _TOOLS[binutils])
    else:
        yield MachineItem("binutils", "ok", ", ".join(str(shutil.which(name)) for name in binutils))
    found = next((path for name in compilers if (path := shutil.which(name))), None)
    if found is None:
        yield MachineItem("C compiler", "optional", "none", _TOOLS[compilers])
    else:
        yield MachineItem("C compiler", "ok", found)


def _cache() -> MachineItem:
    entries = cached()
    size = sum(entry.bytes for entry in entries) / 2**20
    detail = f"{size:,.0f} MiB in {root()}"
    return MachineItem("cache", "ok", detail, "guestemu cache shows it" if entries else "")


def _perf() -> MachineItem:
    release = platform.release()
    try:
        level = int(_PARANOID.read_text())
    except (OSError, ValueError):
        return MachineItem("kernel perf", "optional", f"Linux {release} without perf events")
    detail = f"Linux {release}, perf_event_paranoid {level}"
    if level > 1:
        remedy = "profiling with perf: sysctl kernel.perf_event_paranoid=1"
        return MachineItem("kernel perf", "optional", detail, remedy)
    return MachineItem("kernel perf", "ok", detail)
