# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds kvm.ko and kvm-amd.ko of a distribution's kernel anew, with software-protected VMs or with
a patch, so that they load into the package's own kernel.

Debian's packages give all of it: the source, the headers with the kernel's configuration, and the
release's own compiler and libraries. They are fetched by apt into a private root and unpacked into
a directory of this program's cache, which the build has for its root directory: in namespaces of
its own (unshare), without network, and without a right on this machine that the user does not have.
The modules are only ever loaded inside QEMU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError, MissingError
from guestemu.guest.linux.images import FetchedImage, cache_root, fetched_images, find_image
from guestemu.kernel.apt import check_apt, run_command
from guestemu.kernel.sources import PrivateRoot, Runner, configured, locate, reason
from guestemu.oracle.harness_build import SOURCES

PROTECTED: Final = ("CONFIG_KVM_SW_PROTECTED_VM", "CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES")
_PRIVATE_MEM: Final = "CONFIG_KVM_GENERIC_PRIVATE_MEM"
_FIRST_PROTECTED: Final = (6, 8)
_LAST_PRIVATE_MEM: Final = (6, 16)
_TOOLS: Final = (
    *("make", "binutils", "base-files", "bash", "dash", "coreutils", "sed", "grep", "findutils"),
    *("mawk", "perl-base", "tar", "xz-utils", "patch", "gzip", "diffutils"),
)
_COMPILERS: Final = {"bullseye": "gcc-10", "bookworm": "gcc-12", "trixie": "gcc-14"}
_SUITES: Final = {"11": "bullseye", "12": "bookworm", "13": "trixie"}
_BY_SERIES: Final = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie"}
_RELEASE: Final = re.compile(r"linux-(?:image|binary)-(?P<release>[^_]+)_")
_SUITE: Final = re.compile(r"(?:deb|bpo)(\d\d)")
_PARTS: Final = ("arch/x86/kvm", "virt/kvm")
_MODULES: Final = ("kvm", "kvm-amd")
_KCOV: Final = "guestemu_kcov"
_KCOV_SOURCE: Final = SOURCES / "kcov.c"
_KCOV_FLAG: Final = "-fsanitize-coverage=trace-pc"
_KCOV_ANCHOR: Final = b'\tkvm_debugfs_dir = debugfs_create_dir("kvm", NULL);\n'
"""In virt/kvm/kvm_main.c, where KVM makes its own files of debugfs."""
_BUILD_S: Final = 7200
_KEPT: Final = "build"
_PRISTINE: Final = "pristine"
_ENTER: Final = """\
mount --rbind /proc proc && mount --bind /dev/null dev/null && exec chroot . "$@"
"""


class BuiltModules(msgspec.Struct, frozen=True, kw_only=True):
    """Modules that were built for the kernel of package `kernel`."""

    kernel: str
    directory: str
    options: tuple[str, ...]
    patch: str = ""


