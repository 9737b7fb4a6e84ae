# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a kernel image: Debian package, bzImage, or plain vmlinux.

A bzImage holds the kernel's ELF file compressed (Documentation/arch/x86/boot.rst: payload_offset
and payload_length). Every allocated section of that ELF is what runs; no debug package is needed.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import lz4.block
import msgspec
import zstandard

from guestemu.abi.errors import InputError
from guestemu.abi.files import read_regular
from guestemu.guest.linux.lzo import MAGIC as LZO_MAGIC
from guestemu.guest.linux.lzo import unlzop

_ELF_MAGIC: Final = b"\x7fELF"
_AR_MAGIC: Final = b"!<arch>\n"
_AR_HEADER: Final = 60
_BOOT_MAGIC: Final = b"HdrS"
_BOOT_MAGIC_AT: Final = 0x202
KERNEL_NAMES: Final = ("vmlinuz-", "vmlinux-", "vmlinuz")
"""boot/vmlinuz-VERSION, from 7.2 on usr/lib/modules/VERSION/vmlinuz; see `package_file`."""
_SETUP_SECTORS_AT: Final = 0x1F1
_PAYLOAD_AT: Final = 0x248
_SECTOR: Final = 512
_LZ4_BLOCK: Final = 8 << 20
_MAX_FILE: Final = 1 << 30
_MAX_ELF: Final = 256 << 20
"""No kernel without debugging information unpacks to more."""
_MAX_RATIO: Final = 24
_LEAST_UNPACKED: Final = 32 << 20
"""A package unpacks to six times its size at most; one that unpacks to more than `_MAX_RATIO` times
is not read on."""
_MAX_DICTIONARY: Final = 256 << 20
_CHUNK: Final = 1 << 20


class KernelImage(msgspec.Struct, frozen=True):
    """The kernel's ELF file, and the SHA-256 of it (the key of everything derived from it)."""

    name: str
    elf: bytes
    digest: str


def load_image(path: Path) -> KernelImage:
    """Reads the kernel in `path`. Raises `InputError` that names the file and what is wrong."""
    try:
        elf = _unwrap(_read(path))
    except _Broken as broken:
        raise InputError(f"{path}: {broken}") from None
    return KernelImage(path.name, elf, hashlib.sha256(elf).hexdigest())


def package_file(path: Path, names: tuple[str, ...]) -> bytes | None:
    """The first file of the Debian package `path` whose base name is one of `names`, or starts with
    one that ends in "-"; None if there is none or `path` is not a package. Raises `InputError` for
    a damaged package."""
    try:
        data = _read(path)
        return _find_in_package(data, names) if data.startswith(_AR_MAGIC) else None
    except _Broken as broken:
        raise InputError(f"{path}: {broken}") from None


def package_files(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The files of the Debian package `path` whose base names are among `names`, by base name; the
    first of each. Nothing where `path` is not a package. Raises `InputError` for a damaged
    package."""
    try:
        data = _read(path)
        if not data.startswith(_AR_MAGIC):
            return {}
        found: dict[str, bytes] = {}
        _search_package(data, names, found)
        return found
    except _Broken as broken:
        raise InputError(f"{path}: {broken}") from None


class _Broken(Exception):
    """What is wrong with the file, without its name."""


def _read(path: Path) -> bytes:
    """A file of a size that an image has; a device or a pipe is none. Raises `_Broken`."""
    try:
        return read_regular(path, _MAX_FILE)
    except OSError as error:
        raise _Broken(f"cannot be read: {error.strerror}") from None


def _unwrap(data: bytes) -> bytes:
    if data.startswith(_ELF_MAGIC):
        return data
    if data.startswith(_AR_MAGIC):
        return _unwrap(_kernel_of_package(data))
    if data[_BOOT_MAGIC_AT : _BOOT_MAGIC_AT + 4] == _BOOT_MAGIC:
        return _payload_of_bzimage(data)
    raise _Broken("neither a Debian package, a bzImage nor an ELF file; pass one of these")


def _members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Members of an `ar` archive."""
    position = len(_AR_MAGIC)
    while position + _AR_HEADER <= len(data):
        header = data[position : position + _AR_HEADER]
        try:
            size = int(header[48:58])
        except ValueError:
            raise _Broken(f"the archive is damaged at byte {position}; fetch it again") from None
        position += _AR_HEADER
        if size < 0 or position + size > len(data):
            raise _Broken(f"the archive ends early, at byte {len(data)}; fetch it again")
        yield header[:16].decode("ascii", "replace").rstrip("/ "), data[position : position + size]
        position += size + size % 2


def _kernel_of_package(data: bytes) -> bytes:
    kernel = _find_in_package(data, KERNEL_NAMES)
    if kernel is None:
        raise _Broken(
            "the package holds no kernel; take linux-binary-* (6.19 and later) or linux-image-* "
            "(before), not -dbg"
        )
    return kernel


def _find_in_package(data: bytes, names: tuple[str, ...]) -> bytes | None:
    found: dict[str, bytes] = {}
    _search_package(data, names, found, is_one_enough=True)
    return next(iter(found.values()), None)


def _search_package(
    data: bytes, names: tuple[str, ...], found: dict[str, bytes], is_one_enough: bool = False
) -> None:
    for name, member in _members(data):
        if not name.startswith("data.tar"):
            continue
        try:
            _search_archive(_Unpacked(name, member), names, found, is_one_enough)
            return
        except (
            *(tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError),
            *(OSError, OverflowError, UnicodeError),
        ) as error:
            raise _Broken(f"its {name} cannot be unpacked ({error}); fetch it again") from None
    raise _Broken("the package holds no data.tar; fetch it again")


def _search_archive(
    unpacked: _Unpacked, names: tuple[str, ...], found: dict[str, bytes], is_one_enough: bool
) -> None:
    """Puts files by base name into `found`; those of `names` that end in "-" are prefixes."""
    prefixes = tuple(name for name in names if name.endswith("-"))
    with tarfile.open(fileobj=unpacked, mode="r|") as archive:
        for entry in archive:
            base = entry.name.rpartition("/")[2]
            is_wanted = base in names or (bool(prefixes) and base.startswith(prefixes))
            if not entry.isfile() or not is_wanted or base in found:
                continue
            if entry.size > _MAX_ELF or entry.issparse():
                raise tarfile.ReadError(f"{entry.name} claims {entry.size} bytes")
            stream = archive.extractfile(entry)
            if stream is not None:
                found[base] = stream.read()
                if is_one_enough:
                    return


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


_STREAMS: Final[dict[str, Callable[[BinaryIO], _Readable]]] = {
    "zst": zstandard.ZstdDecompressor().stream_reader,
    "xz": lzma.open,
    "lzma": lzma.open,
    "gz": gzip.open,
    "bz2": bz2.open,
}


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a package's member, as they are read: never more than a package has."""

    def __init__(self, name: str, member: bytes) -> None:
        super().__init__()
        self._left = max(_LEAST_UNPACKED, _MAX_RATIO * len(member))
        open_it = _STREAMS.get(name.rpartition(".")[2])
        source = io.BytesIO(member)
        self._stream: _Readable = source if open_it is None else open_it(source)

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1) -> bytes:
        """As of any stream. Raises EOFError behind what a package of this size may unpack to."""
        data = self._stream.read(_CHUNK if size < 0 else size)
        self._left -= len(data)
        if self._left < 0:
            raise EOFError("it unpacks to more than a package does")
        return data


