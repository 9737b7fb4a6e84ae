# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetches Debian's cloud kernels with the machine's own apt.

apt knows the mirror, checks signatures and continues a download that broke off; `apt-get download`
needs neither root nor installation. The cloud flavour is small (about 30 MB) and has what the Linux
guest needs: CONFIG_AMD_MEM_ENCRYPT, CONFIG_KVM_GUEST, CONFIG_KALLSYMS_ALL, CONFIG_DEBUG_INFO_BTF.
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
from guestemu.guest.linux.images import version_key

SERIES: Final = ("6.1", "6.12")
"""Kernel series that the Linux guest is tested with."""

_NAME: Final = re.compile(r"linux-image-(\d+)\.(\d+)\.\S+-cloud-amd64")
_PARTIAL: Final = "incoming"
_TIMEOUT_S: Final = 1800
_BLOCK: Final = 1 << 20

Runner = Callable[[list[str], Path | None], "subprocess.CompletedProcess[str]"]
"""Runs a command in a directory and returns its status and its output as text."""


class Package(msgspec.Struct, frozen=True):
    """A kernel package that apt offers. `size` in bytes, `sha256` in hexadecimal."""

    name: str
    version: str
    series: str
    file: str
    size: int
    sha256: str


def run_command(command: list[str], directory: Path | None) -> subprocess.CompletedProcess[str]:
    """Runs `command` with its output kept. Raises `MissingError` if it hangs."""
    try:
        return subprocess.run(
            command,
            cwd=directory,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MissingError(f"{command[0]} did not end in {_TIMEOUT_S} s; try again") from None


def check_apt() -> None:
    """Raises `MissingError` on a machine without apt."""
    for program in ("apt-get", "apt-cache"):
        if shutil.which(program) is None:
            raise MissingError(
                f"no {program} on this machine; get a linux-image-*-cloud-amd64 package from "
                "Debian and pass --image PATH"
            )


def offered(series: Iterable[str], runner: Runner = run_command) -> tuple[Package, ...]:
    """The newest cloud kernel of each series that apt's lists have.

    Raises `MissingError` where there are no lists, `InputError` for a series without a kernel.
    """
    names = runner(["apt-cache", "pkgnames", "linux-image-"], None).stdout.split()
    if not names:
        raise MissingError("apt knows no kernel packages; run `apt-get update` as root first")
    known = sorted({f"{match[1]}.{match[2]}" for name in names if (match := _NAME.fullmatch(name))})
    packages = []
    for wanted in series:
        mine = [
            name
            for name in names
            if (match := _NAME.fullmatch(name)) and f"{match[1]}.{match[2]}" == wanted
        ]
        if not mine:
            raise InputError(
                f"series {wanted}: apt offers no linux-image-*-cloud-amd64 of it; "
                f"there is {', '.join(known) or 'none'}"
            )
        found = _describe(mine, wanted, runner)
        if not found:
            raise MissingError(
                f"apt cannot download a cloud kernel {wanted}; run `apt-get update` as root"
            )
        packages.append(max(found, key=lambda package: version_key(package.version)))
    return tuple(packages)


def _describe(names: list[str], series: str, runner: Runner) -> list[Package]:
    """What apt's lists say about packages; one that is only installed has no file and is left
    out."""
    text = runner(["apt-cache", "show", "--no-all-versions", *names], None).stdout
    packages = []
    for record in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1)
            for line in record.splitlines()
            if ": " in line and not line.startswith(" ")
        )
        if "Filename" in fields and fields.get("Architecture", "amd64") == "amd64":
            packages.append(
                Package(
                    name=fields["Package"],
                    version=fields["Version"],
                    series=series,
                    file=fields["Filename"].rpartition("/")[2],
                    size=int(fields["Size"]),
                    sha256=fields["SHA256"],
                )
            )
    return packages


def is_complete(path: Path, package: Package) -> bool:
    """Whether `path` is the whole package, by its checksum."""
    if not path.is_file() or path.stat().st_size != package.size:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest() == package.sha256


def fetch(package: Package, directory: Path, runner: Runner = run_command) -> Path:
    """Downloads `package` into `directory` unless it is there; returns its path.

    A download that broke off stays in `directory`/incoming and is continued the next time. Raises
    `MissingError` with apt's own words where it fails.
    """
    target = directory / package.file
    if is_complete(target, package):
        return target
    partial = directory / _PARTIAL
    partial.mkdir(parents=True, exist_ok=True)
    command = [
        *("apt-get", "download", "-q", "-o", "APT::Sandbox::User=root"),
        f"{package.name}={package.version}",
    ]
    result = runner(command, partial)
    arrived = next(
        (path for path in sorted(partial.glob("*.deb")) if is_complete(path, package)), None
    )
    if arrived is None:
        raise MissingError(
            f"cannot download {package.name}: {_reason(result)}; "
            "run `apt-get update` as root and try again, or pass --image PATH"
        )
    arrived.replace(target)
    return target


def _reason(result: subprocess.CompletedProcess[str]) -> str:
    """The first error that apt reported, or its status."""
    for line in result.stderr.splitlines():
        if line.startswith(("E:", "Err")):
            return line.removeprefix("E:").strip()
    return f"apt-get ended with status {result.returncode}"
