# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel under test: a bzImage, its KVM modules and the initramfs that drives them.

A Debian package is unpacked once into the user's cache. From 6.19 on the modules are in a package
of their own, linux-modules-*, which is looked for beside the kernel's.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
import zstandard

from guestemu.abi.errors import InputError, MissingError
from guestemu.abi.files import read_regular
from guestemu.guest.linux.image import KERNEL_NAMES, package_files
from guestemu.guest.linux.images import cache_root, find_image

MODULES: Final = ("irqbypass", "ccp", "kvm", "kvm-amd")
"""Loaded in this order; ccp only where kvm-amd needs it."""
NEEDED: Final = ("kvm", "kvm-amd")

_SUFFIXES: Final = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")
_FILES: Final = tuple(f"{name}{suffix}" for name in MODULES for suffix in _SUFFIXES)
_LARGEST: Final = 256 << 20
_BZIMAGE_AT: Final = 0x202
_BZIMAGE: Final = b"HdrS"
_PACKAGE: Final = b"!<arch>\n"
_VERMAGIC: Final = re.compile(rb"\0?vermagic=([!-~]+) [ -~]*\0")


class TestedKernel(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel that QEMU can start. `kernel` is the file of the bzImage, `modules` the unpacked
    modules by their name ("kvm-amd"), none where KVM is built in."""

    __test__ = False

    name: str
    kernel: Path
    modules: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        """Names kernel and modules by their content."""
        digest = hashlib.sha256(self.kernel.read_bytes())
        for name in sorted(self.modules):
            digest.update(name.encode() + self.modules[name])
        return digest.hexdigest()


def find_kernel(name: str, modules: Path | None = None) -> TestedKernel:
    """The kernel that `name` means: a series that was fetched ("6.12"), a package or a bzImage.

    `modules` is a directory whose kvm.ko and kvm-amd.ko replace those of the package, searched with
    its subdirectories; a bzImage has modules only from there. Raises `InputError` for files that
    are not a kernel or do not fit, `MissingError` where a package was not fetched.
    """
    path = find_image(name)
    with path.open("rb") as stream:
        is_package = stream.read(len(_PACKAGE)) == _PACKAGE
    if is_package:
        kernel, found = _from_package(path)
    else:
        kernel, found = _bzimage(path), {}
    if modules is not None:
        found = {**found, **_from_directory(modules)}
    if found:
        for needed in NEEDED:
            if needed not in found:
                where = modules or path
                raise InputError(f"{where}: no {needed}.ko; a kernel built for KVM on AMD has it")
        _check_versions(found, str(modules or path))
    return TestedKernel(name=name, kernel=kernel, modules=found)


def _bzimage(path: Path) -> Path:
    with path.open("rb") as stream:
        head = stream.read(_BZIMAGE_AT + 4)
    if head[_BZIMAGE_AT:] != _BZIMAGE:
        raise InputError(
            f"{path}: no bzImage; QEMU starts a .deb's kernel or a bzImage, no vmlinux"
        )
    return path


def _from_directory(directory: Path) -> dict[str, bytes]:
    if not directory.is_dir():
        raise InputError(f"--modules {directory}: no such directory; name the one with kvm.ko")
    found: dict[str, bytes] = {}
    for file in _FILES:
        stem = file.partition(".")[0]
        for path in sorted(directory.rglob(file)):
            if stem not in found and path.is_file():
                found[stem] = _unpacked(path.name, read_regular(path, _LARGEST), str(path))
    if not found:
        raise InputError(f"--modules {directory}: neither kvm.ko nor kvm-amd.ko in it or below it")
    return found


def _unpacked(name: str, data: bytes, place: str) -> bytes:
    try:
        if name.endswith(".xz"):
            return lzma.decompress(data)
        if name.endswith(".gz"):
            return gzip.decompress(data)
        if name.endswith(".zst"):
            return zstandard.ZstdDecompressor().decompress(data, max_output_size=_LARGEST)
    except (lzma.LZMAError, OSError, EOFError, zstandard.ZstdError) as error:
        raise InputError(f"{place}: {name} cannot be unpacked: {error}") from None
    return data


def _vermagic(module: bytes) -> str:
    found = _VERMAGIC.search(module)
    return found[1].decode("ascii") if found else ""


def _check_versions(modules: Mapping[str, bytes], place: str) -> None:
    """All modules are of one kernel."""
    versions = {_vermagic(modules[name]) for name in modules}
    if len(versions) > 1:
        raise InputError(
            f"{place}: modules of several kernels ({', '.join(sorted(versions))}); take kvm.ko and "
            "kvm-amd.ko of one build"
        )


def _modules_package(path: Path) -> Path:
    """linux-modules-* of a linux-binary-* package."""
    name = path.name.replace("linux-binary-", "linux-modules-", 1)
    other = path.with_name(name)
    if not other.is_file():
        series = name.split("_")[0]
        raise MissingError(
            f"{path.name} has no modules: they are in {series}, which is not beside it; "
            "`guestemu kernel fetch --modules` gets it"
        )
    return other


def _from_package(path: Path) -> tuple[Path, dict[str, bytes]]:
    status = path.stat()
    key = hashlib.sha256(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    directory = cache_root() / "oracle" / key.hexdigest()[:24]
    kernel = directory / "vmlinuz"
    if not kernel.is_file():
        _unpack_package(path, directory)
    modules = {
        name: (directory / f"{name}.ko").read_bytes()
        for name in MODULES
        if (directory / f"{name}.ko").is_file()
    }
    return kernel, modules


def _unpack_package(path: Path, directory: Path) -> None:
    files = package_files(path, KERNEL_NAMES + _FILES)
    kernel = next((files[name] for name in files if name.startswith("vmlinuz")), None)
    if kernel is None:
        raise InputError(f"{path}: no vmlinuz in it; take linux-image-* or linux-binary-*")
    if not any(name.startswith("kvm.ko") for name in files) and "linux-binary-" in path.name:
        files |= package_files(_modules_package(path), _FILES)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".unpack-") as scratch:
        made = Path(scratch, "made")
        made.mkdir()
        for name, data in files.items():
            if name in _FILES:
                stem = name.partition(".")[0]
                (made / f"{stem}.ko").write_bytes(_unpacked(name, data, str(path)))
        (made / "vmlinuz").write_bytes(kernel)
        try:
            made.rename(directory)
        except OSError:
            if not (directory / "vmlinuz").is_file():
                raise


def initramfs(init: bytes, modules: Mapping[str, bytes]) -> bytes:
    """A newc archive (Documentation/driver-api/early-userspace/buffer-format.rst) with /init, the
    modules and /dev/console, compressed."""
    parts = [_entry("dev", 0o40755, b""), _entry("dev/console", 0o20600, b"", device=(5, 1))]
    parts.append(_entry("init", 0o100755, init))
    parts.extend(_entry(f"{name}.ko", 0o100644, modules[name]) for name in sorted(modules))
    parts.append(_entry("TRAILER!!!", 0, b""))
    return gzip.compress(b"".join(parts), compresslevel=1, mtime=0)


def _entry(name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> bytes:
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def candidates() -> Iterator[str]:
    """Where QEMU may be, in order."""
    if os.environ.get("GUESTEMU_QEMU"):
        yield os.environ["GUESTEMU_QEMU"]
    yield "qemu-system-x86_64"