def _payload_of_bzimage(data: bytes) -> bytes:
    if len(data) < _PAYLOAD_AT + 8:
        raise _Broken(f"the bzImage ends at byte {len(data)}, inside its header")
    start, length = struct.unpack_from("<II", data, _PAYLOAD_AT)
    offset = (data[_SETUP_SECTORS_AT] + 1) * _SECTOR + start
    payload = data[offset : offset + length]
    if len(payload) < length or length < 8:
        raise _Broken(
            f"the bzImage is truncated: {len(data)} bytes, its payload ends at {offset + length}"
        )
    for magic, unpack in _UNPACKERS.items():
        if payload.startswith(magic):
            try:
                elf = unpack(payload)
            except (
                lzma.LZMAError,
                zlib.error,
                zstandard.ZstdError,
                lz4.block.LZ4BlockError,
                EOFError,
                OSError,
                ValueError,
                struct.error,
            ) as error:
                raise _Broken(f"its payload does not unpack ({error})") from None
            if not elf.startswith(_ELF_MAGIC):
                raise _Broken("its payload is not an ELF file")
            return elf
    raise _Broken(f"its payload has an unknown compression (bytes {payload[:6].hex()})")


def _unlz4(payload: bytes) -> bytes:
    """The LZ4 legacy frame that the kernel's build uses; the last word is the unpacked size."""
    (size,) = struct.unpack("<I", payload[-4:])
    if size > _MAX_ELF:
        raise EOFError(f"it claims {size} bytes")
    out = bytearray()
    position = 4
    while len(out) < size:
        (length,) = struct.unpack_from("<I", payload, position)
        position += 4
        block = payload[position : position + length]
        if not block:
            raise EOFError("the stream ends early")
        out += lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK)
        position += length
    return bytes(out)


def _unzstd(payload: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(payload, read_across_frames=False) as reader:
        return _not_more(reader.read(_MAX_ELF + 1))  # one call: behind the frame is something else


def _unxz(payload: bytes) -> bytes:
    unpacker = lzma.LZMADecompressor(memlimit=_MAX_DICTIONARY)
    return _whole(unpacker.decompress(payload, _MAX_ELF + 1), unpacker.eof)


def _gunzip(payload: bytes) -> bytes:
    unpacker = zlib.decompressobj(31)
    return _whole(unpacker.decompress(payload, _MAX_ELF + 1), unpacker.eof)


def _bunzip2(payload: bytes) -> bytes:
    unpacker = bz2.BZ2Decompressor()
    return _whole(unpacker.decompress(payload, _MAX_ELF + 1), unpacker.eof)


def _unzstd_sized(payload: bytes) -> bytes:
    """A Zstandard frame, and the unpacked size that the kernel's build appends."""
    data = _unzstd(payload)
    return _whole(data, payload[-4:] == struct.pack("<I", len(data)))


def _unlzo(payload: bytes) -> bytes:
    return unlzop(payload, _MAX_ELF)


def _whole(data: bytes, is_whole: bool) -> bytes:
    data = _not_more(data)
    if not is_whole:
        raise EOFError("the stream ends early")
    return data


def _not_more(data: bytes) -> bytes:
    if len(data) > _MAX_ELF:
        raise EOFError(f"it unpacks to more than {_MAX_ELF >> 20} MiB")
    return data


_UNPACKERS: Final[dict[bytes, Callable[[bytes], bytes]]] = {
    b"\x02\x21\x4c\x18": _unlz4,
    b"\x28\xb5\x2f\xfd": _unzstd_sized,
    b"\xfd7zXZ\0": _unxz,
    b"\x5d\0\0": _unxz,
    b"\x1f\x8b": _gunzip,
    b"BZh": _bunzip2,
    LZO_MAGIC: _unlzo,
}
