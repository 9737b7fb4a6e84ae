# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetches Debian's kernels with apt: it knows the mirror, checks signatures and continues a
download that broke off; `apt-get download` needs neither root nor installation.

The cloud flavour is small (13 to 50 MB) and has what the Linux guest needs:
CONFIG_AMD_MEM_ENCRYPT, CONFIG_KVM_GUEST, CONFIG_KALLSYMS_ALL, CONFIG_DEBUG_INFO_BTF. From 6.19 on
linux-image-* is empty and depends on linux-binary-*, which has the kernel, and on linux-base-*,
which has its configuration.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError, MissingError
from guestemu.guest.linux.image import KERNEL_NAMES, package_file
from guestemu.guest.linux.images import (
    DEFAULT_FLAVOUR,
    FLAVOURS,
    split_name,
    version_key,
)
from guestemu.kernel.sources import PrivateRoot, Runner, configured, locate, reason

SERIES: Final = ("6.1", "6.12")
"""Kernel series that the Linux guest is tested with."""
NEWEST: Final = "newest"
"""In place of a series: the newest that is offered."""
WANTED_BY_TESTS: Final = (*SERIES, NEWEST)
"""What `guestemu kernel fetch` gets by default."""

_NAME: Final = re.compile(
    r"linux-(?P<kind>image|binary)-(?P<major>\d+)\.(?P<minor>\d+)\.\S+?"
    r"(?:-(?P<flavour>cloud|rt))?-amd64"
)
_DEPENDENCY: Final = re.compile(r"\blinux-(binary|base)-\d[^\s,(]*-amd64")
_PARTS: Final = re.compile(r"linux-(base|modules)-\d\S*-amd64|linux-source-\d+\.\d+")
_PARTIAL: Final = "incoming"
_TIMEOUT_S: Final = 1800
_BLOCK: Final = 1 << 20


class Package(msgspec.Struct, frozen=True):
    """A kernel package that apt offers. `series` ("6.12") and `flavour` of the kernel in it, `size`
    in bytes, `sha256` in hexadecimal."""

    name: str
    version: str
    series: str
    flavour: str
    file: str
    size: int
    sha256: str

    @property
    def title(self) -> str:
        """What this kernel is called in this program: 6.12, 6.12-rt."""
        return self.series + ("" if self.flavour == DEFAULT_FLAVOUR else f"-{self.flavour}")


