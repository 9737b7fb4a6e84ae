# SPDX-License-Identifier: GPL-2.0-or-later
"""The user's cache of what kernels cost to make: analysed images and prepared guests.

It is a directory beside the fetched kernels, $XDG_CACHE_HOME/guestemu/prepared (default ~/.cache).
A file's name is a hash of everything that its content follows from, so that a file is either right
or not found: the image's bytes, the machine, the command line, the emulator's library and the
modules that load, boot and prepare a kernel. Nothing depends on the cache but time.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import unicorn

import guestemu
from guestemu.abi.errors import InputError
from guestemu.abi.files import whole_file
from guestemu.guest.linux.images import cache_root
from guestemu.machine.engine import Engine

MAX_FILES: Final = 48
"""Files that are kept; the ones that were used longest ago go first. 15 MB each at most, kernels in
user space 60 MB."""
SWITCH: Final = "GUESTEMU_NO_CACHE"
"""Environment variable; set to 1 every kernel is analysed and booted anew, and nothing is kept."""

SEAL_SIZE: Final = 32
_MADE_BY: Final = ("abi", "machine", "guest/linux")


class CacheKey(msgspec.Struct, frozen=True):
    """What one file is made from, each part as text."""

    parts: tuple[str, ...]

    @property
    def name(self) -> str:
        """40 hexadecimal digits."""
        return hashlib.sha256("\0".join(self.parts).encode()).hexdigest()[:40]


def switched_off() -> bool:
    """Whether the user wants nothing kept."""
    return os.environ.get(SWITCH) == "1"


def cache_directory() -> Path | None:
    """Where the files are; None where the user does not want any. It need not exist."""
    return None if switched_off() else cache_root() / "prepared"


@functools.cache
def build_id() -> str:
    """Names the emulator's library and this program's code, as far as a booted kernel depends on
    them."""
    library = os.stat(Engine.library_path())
    digest = hashlib.sha256(
        f"{unicorn.__version__} {library.st_size} {library.st_mtime_ns}".encode()
    )
    root = Path(guestemu.__file__).parent
    for part in _MADE_BY:
        for path in sorted((root / part).rglob("*.[pS]*")):
            if path.suffix in {".py", ".S"}:
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


@contextmanager
def cache_file(path: Path) -> Iterator[BinaryIO]:
    """`whole_file` in a directory that is made where there is none. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        yield file


def write_sealed(path: Path, data: bytes) -> None:
    """Puts `data` at `path`, whole or not at all, with a checksum in front: over all of `data` and
    the file's name, which is the hash of what it was made from. Raises OSError."""
    with cache_file(path) as file:
        file.write(seal(path, data) + data)


def read_sealed(path: Path) -> bytes | None:
    """What `write_sealed` wrote to this name; None for anything else, such as the file of another
    image under this name, or a file that is not the user's own."""
    try:
        with open(path, "rb", opener=open_own) as file:
            content = file.read()
    except OSError:
        return None
    found, data = content[:SEAL_SIZE], content[SEAL_SIZE:]
    return data if hmac.compare_digest(found, seal(path, data)) else None


def file_digest(path: Path) -> str:
    """SHA-256 of the file `path`, hexadecimal. It is kept in the cache for a file that has not
    changed since: same inode, size, and times of its content and of its attributes.

    Raises `InputError` where the file cannot be read.
    """
    try:
        return _digest(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _digest(path: Path) -> str:
    status = path.stat()
    if switched_off():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    facts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    directory = cache_root() / "digests"
    known = directory / CacheKey((str(path.resolve()), *map(str, facts))).name
    kept = read_sealed(known)
    if kept is not None:
        mark_used(known)
        return kept.decode()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with suppress(OSError):  # the next run reads the file again
        write_sealed(known, digest.encode())
        prune(directory)
    return digest


def seal(path: Path, data: bytes) -> bytes:
    """`SEAL_SIZE` bytes: the checksum of `data` in a file of this name."""
    key = hashlib.sha256(path.name.encode()).digest()
    return hashlib.blake2b(data, key=key, digest_size=SEAL_SIZE).digest()


def open_own(name: str, flags: int) -> int:
    """An opener for `open`: a regular file of this user or of root, which others cannot write.
    Raises OSError."""
    descriptor = os.open(name, flags | os.O_NONBLOCK)
    status = os.fstat(descriptor)
    is_own = status.st_uid in (os.geteuid(), 0) and not status.st_mode & stat.S_IWOTH
    if stat.S_ISREG(status.st_mode) and is_own:
        return descriptor
    os.close(descriptor)
    raise PermissionError(f"{name}: not a file of the user's own")


def mark_used(path: Path) -> None:
    """Notes that `path` was of use; a cache that cannot be written is none the worse."""
    try:
        os.utime(path)
    except OSError:
        return


def prune(directory: Path, keep: int = MAX_FILES) -> None:
    """Removes the files in `directory` that were used longest ago, down to `keep`."""
    try:
        used = sorted((entry.stat().st_mtime_ns, entry.path) for entry in os.scandir(directory))
        for _when, path in used[: max(len(used) - keep, 0)]:
            os.unlink(path)
    except OSError:  # another process also prunes, or may write while we may not
        return
