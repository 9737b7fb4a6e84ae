# SPDX-License-Identifier: GPL-2.0-or-later
"""An analysed kernel in two files: what is always needed, and the segments, for boots only.

Analysing takes about two seconds, reading it back a tenth of one. Both files are MessagePack in
Zstandard, sealed with a checksum (cache.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import zstandard

from guestemu.guest.linux.btf import Btf, BtfIndex
from guestemu.guest.linux.cache import read_sealed, write_sealed
from guestemu.guest.linux.kernel import Kernel, LoadSegment, Segments
from guestemu.guest.linux.name_table import NameTable, PackedNames, pack_names
from guestemu.guest.linux.sites import Site

SEGMENTS_SUFFIX: Final = ".segments"

_LEVEL: Final = 1
_T = TypeVar("_T")


class _Analysis(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    version: str
    digest: str
    entry: int
    extent: int
    symbols: PackedNames
    sites: tuple[Site, ...]
    btf_types: bytes
    btf_strings: bytes
    btf_index: BtfIndex


def save_analysis(path: Path, kernel: Kernel) -> None:
    """Writes `kernel` to `path` and to a second file beside it. Raises OSError."""
    types, strings = kernel.btf.sections
    analysis = _Analysis(
        name=kernel.name,
        version=kernel.version,
        digest=kernel.digest,
        entry=kernel.entry,
        extent=kernel.segments.extent,
        symbols=pack_names(kernel.symbols),
        sites=kernel.sites,
        btf_types=types,
        btf_strings=strings,
        btf_index=kernel.btf.index,
    )
    write_sealed(path.with_name(path.name + SEGMENTS_SUFFIX), _pack(kernel.segments.parts))
    write_sealed(path, _pack(analysis))


def load_analysis(path: Path, name: str, again: Callable[[], Kernel]) -> Kernel | None:
    """The kernel in `path`, called `name`; None where there is none or the file is damaged.

    `again` analyses the image: asked when the segments are wanted and their file is gone.
    """
    analysis = _read(path, _Analysis)
    if analysis is None:
        return None

    def read_segments() -> tuple[LoadSegment, ...]:
        found = _read(path.with_name(path.name + SEGMENTS_SUFFIX), tuple[LoadSegment, ...])
        return again().segments.parts if found is None else found

    try:
        symbols = NameTable(analysis.symbols)
        btf = Btf.resume(analysis.btf_types, analysis.btf_strings, analysis.btf_index, name)
    except ValueError:
        return None
    return Kernel(
        name=name,
        version=analysis.version,
        digest=analysis.digest,
        entry=analysis.entry,
        segments=Segments(analysis.extent, read_segments),
        symbols=symbols,
        sites=analysis.sites,
        btf=btf,
    )


def _pack(value: object) -> bytes:
    compressor = zstandard.ZstdCompressor(level=_LEVEL, threads=-1, write_checksum=True)
    return compressor.compress(msgspec.msgpack.encode(value))


def _read(path: Path, kind: type[_T]) -> _T | None:
    packed = read_sealed(path)
    if packed is None:
        return None
    try:
        data = zstandard.ZstdDecompressor().decompress(packed)
        return msgspec.msgpack.decode(data, type=kind)
    except (OSError, zstandard.ZstdError, msgspec.MsgspecError, MemoryError):
        return None
