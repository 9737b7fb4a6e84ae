# SPDX-License-Identifier: GPL-2.0-or-later
"""A real browser for the tests of report pages; what may be left out where CI=true."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import tomllib
import zlib
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import held
import pytest
from hypothesis import HealthCheck, settings

# How fast the machine is decides no test: a slow one draws its examples, too.
settings.register_profile(
    "any speed",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile("any speed")

# So is what the terminal can show that the suite was started from: tests that look at a plain one
# choose it.
os.environ["TERM"] = "xterm"


class Drawn(NamedTuple):
    """A page as the browser drew it: width in pixels, different pixels in its upper part, and the
    document after loading."""

    width: int
    colours: int
    document: str


def _chromium() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium")
    return found


def _pixels(png: bytes) -> tuple[int, int]:
    """Width and the number of different pixels of an 8-bit PNG whose rows may be filtered (colours
    are then those of the filtered rows, which is enough to tell a drawn page from a blank one)."""
    assert png.startswith(b"\x89PNG")
    position, data, width, depth = 8, b"", 0, 0
    while position < len(png):
        length, kind = struct.unpack_from(">I4s", png, position)
        body = png[position + 8 : position + 8 + length]
        if kind == b"IHDR":
            width, _, _, colour = struct.unpack_from(">IIBB", body)
            depth = {2: 3, 6: 4}[colour]
        elif kind == b"IDAT":
            data += body
        position += 12 + length
    raw = zlib.decompress(data)
    row = 1 + width * depth
    return width, len({raw[at : at + depth] for at in range(1, min(len(raw), row * 400), depth)})


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    held.kill_the_rest()


@pytest.fixture
def draw(tmp_path: Path) -> Callable[[str], Drawn]:
    """Draws a page in a window 1000 pixels wide."""

    def drawn(page: str) -> Drawn:
        source, shot = tmp_path / "drawn.html", tmp_path / "drawn.png"
        source.write_text(page, encoding="utf-8")
        command = [
            *(_chromium(), "--headless", "--no-sandbox", "--disable-gpu"),
            *("--window-size=1000,1600", f"--user-data-dir={tmp_path / 'profile'}"),
        ]
        subprocess.run(
            [*command, f"--screenshot={shot}", source.as_uri()],
            check=True,
            capture_output=True,
            timeout=held.DEADLINE_S,
        )
        dump = subprocess.run(
            [*command, "--dump-dom", source.as_uri()],
            check=True,
            capture_output=True,
            timeout=held.DEADLINE_S,
        )
        return Drawn(*_pixels(shot.read_bytes()), dump.stdout.decode())

    return drawn


# With CI=true nothing is skipped in silence: allowed_skips.toml lists what may be, and why.

_ALLOWED = Path(__file__).with_name("allowed_skips.toml")


def _is_allowed(nodeid: str, reason: str) -> bool:
    rows = tomllib.loads(_ALLOWED.read_text(encoding="utf-8"))["skip"]
    return any(fnmatch(nodeid, row["test"]) and row["says"] in reason for row in rows)


class _Skips:
    """Collects skips that no line allows; the run then fails. Sees the reports of all workers."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            if not _is_allowed(report.nodeid, reason):
                self.found.append(f"{report.nodeid}: {reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.found:
            terminalreporter.section("skipped, but not in tests/allowed_skips.toml", red=True)
            for line in sorted(set(self.found)):
                terminalreporter.line(line)


def _keep_bytecode() -> None:
    """The tests start hundreds of processes, and two workers import the same 800 modules. Where
    Python is told to leave no bytecode beside the sources, it goes below build/."""
    if sys.dont_write_bytecode:
        sys.dont_write_bytecode = False
        sys.pycache_prefix = str(Path(__file__).parents[1] / "build/bytecode")
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


_keep_bytecode()

_ENDS = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}


def pytest_configure(config: pytest.Config) -> None:
    # A shell without job control starts what it puts in the background with SIGINT ignored, nohup
    # with SIGHUP, and every child takes that over: no command under test could be ended.
    for number, handler in _ENDS.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    if os.environ.get("CI") == "true" and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Skips(), "skips")
