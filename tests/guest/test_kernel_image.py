# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the kernel's ELF file is found: in packages of every layout."""

from __future__ import annotations

import base64
import bz2
import gzip
import lzma
import struct
from pathlib import Path

import pytest
import zstandard

from guestemu.abi.errors import InputError
from guestemu.guest.linux.image import load_image
from guestemu.guest.linux.lzo import unlzop
from tests.guest.kernel_files import ELF, bzimage, package


@pytest.mark.parametrize(
    "name",
    [
        "boot/vmlinuz-6.1.0-57-cloud-amd64",
        "boot/vmlinuz-6.19.14+deb13-rt-amd64",
        "usr/lib/modules/7.3.4+deb13-cloud-amd64/vmlinuz",
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_the_kernel_of_a_package(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / "linux.deb"
    files = {"usr/share/doc/README": b"text", name: bzimage(gzip.compress(ELF))}
    path.write_bytes(package(files, suffix))

    assert load_image(path).elf == ELF


LZOP = base64.b64decode(
    "iUxaTwANChoKEEAgoAlAAwkDAAANAAAAAGsMm2cAAAAAACqUAu8AAEAEAAABYOES4ygA8n9FTEYAAQIDBAUGBwgJ"
    "CgsMDQ4PEBESExQVFhcYGRobHB0eHyAhIiMkJSYnKCkqKywtLi8wMTIzNDU2Nzg5Ojs8PT4/QEFCQ0RFRkdISUpL"
    "TE1OT1BRUlNUVVZXWFlaW1xdXl9gYWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1+f4CBgoOEhYaHiImKi4yN"
    "jo+QkZKTlJWWl5iZmpucnZ6foKGio6SlpqeoqaqrrK2ur7CxsrO0tba3uLm6u7y9vr/AwcLDxMXGx8jJysvMzc7P"
    "0NHS09TV1tfY2drb3N3e3+Dh4uPk5ebn6Onq6+zt7u/w8fLz9PX29/j5+vv8/f7/IAAAAAAAAADm/AMgAAAAAAAA"
    "AOb8AyAAAAAAAAAA5vwDIAAAAAAAAADm/AMgAAAAAAAAAOb8AyAAAAAAAAAA5vwDIAAAAAAAAADm/AMgAAAAAAAA"
    "5fwDEQAAAAAAAARAAAA="
)
"""`ELF` as lzop -9 packs it, with the size that the kernel's build appends."""


def _sized(packed: bytes) -> bytes:
    """What the kernel's build makes of a packed kernel: the unpacked size stands behind it."""
    return packed + struct.pack("<I", len(ELF))


PAYLOADS = {
    "gzip": gzip.compress(ELF),
    "bzip2": _sized(bz2.compress(ELF)),
    "lzma": _sized(lzma.compress(ELF, format=lzma.FORMAT_ALONE)),
    "xz": _sized(lzma.compress(ELF)),
    "lzo": LZOP,
    "zstd": _sized(zstandard.compress(ELF)),
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_kernel_of_every_compression_is_unpacked(tmp_path: Path, name: str) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage(PAYLOADS[name]))

    assert load_image(path).elf == ELF


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_damaged_payload_is_one_clear_line(tmp_path: Path, name: str) -> None:
    payload = PAYLOADS[name]
    path = tmp_path / "vmlinuz"
    for end in range(16, len(payload) - 20, 7):
        path.write_bytes(bzimage(payload[:end]))
        with pytest.raises(InputError, match=r"its payload (does not unpack|is no ELF file)"):
            load_image(path)


def test_lzo_matches_that_lie_nowhere_are_refused() -> None:
    head = LZOP[: LZOP.index(b"\x00\x00\x40\x04")]
    stream = b"\x15\x7fELF\x40\x7f"
    block = struct.pack(">III", 400, len(stream), 0) + stream
    with pytest.raises(ValueError, match="before the start"):
        unlzop(head + block + bytes(4), 1 << 20)


def test_a_package_of_dependencies_names_the_one_that_has_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "linux.deb"
    path.write_bytes(package({"usr/share/doc/README": b"text"}))

    with pytest.raises(InputError, match=r"linux\.deb: the package holds no kernel.*linux-binary"):
        load_image(path)