class ModuleBuilder:
    """Builds for the fetched kernel that `name` means. `say` is called with each stage.

    Raises `InputError` for a kernel that is not a fetched package, `MissingError` for what this
    machine lacks, with apt's or the compiler's words.
    """

    def __init__(self, name: str, say: Callable[[str], None], runner: Runner = run_command) -> None:
        self._image = _fetched(name)
        self._say = say
        self._runner = runner
        found = _RELEASE.match(self._image.path.name)
        self._release = found["release"] if found else ""
        self._suite = suite_of(self._release, self._image.series)
        version = re.sub(r"[^\w.+-]", "-", self._image.version)
        self._root = cache_root() / "oracle" / "modules" / f"{self._release}_{version}"

    @property
    def packages(self) -> tuple[str, ...]:
        """What is fetched, with its dependencies."""
        version = self._image.version
        own = (f"linux-headers-{self._release}", f"linux-source-{self._image.series}")
        pinned = tuple(f"{name}={version}" for name in own)
        return (*pinned, _COMPILERS[self._suite], *_TOOLS)

    def build(
        self,
        output: Path,
        *,
        options: Sequence[str] = (),
        patch: Path | None = None,
        has_coverage: bool = False,
        jobs: int = 2,
    ) -> BuiltModules:
        """Puts kvm.ko and kvm-amd.ko into `output`. `options` are symbols of the configuration that
        are set, `patch` changes files below arch/x86/kvm or virt/kvm (as `patch -p1` reads it);
        with `has_coverage` they tell which of their code was reached (harness/kcov.c)."""
        change = None if patch is None else _read_patch(patch)
        if not (self._root / _PRISTINE).is_dir():
            self._prepare()
        self._lay_out_sources(change, patch, has_coverage)
        self._make(options, (_KCOV_FLAG,) if has_coverage else (), jobs)
        try:
            output.mkdir(parents=True, exist_ok=True)
            for module in _MODULES:
                built = self._root / _KEPT / _PARTS[0] / f"{module}.stripped"
                shutil.copyfile(built, output / f"{module}.ko")
        except OSError as error:
            raise InputError(f"{output}: {error.strerror}; name a directory") from None
        return BuiltModules(
            kernel=self._image.path.name,
            directory=str(output),
            options=tuple(options),
            patch="" if patch is None else str(patch),
        )

    # The build's root directory ---------------------------------------------------------------

    def _prepare(self) -> None:
        check_apt()
        for program in ("dpkg-deb", "unshare"):
            if shutil.which(program) is None:
                raise MissingError(f"no {program} on this machine; install dpkg and util-linux")
        archives = self._fetch()
        self._root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._root.parent, prefix=".unpack-") as scratch:
            made = Path(scratch, "root")
            made.mkdir()
            self._say(f"unpacking {len(archives)} packages")
            for archive in sorted(archives, key=lambda path: "base-files" not in path.name):
                self._done(["dpkg-deb", "-x", str(archive), str(made)], archive.name)
            self._finish_root(made)
            shutil.rmtree(self._root, ignore_errors=True)
            made.rename(self._root)

    def _fetch(self) -> list[Path]:
        suites = (self._suite, f"{self._suite}-security", f"{self._suite}-backports")
        directory = cache_root() / "oracle" / f"apt-{self._suite}"
        private = PrivateRoot(directory, locate(suites, configured(self._runner)), self._runner)
        private.update(self._say)
        archives = directory / "cache" / "archives"
        for old in archives.glob("*.deb"):
            old.unlink()
        self._say(f"fetching {self.packages[0]}, the source and {self.packages[2]}")
        words = ["install", "--no-install-recommends", "--download-only", "-y", "-q"]
        result = private.run("apt-get", *words, *self.packages)
        if result.returncode:
            raise MissingError(
                f"cannot fetch what builds {self._release}: {reason(result)}; a kernel that the "
                "archive no longer has cannot be rebuilt, `guestemu kernel fetch` gets the newest"
            )
        return sorted(archives.glob("*.deb"))

    def _finish_root(self, root: Path) -> None:
        for place in ("dev", "proc", "tmp", _KEPT, _PRISTINE):
            (root / place).mkdir(exist_ok=True)
        (root / "dev" / "null").touch()
        awk = root / "usr" / "bin" / "awk"
        if not awk.is_symlink():
            awk.symlink_to("mawk")
        source = root / "usr" / "src" / f"linux-source-{self._image.series}.tar.xz"
        self._say(f"unpacking {source.name}")
        top = f"linux-source-{self._image.series}"
        command = ["tar", "-xJf", str(source), "-C", str(root / _PRISTINE), "--strip-components=1"]
        self._done([*command, *(f"{top}/{part}" for part in _PARTS)], source.name)
        source.unlink()
        (common,) = (root / "usr" / "src").glob("linux-headers-*-common*")
        for part in _PARTS:
            # KVM's Makefiles read their own sources through $(srctree), where headers have none.
            shutil.copytree(root / _PRISTINE / part, common / part, dirs_exist_ok=True)

    def _done(self, command: list[str], what: str) -> None:
        result = self._runner(command, None)
        if result.returncode:
            words = (result.stderr.strip().splitlines() or [f"status {result.returncode}"])[-1]
            raise MissingError(f"{what} cannot be unpacked: {words}")

    # A build ----------------------------------------------------------------------------------

    def _lay_out_sources(
        self, change: bytes | None, patch: Path | None, has_coverage: bool
    ) -> None:
        """Has the sources, patched, in the directory of the build; a file that is as it was keeps
        its time, so that only what changed is compiled again."""
        with tempfile.TemporaryDirectory(dir=self._root, prefix="sources-") as scratch:
            for part in _PARTS:
                shutil.copytree(self._root / _PRISTINE / part, Path(scratch, part))
            if change is not None:
                Path(scratch, "change.patch").write_bytes(change)
                inside = f"/{Path(scratch).name}"
                words = ("patch", "-p1", "--batch", "-d", inside, "-i", f"{inside}/change.patch")
                result = self._inside(list(words))
                if result.returncode:
                    said = (result.stdout + result.stderr).strip().splitlines() or ["no word"]
                    raise InputError(f"--patch {patch}: does not apply: {said[-1]}")
            if has_coverage:
                self._add_coverage(Path(scratch))
            for part in _PARTS:
                for path in Path(scratch, part).rglob("*"):
                    target = self._root / _KEPT / path.relative_to(scratch)
                    if path.is_dir():
                        continue
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if not target.is_file() or target.read_bytes() != path.read_bytes():
                        target.write_bytes(path.read_bytes())

    def _add_coverage(self, sources: Path) -> None:
        """Makes harness/kcov.c a part of kvm.ko, which starts it with its own files of debugfs."""
        kvm, virt = (sources / part for part in _PARTS)
        shutil.copyfile(_KCOV_SOURCE, kvm / f"{_KCOV}.c")
        with (kvm / "Makefile").open("a") as stream:
            stream.write(f"\nkvm-y += {_KCOV}.o\nCFLAGS_REMOVE_{_KCOV}.o := {_KCOV_FLAG}\n")
        main = virt / "kvm_main.c"
        text = main.read_bytes()
        if text.count(_KCOV_ANCHOR) != 1:
            raise MissingError(f"{self._release}: coverage is not known to fit into kvm_main.c")
        start = b"\tguestemu_kcov_init();\n"
        text = text.replace(_KCOV_ANCHOR, _KCOV_ANCHOR + start)
        main.write_bytes(b"extern void guestemu_kcov_init(void);\n" + text)

    def _make(self, options: Sequence[str], flags: Sequence[str], jobs: int) -> None:
        self._say("compiling kvm.ko and kvm-amd.ko")
        place = f"/{_KEPT}/{_PARTS[0]}"
        words = [
            *("make", "-C", f"/usr/src/linux-headers-{self._release}", f"M={place}", f"-j{jobs}"),
            *("CONFIG_KVM_INTEL=n", "CONFIG_DEBUG_INFO_BTF_MODULES="),
            *(f"{option}=y" for option in options),
            "KCFLAGS=" + " ".join((*(f"-D{option}=1" for option in options), *flags)),
            "modules",
        ]
        result = self._inside(words)
        if result.returncode:
            raise MissingError(f"the modules of {self._release} do not build: {_error(result)}")
        for module in _MODULES:
            files = (f"{place}/{module}.stripped", f"{place}/{module}.ko")
            stripped = self._inside(["strip", "-g", "-o", *files])
            if stripped.returncode:
                raise MissingError(f"no {module}.ko was built: {_error(stripped)}")

    def _inside(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Runs `command` with the unpacked packages for its root directory, without network."""
        words = [
            *("unshare", "--user", "--map-root-user", "--mount", "--net", "sh", "-c", _ENTER, "sh"),
            *("/usr/bin/env", "-i", "PATH=/usr/bin:/bin", "HOME=/", "LC_ALL=C", *command),
        ]
        return run_command(words, self._root, _BUILD_S, name=command[0])


def options_for(series: str) -> tuple[str, ...]:
    """What turns software-protected VMs on in `series`. Raises `InputError` before 6.8."""
    major, minor = (int(part) for part in series.split("."))
    if (major, minor) < _FIRST_PROTECTED:
        raise InputError(
            f"kernel {series} has no software-protected VMs (6.8 and later do); with --plain the "
            "modules are built as the package has them"
        )
    extra = (_PRIVATE_MEM,) if (major, minor) <= _LAST_PRIVATE_MEM else ()
    return (*PROTECTED, *extra)


def series_of(name: str) -> str:
    """The series of the fetched kernel that `name` means."""
    return _fetched(name).series


def suite_of(release: str, series: str) -> str:
    """The Debian release that a kernel was built in."""
    found = _SUITE.search(release)
    suite = _SUITES.get(found[1]) if found else _BY_SERIES.get(series)
    if suite is None:
        raise InputError(f"kernel {release}: not known which Debian release built it")
    return suite


def _fetched(name: str) -> FetchedImage:
    path = find_image(name)
    for image in fetched_images(path.parent):
        if image.path == path:
            return image
    raise InputError(f"{name}: modules are built for a fetched Debian package; name one, as 7.3")


def _read_patch(path: Path) -> bytes:
    try:
        change = path.read_bytes()
    except OSError as error:
        raise InputError(f"--patch {path}: {error.strerror}") from None
    names = list(_patched_files(change.decode("utf-8", "replace")))
    if not names:
        raise InputError(f"--patch {path}: not a patch; write one with `diff -u` or `git diff`")
    for name in names:
        if not name.startswith(tuple(f"{part}/" for part in _PARTS)) or ".." in name.split("/"):
            raise InputError(
                f"--patch {path}: changes {name}; only {' and '.join(_PARTS)} are compiled"
            )
    return change


def _patched_files(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.startswith("+++ "):
            yield line[4:].split("\t")[0].strip().partition("/")[2]


def _error(result: subprocess.CompletedProcess[str]) -> str:
    lines = (result.stderr + result.stdout).splitlines()
    found = [line for line in lines if "error" in line.lower()] or lines
    return (found or [f"status {result.returncode}"])[0].strip()


def jobs() -> int:
    """As many as there are processors."""
    return len(os.sched_getaffinity(0))
