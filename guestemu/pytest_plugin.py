# SPDX-License-Identifier: GPL-2.0-or-later
"""pytest collects `*.prog` files: each is a test that passes if the run is as its file expects.

Installed with guestemu (entry point `pytest11`). It does nothing, and imports nothing of guestemu,
in a project without such files. `guestemu_programs = false` in the pytest configuration, or
`-p no:guestemu`, leaves them alone, and so are the programs in a campaign's work directory, which
expect what is wrong. Programs of one header in a row run in one testbed.

A program may name code as its host (FILE.py:CLASS). It runs only from the directories that
`guestemu_plugins` in the pytest configuration names, or `plugins` under [tool.guestemu] in the
project's pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from guestemu.replay.suite import Bench

_SUFFIX = ".prog"
_OPTION = "guestemu_programs"
_PLUGINS = "guestemu_plugins"
_CAMPAIGN = "campaign.json"
_BENCH: pytest.StashKey[Bench] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The switch."""
    parser.addini(_OPTION, "collect *.prog files as tests", type="bool", default=True)
    parser.addini(_PLUGINS, "directories of hosts that programs may name", type="paths")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """A program file is a collector with one test."""
    if file_path.suffix != _SUFFIX or not parent.config.getini(_OPTION):
        return None
    if (file_path.parents[1] / _CAMPAIGN).exists():
        return None
    from guestemu.parts import load_parts

    load_parts()
    collector: ProgramFile = ProgramFile.from_parent(parent, path=file_path)
    return collector


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Gives the last testbed up."""
    bench = session.config.stash.get(_BENCH, None)
    if bench is not None:
        bench.close()


class ProgramFile(pytest.File):
    """One program file."""

    def collect(self) -> Iterator[pytest.Item]:
        """Its one test."""
        yield ProgramItem.from_parent(self, name=self.path.stem)


class ProgramFailedError(Exception):
    """The run was not as expected; the text says how."""


class ProgramItem(pytest.Item):
    """Runs a program and compares the outcome."""

    def runtest(self) -> None:
        """Raises `ProgramFailedError` with every expectation that does not hold."""
        from guestemu.abi.text import visible
        from guestemu.host.permission import permissions
        from guestemu.replay.suite import Bench, replay_file

        stash = self.config.stash
        if _BENCH not in stash:
            stash[_BENCH] = Bench()
        allowed = permissions(self.config.getini(_PLUGINS), self.config.rootpath)
        result = replay_file(self.path, bench=stash[_BENCH], permissions=allowed)
        lines = [] if result.bad is None else [result.bad]
        for mismatch in result.mismatches:
            lines += [f"expected: {mismatch.expectation}", f"found:    {mismatch.found}"]
        lines = [visible(line) for line in lines]
        if lines:
            raise ProgramFailedError("\n".join([*lines, f"see: guestemu show {self.path}"]))

    def repr_failure(
        self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None
    ) -> str:
        """Only the words for a program that failed, everything for anything else."""
        if isinstance(excinfo.value, ProgramFailedError):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """What reports call it."""
        return self.path, None, f"program {self.name}"