def run_command(
    command: list[str], directory: Path | None, seconds: int = _TIMEOUT_S, name: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs `command` with its output kept and no input.

    Raises `MissingError` if it does not end in `seconds`; the error has `name` or the first word.
    """
    try:
        return subprocess.run(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        error = f"{name or command[0]} did not end in {seconds} s; try again"
        raise MissingError(error) from None


def check_apt() -> None:
    """Raises `MissingError` on a machine without apt."""
    for program in ("apt-get", "apt-cache"):
        if shutil.which(program) is None:
            raise MissingError(
                f"no {program} on this machine; get a linux-image-*-cloud-amd64 package (6.19 and "
                "later: linux-binary-*) from Debian and pass --image PATH"
            )


class Archive:
    """The kernels of some suites. `directory` is where the private root lies.

    Raises `MissingError` where apt is missing, has no Debian source or cannot get the lists.
    """

    def __init__(
        self,
        directory: Path,
        suites: Iterable[str],
        say: Callable[[str], None],
        runner: Runner = run_command,
    ) -> None:
        check_apt()
        self._runner = runner
        self._root = PrivateRoot(directory, locate(suites, configured(runner)), runner)
        self._root.update(say)
        self._records = self._read()

    @property
    def suites(self) -> tuple[str, ...]:
        """The suites that are looked into."""
        return tuple(source.suite for source in self._root.sources)

    def _read(self) -> dict[str, Package]:
        """Every package with a kernel, and linux-base-*, linux-modules-* and linux-source-* of
        them, by name."""
        names = self._root.run("apt-cache", "pkgnames", "linux-").stdout.split()
        wanted = [name for name in names if _NAME.fullmatch(name) or _is_part(name)]
        if not wanted:
            return {}
        text = self._root.run("apt-cache", "show", "--no-all-versions", *sorted(wanted)).stdout
        packages: dict[str, Package] = {}
        for record in text.split("\n\n"):
            fields = dict(
                line.split(": ", 1)
                for line in record.splitlines()
                if ": " in line and not line.startswith(" ")
            )
            needs = {found[1] for found in _DEPENDENCY.finditer(fields.get("Depends", ""))}
            name = fields.get("Package", "")
            match = _NAME.fullmatch(name)
            if "Filename" not in fields or (match is None and not _is_part(name)):
                continue
            if match is not None and match["kind"] == "image" and "binary" in needs:
                continue
            packages[name] = Package(
                name=name,
                version=fields["Version"],
                series=f"{match['major']}.{match['minor']}" if match else "",
                flavour=(match["flavour"] or "amd64") if match else "",
                file=fields["Filename"].rpartition("/")[2],
                size=int(fields["Size"]),
                sha256=fields["SHA256"],
            )
        return packages

    def newest(self) -> tuple[Package, ...]:
        """The newest kernel of every series and flavour, in their order."""
        best: dict[tuple[str, str], Package] = {}
        for package in self._records.values():
            key = (package.series, package.flavour)
            old = best.get(key)
            if package.series and (
                old is None or version_key(old.version) < version_key(package.version)
            ):
                best[key] = package
        return tuple(
            sorted(
                best.values(),
                key=lambda found: (version_key(found.series), FLAVOURS.index(found.flavour)),
            )
        )

    def find(self, names: Iterable[str]) -> tuple[Package, ...]:
        """The newest kernel for each of `names`: a series, of the cloud flavour ("6.12") or another
        one ("6.12-rt"), or `NEWEST`.

        Raises `InputError` for what no suite has, with what there is.
        """
        offered = self.newest()
        by_title = {package.title: package for package in offered}
        usual = [package for package in offered if package.flavour == DEFAULT_FLAVOUR]
        found = []
        for name in names:
            series, flavour = split_name(name)
            package = by_title.get(
                f"{series}-{flavour}" if flavour not in {None, DEFAULT_FLAVOUR} else series
            )
            if name == NEWEST and usual:
                package = usual[-1]
            if package is None:
                there = ", ".join(package.title for package in usual) or "none"
                raise InputError(
                    f"kernel {name}: not in {', '.join(self.suites)}; there is {there} "
                    "(`guestemu kernel fetch --list` shows all); --suite NAME looks elsewhere"
                )
            found.append(package)
        return tuple(found)

    def fetch(self, package: Package, directory: Path, *, modules: bool = False) -> Path:
        """Downloads `package` into `directory` unless it is there; returns its path.

        A download that broke off stays in `directory`/incoming and is continued the next time. The
        package with the configuration comes along where it is one of its own, with `modules` the
        one with the modules. Raises `MissingError` with apt's own words where it fails, and where
        modules are asked for that the archive no longer has; `InputError` for a package without a
        kernel, which is not kept.
        """
        path = self._download(package, directory)
        if package_file(path, KERNEL_NAMES) is None:
            path.unlink()
            raise InputError(f"{package.name} {package.version} holds no kernel; it is not kept")
        for part in ("base", "modules") if modules else ("base",):
            name = package.name.replace("linux-binary-", f"linux-{part}-", 1)
            if name == package.name:
                continue
            other = self._records.get(name)
            if other is not None:
                self._download(other, directory)
            elif part == "modules":
                raise MissingError(
                    f"the archive no longer has {name}; the kernel is at {path}, and its modules "
                    "have to come from elsewhere (--modules DIR of `guestemu oracle`)"
                )
        return path

    def fetch_source(self, series: str, directory: Path) -> tuple[str, Path]:
        """Downloads Debian's source of `series` into `directory` unless it is there; returns its
        version and the path of the package. A download that broke off is continued. Raises
        `InputError` where no suite has it, `MissingError` with apt's own words where it fails."""
        package = self._records.get(f"linux-source-{series}")
        if package is None:
            raise InputError(
                f"the source of {series}: no linux-source-{series} in {', '.join(self.suites)}; "
                "--suite NAME looks elsewhere"
            )
        return package.version, self._download(package, directory)

    def _download(self, package: Package, directory: Path) -> Path:
        target = directory / package.file
        if is_complete(target, package):
            return target
        partial = directory / _PARTIAL
        partial.mkdir(parents=True, exist_ok=True)
        wanted = f"{package.name}={package.version}"
        result = self._runner(self._root.command("apt-get", "download", "-q", wanted), partial)
        arrived = next(
            (path for path in sorted(partial.glob("*.deb")) if is_complete(path, package)), None
        )
        if arrived is None:
            raise MissingError(
                f"cannot download {package.name}: {reason(result)}; try again, or pass --image PATH"
            )
        arrived.replace(target)
        return target


def _is_part(name: str) -> bool:
    return _PARTS.fullmatch(name) is not None


def is_complete(path: Path, package: Package) -> bool:
    """Whether `path` is the whole package, by its checksum."""
    if not path.is_file() or path.stat().st_size != package.size:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest() == package.sha256
