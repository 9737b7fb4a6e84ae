# SPDX-License-Identifier: GPL-2.0-or-later
"""Files around a kernel's ELF file as Debian and the kernel's build make them."""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import tarfile

_COMPRESS = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress}

ELF = b"\x7fELF" + bytes(range(256)) * 64


def bzimage(payload: bytes) -> bytes:
    """A bzImage with one setup sector and `payload` behind it (Documentation/arch/x86/boot.rst)."""
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 0, len(payload))
    return bytes(head) + payload


def package(files: dict[str, bytes], suffix: str = ".xz") -> bytes:
    """A Debian package with `files` by name."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    members = {"debian-binary": b"2.0\n", f"data.tar{suffix}": _COMPRESS[suffix](data.getvalue())}
    text = b"!<arch>\n"
    for name, content in members.items():
        head = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
        text += head.encode() + content + b"\n" * (len(content) % 2)
    return text
