# SPDX-License-Identifier: GPL-2.0-or-later
"""A private root for apt: lists of suites that this machine's own configuration does not name.

A stock Debian lists the kernels of its own release. Other suites lie on the same servers. So the
addresses come from what the machine has configured, and lists, archives and state lie below this
program's cache: nothing on the system is read-locked, written or refreshed, and no root is needed.
Signatures are checked with the system's Debian keyring.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError, MissingError

KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITES: Final = ("bullseye-security", "bookworm-security", "trixie-security", "trixie-backports")
"""Where Debian keeps kernels of several series: 5.10, 6.1, 6.12, and what came after."""
BACKPORTS: Final = "trixie-backports"
"""The suite that follows the newest kernels."""

_FRESH_S: Final = 3600
_SECURITY: Final = re.compile(r"[a-z]+(-security|/updates)")
_MAIN: Final = re.compile(
    r"(stable|oldstable|oldoldstable|testing|unstable|sid|buster|bullseye|bookworm|trixie|forky|duke)"
    r"(-updates|-backports|-proposed-updates)?"
)
_SUITE: Final = re.compile(r"[a-z][a-z0-9]*([-/][a-z-]+)?")
_PLAIN_PATH: Final = re.compile(r'[^"\\\n]+')
_SCHEMES: Final = ("http://", "https://", "ftp://", "file:", "mirror", "tor+", "copy:")
_SETTINGS: Final = """\
#clear APT::Update;
#clear APT::Architectures;
#clear DPkg;
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "root";
Acquire::Languages "none";
Dir::State "{root}/state";
Dir::State::status "{root}/state/status";
Dir::Cache "{root}/cache";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
"""
"""The machine's proxies and credentials stay in force; its hooks after an update do not run."""

Runner = Callable[[list[str], Path | None], "subprocess.CompletedProcess[str]"]
"""Runs a command in a directory and returns its status and its output as text."""


class ImageSource(msgspec.Struct, frozen=True):
    """One suite at one address, as in a line of sources.list."""

    address: str
    suite: str


def configured(runner: Runner) -> tuple[ImageSource, ...]:
    """The suites that this machine's own apt is configured for, in their order."""
    form = "$(REPO_URI)|$(RELEASE)"
    command = ["apt-get", "indextargets", "--no-release-info", "--format", form]
    found: dict[ImageSource, None] = {}
    for line in runner([*command, "Created-By: Packages"], None).stdout.splitlines():
        address, bar, suite = line.partition("|")
        if bar and address.startswith(_SCHEMES):
            found[ImageSource(address.rstrip("/"), suite)] = None
    return tuple(found)


def locate(suites: Iterable[str], known: tuple[ImageSource, ...]) -> tuple[ImageSource, ...]:
    """Where each of `suites` is, by what the machine has configured (`known`).

    A suite that is configured is taken as it is. Another one lies where its sort does: security
    updates have their own archive. Raises `InputError` for what cannot be the name of a suite,
    `MissingError` where the machine has no Debian source.
    """
    own = {source.suite: source for source in reversed(known)}
    security = [source.address for source in known if _SECURITY.fullmatch(source.suite)]
    main = [source.address for source in known if _MAIN.fullmatch(source.suite)]
    found = []
    for suite in suites:
        if not _SUITE.fullmatch(suite):
            raise InputError(f"--suite {suite}: not the name of a suite; for example {BACKPORTS}")
        addresses = security if _SECURITY.fullmatch(suite) else main
        if suite in own:
            found.append(own[suite])
        elif addresses:
            found.append(ImageSource(addresses[0], suite))
    if not found:
        raise MissingError(
            "this machine's apt has no Debian source; get a linux-image-* (6.19 and later: "
            "linux-binary-*) package from Debian and pass --image PATH"
        )
    return tuple(found)


class PrivateRoot:
    """An apt of its own below `directory`, for `sources`."""

    def __init__(self, directory: Path, sources: tuple[ImageSource, ...], runner: Runner) -> None:
        self.sources = sources
        self._directory = directory
        self._runner = runner
        self._settings = directory / "apt.conf"
        self._stamp = directory / "updated"

    def command(self, program: str, *arguments: str) -> list[str]:
        """`program` (apt-get, apt-cache) working on this root."""
        return [program, f"--config-file={self._settings}", *arguments]

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs `command`."""
        return self._runner(self.command(program, *arguments), None)

    def update(self, say: Callable[[str], None]) -> None:
        """Gets the lists unless the ones that are here are an hour old at most and of the same
        sources.

        `say` is told that lists are fetched, and where that failed although older ones are here.
        Raises `MissingError` with apt's words where there are none.
        """
        root = self._directory
        if not _PLAIN_PATH.fullmatch(str(root)):
            raise MissingError(f"{root}: apt cannot take this path; set XDG_CACHE_HOME to another")
        text = "".join(self._line(source) for source in self.sources)
        listing = root / "sources.list"
        is_same = listing.exists() and listing.read_text() == text
        age = time.time() - self._stamp.stat().st_mtime if self._stamp.exists() else _FRESH_S
        if is_same and 0 <= age < _FRESH_S:
            return
        for part in ("state/lists/partial", "cache/archives/partial"):
            (root / part).mkdir(parents=True, exist_ok=True)
        (root / "state" / "status").touch()
        self._settings.write_text(_SETTINGS.format(root=root))
        listing.write_text(text)
        names = ", ".join(source.suite for source in self.sources)
        say(f"lists of {names}")
        result = self.run("apt-get", "update", "-q")
        if result.returncode == 0:
            self._stamp.touch()
        elif not any((root / "state" / "lists").glob("*_Packages*")):
            listing.unlink()
            raise MissingError(f"cannot get the lists of {names}: {reason(result)}")
        else:
            say(f"not all lists could be got: {reason(result)}")

    @staticmethod
    def _line(source: ImageSource) -> str:
        option = f" [signed-by={KEYRING}]" if KEYRING.exists() else ""
        return f"deb{option} {source.address} {source.suite} main\n"


def reason(result: subprocess.CompletedProcess[str]) -> str:
    """The first error that apt reported, or its status."""
    for line in (*result.stderr.splitlines(), *result.stdout.splitlines()):
        if line.startswith(("E:", "W:", "Err")):
            return line.removeprefix("E:").removeprefix("W:").strip()
    return f"apt ended with status {result.returncode}"
