# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel images that are made to cost: each is refused in one line, in a gigabyte of memory."""

from __future__ import annotations

import io
import json
import lzma
import os
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

GIB = 1 << 30
CHILD = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from guestemu.abi.errors import InputError
from guestemu.guest.linux.kernel import load_kernel
from pathlib import Path
said = {}
for name in sys.argv[1:]:
    try:
        load_kernel(Path(name))
        said[name] = "read"
    except InputError as error:
        said[name] = str(error)
    except BaseException as error:
        said[name] = "raised " + type(error).__name__ + ": " + str(error)
print(json.dumps(said))
"""


def elf(
    loads: list[tuple[int, int, int, int]],
    sections: list[tuple[str, int, int, int, int]],
    body: int,
) -> bytes:
    """An ELF file. `loads`: offset, address, bytes in the file, bytes in memory; `sections`: name,
    type, flags, offset, size; `body` zero bytes behind the headers."""
    names = b"\0"
    entries = []
    for name, kind, flags, offset, size in sections:
        entries.append((len(names), kind, flags, offset, size))
        names += name.encode() + b"\0"
    entries.append((len(names), 3, 0, 0, 0))
    names += b".shstrtab\0"
    names_at = 64 + 56 * len(loads)
    table_at = names_at + len(names)
    entries[-1] = (*entries[-1][:3], names_at, len(names))
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\2\1\1" + bytes(9),
        *(2, 62, 1, 0x1000000, 64, table_at, 0, 64, 56, len(loads), 64),
        *(len(entries) + 1, len(entries)),
    )
    data = header
    for offset, address, stored, taken in loads:
        data += struct.pack("<IIQQQQQQ", 1, 5, offset, address, address, stored, taken, 4096)
    data += names + bytes(64)
    for name_at, kind, flags, offset, size in entries:
        data += struct.pack("<IIQQQQIIQQ", name_at, kind, flags, 0, offset, size, 0, 0, 1, 0)
    return data + bytes(body)


def package(member: str, data: bytes) -> bytes:
    head = f"{member:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
    return b"!<arch>\n" + head + data


def tar(size: int, content: int, name: str = "./boot/vmlinuz-6.1") -> bytes:
    """A tar file whose one entry claims `size` bytes, of which `content` zeros are there."""
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf() + bytes(content)


BOTH = [(".rodata", 1, 2, 64, 64), (".BTF", 1, 2, 128, 64)]
IMAGES: dict[str, Callable[[], bytes]] = {
    "memory-of-6-gib": lambda: elf([(0, 0x1000000, 64, 6 * GIB)], BOTH, 256),
    "file-of-6-gib": lambda: elf([(0, 0x1000000, 6 * GIB, 6 * GIB)], BOTH, 256),
    "1000-overlapping": lambda: elf([(0, 0x1000000, 7 << 20, 7 << 20)] * 1000, BOTH, 7 << 20),
    "60000-sections": lambda: elf([], [("", 1, 0, 0, 0)] * 60_000, 0),
    "zeros-as-rodata": lambda: elf([], [(".rodata", 8, 2, 64, 6 * GIB), BOTH[1]], 256),
    "compressed-rodata": lambda: elf([], [(".rodata", 1, 2 | 0x800, 64, 64), BOTH[1]], 256),
    "rodata-beyond": lambda: elf([], [(".rodata", 1, 2, 64, 6 * GIB), BOTH[1]], 256),
    "overlapping-sections": lambda: elf([], [*BOTH, *[("x", 1, 6, 0, 4 << 20)] * 900], 4 << 20),
    "wrong-btf": lambda: elf([], BOTH, 256),
    "zstd-zeros": lambda: package("data.tar.zst", zstandard.compress(tar(4 * GIB, 512 << 20), 1)),
    "xz-zeros": lambda: package("data.tar.xz", lzma.compress(tar(200 << 20, 200 << 20), preset=0)),
    "other-file-of-zeros": lambda: package(
        "data.tar.zst", zstandard.compress(tar(4 * GIB, 256 << 20, "./usr/big"), 1)
    ),
    "tar-claims": lambda: package("data.tar", tar(100 * GIB, 1 << 20)),
    "ar-claims": lambda: b"!<arch>\n" + b"data.tar".ljust(48) + b"9999999999`\n",
    "payload-of-zeros": lambda: bzimage(zstandard.compress(b"\x7fELF" + bytes(GIB // 2), 1)),
    "payload-xz": lambda: bzimage(lzma.compress(b"\x7fELF" + bytes(GIB // 2), preset=0)),
    "payload-lz4-claims": lambda: bzimage(b"\x02\x21\x4c\x18" + b"\xff" * 64),
    "many-digits": lambda: (
        elf([], [(".rodata", 1, 2, 400, 8 << 20), BOTH[1]], 0)
        + b"".join(b"%d\0" % digit for digit in range(10)) * (1 << 19)
    ),
}


def bzimage(payload: bytes) -> bytes:
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 0, len(payload))
    return bytes(head) + payload


@pytest.mark.soak
def test_each_is_refused_in_a_gigabyte(tmp_path: Path) -> None:
    paths = []
    for name, make in IMAGES.items():
        path = tmp_path / name
        path.write_bytes(make())
        paths.append(str(path))
    os.mkfifo(tmp_path / "pipe")
    paths += [str(tmp_path / "pipe"), "/dev/zero", str(tmp_path)]
    command = [sys.executable, "-c", CHILD, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said.keys() == set(paths)
    for path, text in said.items():
        assert text.startswith((path, Path(path).name)), (path, text)
        assert "\n" not in text


def test_a_package_is_unpacked_no_further_than_to_its_kernel(tmp_path: Path) -> None:
    from guestemu.guest.linux.image import package_file

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("./boot/vmlinuz-6.1")
        entry.size = 5
        archive.addfile(entry, io.BytesIO(b"hello"))
    for suffix, packed in (
        ("", buffer.getvalue()),
        (".xz", lzma.compress(buffer.getvalue())),
        (".zst", zstandard.compress(buffer.getvalue() + b"x" * (64 << 20))),
    ):
        path = tmp_path / f"a{suffix}.deb"
        path.write_bytes(package(f"data.tar{suffix}", packed))
        assert package_file(path, ("vmlinuz-",)) == b"hello"
