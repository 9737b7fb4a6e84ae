# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of symbols that are searched instead of unpacked, and checksums that are kept."""

from __future__ import annotations

import hashlib
import os

import msgspec
import pytest

from guestemu.guest.linux import cache
from guestemu.guest.linux.name_table import NameTable, PackedNames, pack_names

SYMBOLS = {"startup_64": 0xFFFF_FFFF_8100_0000, "zz": 1, "a": 2, "alias_of_a": 2, "aa": 3}


def read_back(table):
    return NameTable(
        msgspec.msgpack.decode(msgspec.msgpack.encode(pack_names(table)), type=PackedNames)
    )


def test_a_table_is_the_mapping_that_was_packed():
    table = read_back(SYMBOLS)
    assert {name: table[name] for name in SYMBOLS} == SYMBOLS
    assert list(table.values()) == list(SYMBOLS.values())
    assert "ab" not in table
    assert table.get("") is None
    assert len(table) == len(SYMBOLS)
    assert list(table.items()) == list(SYMBOLS.items())
    assert list(table) == list(table.keys()) == list(SYMBOLS)
    assert table["aa"] == 3
    assert table == SYMBOLS


def test_looking_up_and_counting_unpack_nothing(monkeypatch):
    table = read_back(SYMBOLS)
    monkeypatch.setattr(NameTable, "unpacked", lambda _table: pytest.fail("unpacked"))
    assert table["a"] == 2
    assert sorted(table.values()) == sorted(SYMBOLS.values())


def test_an_empty_table_and_one_that_does_not_fit():
    assert dict(read_back({})) == {}
    packed = pack_names(SYMBOLS)
    with pytest.raises(ValueError, match="damaged"):
        NameTable(msgspec.structs.replace(packed, order=packed.order[:-4]))


def seal_of(path, data):
    return cache.seal(path, data) + data


def test_a_files_checksum_is_kept_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "cache_root", lambda: tmp_path / "cache")
    monkeypatch.delenv(cache.SWITCH, raising=False)
    file = tmp_path / "image"
    file.write_bytes(b"one")
    first = cache.file_digest(file)
    assert first == hashlib.sha256(b"one").hexdigest()
    (kept,) = (tmp_path / "cache" / "digests").iterdir()
    kept.write_bytes(seal_of(kept, b"kept"))
    assert cache.file_digest(file) == "kept"
    times = os.stat(file)
    file.write_bytes(b"two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert cache.file_digest(file) == hashlib.sha256(b"two").hexdigest()
    for path in kept.parent.iterdir():
        path.write_bytes(b"damaged")
    assert cache.file_digest(file) == hashlib.sha256(b"two").hexdigest()
