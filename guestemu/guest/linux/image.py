# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a kernel image: Debian package, bzImage, or plain vmlinux.

A bzImage holds the kernel's ELF file compressed (Documentation/arch/x86/boot.rst: payload_offset
and payload_length). Every allocated section of that ELF is what runs; no debug package is needed.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import lz4.block
import msgspec
import zstandard

from guestemu.abi.errors import InputError

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
_MAX_ELF: Final = 1 << 30
"""No kernel is that large; a payload that claims more is refused."""


class KernelImage(msgspec.Struct, frozen=True):
    """The kernel's ELF file, and the SHA-256 of it (the key of everything derived from it)."""

    name: str
    elf: bytes
    digest: str


def load_image(path: Path) -> KernelImage:
    """Reads the kernel in `path`. Raises `InputError` that names the file and what is wrong."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        elf = _unwrap(data)
    except _Broken as broken:
        raise InputError(f"{path}: {broken}") from None
    return KernelImage(path.name, elf, hashlib.sha256(elf).hexdigest())


def package_file(path: Path, names: tuple[str, ...]) -> bytes | None:
    """The first file of the Debian package `path` whose base name is one of `names`, or starts with
    one that ends in "-"; None if there is none or `path` is no package. Raises `InputError` for a
    damaged package."""
    data = path.read_bytes()
    if not data.startswith(_AR_MAGIC):
        return None
    try:
        return _find_in_package(data, names)
    except _Broken as broken:
        raise InputError(f"{path}: {broken}") from None


class _Broken(Exception):
    """What is wrong with the file, without its name."""


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
    prefixes = tuple(name for name in names if name.endswith("-"))
    for name, member in _members(data):
        if not name.startswith("data.tar"):
            continue
        if name.endswith(".zst"):
            member = _unzstd(member)
        try:
            with tarfile.open(fileobj=io.BytesIO(member)) as archive:
                for entry in archive:
                    base = entry.name.rpartition("/")[2]
                    if entry.isfile() and (base in names or base.startswith(prefixes)):
                        stream = archive.extractfile(entry)
                        if stream is not None:
                            return stream.read()
        except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, OSError) as error:
            raise _Broken(f"its {name} cannot be unpacked ({error}); fetch it again") from None
        return None
    raise _Broken("the package holds no data.tar; fetch it again")


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
                struct.error,
            ) as error:
                raise _Broken(f"its payload does not unpack ({error})") from None
            if not elf.startswith(_ELF_MAGIC):
                raise _Broken("its payload is no ELF file")
            return elf
    raise _Broken(f"its payload has an unknown compression (bytes {payload[:6].hex()})")


def _unlz4(payload: bytes) -> bytes:
    """The LZ4 legacy frame that the kernel's build uses; the last word is the unpacked size."""
    (size,) = struct.unpack("<I", payload[-4:])
    if size > _MAX_ELF:
        raise EOFError(f"claims {size} bytes")
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
        return reader.read(_MAX_ELF)


def _unxz(payload: bytes) -> bytes:
    return lzma.LZMADecompressor().decompress(payload, _MAX_ELF)


def _gunzip(payload: bytes) -> bytes:
    return zlib.decompressobj(31).decompress(payload, _MAX_ELF)


_UNPACKERS: Final[dict[bytes, Callable[[bytes], bytes]]] = {
    b"\x02\x21\x4c\x18": _unlz4,
    b"\x28\xb5\x2f\xfd": _unzstd,
    b"\xfd7zXZ\0": _unxz,
    b"\x1f\x8b": _gunzip,
}
