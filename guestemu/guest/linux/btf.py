# SPDX-License-Identifier: GPL-2.0-or-later
"""Structure layouts from the kernel's own .BTF section (Documentation/bpf/btf.rst).

Only what `offset` and `size` need: structures, unions, and the types that lead to them.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.guest.linux.name_table import NameTable, PackedNames, pack_names

_MAGIC: Final = 0xEB9F
_HEADER: Final = struct.Struct("<HBBIIIII")
_TYPE: Final = struct.Struct("<III")
_MEMBER: Final = struct.Struct("<III")

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF = range(1, 9)
_VOLATILE, _CONST, _RESTRICT, _FUNC, _FUNC_PROTO, _VAR, _DATASEC = range(9, 16)
_FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = range(16, 20)

_SIGNED: Final = 1
_KIND_MASK: Final = 0x7F
_COUNT_MASK: Final = 0xFFFFFF
_MAX_DEPTH: Final = 64
_MAX_NAME: Final = 512
_MAX_TYPES: Final = 1 << 20
"""BTF_MAX_TYPE is 0xFFFFF, BTF_MAX_NAME_OFFSET 0xFFFFFF (include/uapi/linux/btf.h)."""

_EXTRA_FIXED: Final = {_INT: 4, _ARRAY: 12, _VAR: 4, _DECL_TAG: 4}
_EXTRA_EACH: Final = {
    _STRUCT: 12,
    _UNION: 12,
    _ENUM: 8,
    _FUNC_PROTO: 8,
    _DATASEC: 12,
    _ENUM64: 12,
}
_TRANSPARENT: Final = frozenset({_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG})


class Prototype(msgspec.Struct, frozen=True):
    """A function's C type: names of its parameters, size of its result in bytes (0: void) and
    whether that is a signed integer."""

    parameters: tuple[str, ...]
    result_size: int
    is_signed: bool


class BtfIndex(msgspec.Struct, frozen=True):
    """Where the types of a section are: 32-bit positions by type number, numbers by name."""

    positions: bytes
    records: PackedNames
    functions: PackedNames


_FIXED_SIZES: Final = {"page": 64}
_FIXED_OFFSETS: Final = {"pt_regs.ip": 128}
"""Layouts that are alike in all kernels, for those without types: `struct page` is made to fill a
cache line, `struct pt_regs` is what the entry code pushes."""


class Btf:
    """The types of one kernel. Type numbers start at 1.

    `data` is the section, `name` the image's name for errors. Raises `InputError` for a section
    that is no BTF.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self._name = name
        if len(data) < _HEADER.size:
            raise InputError(f"{name}: its .BTF section is empty")
        magic, _version, _flags, header, type_at, type_size, string_at, string_size = (
            _HEADER.unpack_from(data)
        )
        if magic != _MAGIC:
            raise InputError(f"{name}: its .BTF section has magic {magic:#x}, not {_MAGIC:#x}")
        self._types = data[header + type_at : header + type_at + type_size]
        self._strings = data[header + string_at : header + string_at + string_size]
        self._positions = array("I", (0,))
        self._records: Mapping[str, int]
        self._functions: Mapping[str, int]
        self._records, self._functions = self._scan()

    @classmethod
    def resume(cls, types: bytes, strings: bytes, index: BtfIndex, name: str) -> Btf:
        """The types of a section that was scanned before: what `sections` and `index` returned."""
        btf = cls.__new__(cls)
        btf._name = name
        btf._types, btf._strings = types, strings
        btf._positions = array("I", index.positions)
        btf._records, btf._functions = NameTable(index.records), NameTable(index.functions)
        return btf

    @classmethod
    def without_types(cls, name: str) -> Btf:
        """Of a kernel that has no .BTF section: the few layouts that are alike in all kernels."""
        nothing = pack_names({})
        return cls.resume(b"", b"", BtfIndex(array("I", (0,)).tobytes(), nothing, nothing), name)

    @property
    def has_types(self) -> bool:
        """Whether the kernel has a .BTF section."""
        return len(self._positions) > 1

    @property
    def sections(self) -> tuple[bytes, bytes]:
        """Types and strings, as in the file."""
        return self._types, self._strings

    @property
    def index(self) -> BtfIndex:
        """What scanning found."""
        names = (pack_names(self._records), pack_names(self._functions))
        return BtfIndex(self._positions.tobytes(), *names)

    def _scan(self) -> tuple[dict[str, int], dict[str, int]]:
        """Numbers of records and of functions by name."""
        records: dict[str, int] = {}
        functions: dict[str, int] = {}
        position = 0
        end = len(self._types)
        while position + _TYPE.size <= end:
            name, info, _size = _TYPE.unpack_from(self._types, position)
            kind = info >> 24 & _KIND_MASK
            if not _INT <= kind <= _ENUM64:
                raise InputError(
                    f"{self._name}: its .BTF section has a type of unknown kind {kind}"
                )
            if kind in {_STRUCT, _UNION} and name:
                records.setdefault(self._string(name), len(self._positions))
            elif kind == _FUNC:
                functions[self._string(name)] = _size
            if len(self._positions) > _MAX_TYPES:
                raise self._damaged()
            self._positions.append(position)
            position += _TYPE.size + _EXTRA_FIXED.get(kind, 0)
            position += _EXTRA_EACH.get(kind, 0) * (info & _COUNT_MASK)
        if position != end:
            raise self._damaged()
        return records, functions

    def _damaged(self) -> InputError:
        return InputError(f"{self._name}: its .BTF section is damaged")

    def _string(self, offset: int) -> str:
        end = self._strings.find(b"\0", offset, offset + _MAX_NAME)
        if end < 0:
            raise self._damaged()
        return self._strings[offset:end].decode("ascii", "replace")

    def _type(self, number: int) -> tuple[int, int, int, int, int]:
        """(kind, member count, kind flag, size or type, position of the members)."""
        if not 0 < number < len(self._positions):
            raise self._damaged()
        position = self._positions[number]
        _name, info, size = _TYPE.unpack_from(self._types, position)
        kind, count = info >> 24 & _KIND_MASK, info & _COUNT_MASK
        return kind, count, info >> 31, size, position + _TYPE.size

    def _resolve(self, number: int) -> int:
        """The type behind typedefs and qualifiers; 0 is void."""
        for _ in range(_MAX_DEPTH):
            if not number:
                return 0
            kind, _count, _flag, target, _at = self._type(number)
            if kind not in _TRANSPARENT:
                return number
            number = target
        raise self._damaged()

    def _member(self, number: int, field: str, seen: set[int]) -> tuple[int, int] | None:
        """Bit offset and resolved type of a member, also of an unnamed inner record; records in
        `seen` do not have it."""
        kind, count, flag, _size, at = self._type(number)
        if kind not in {_STRUCT, _UNION} or number in seen:
            return None
        if len(seen) > _MAX_DEPTH**2:
            raise self._damaged()
        seen.add(number)
        for index in range(count):
            name, target, offset = _MEMBER.unpack_from(self._types, at + _MEMBER.size * index)
            bits = offset & 0xFFFFFF if flag else offset
            if name and self._string(name) == field:
                return bits, self._resolve(target)
            if not name:
                inner = self._member(self._resolve(target), field, seen)
                if inner is not None:
                    return bits + inner[0], inner[1]
        return None

    def _record(self, name: str) -> int:
        number = self._records.get(name)
        if number is None and not self.has_types:
            raise InputError(
                f"{self._name}: this kernel has no layout of struct {name} "
                "(CONFIG_DEBUG_INFO_BTF=y brings it)"
            )
        if number is None:
            raise InputError(f"{self._name}: this kernel has no struct {name}")
        return number

    def prototype(self, function: str) -> Prototype | None:
        """The type of a function; None if the section does not have it."""
        number = self._functions.get(function)
        if number is None:
            return None
        kind, count, _flag, result, at = self._type(number)
        if kind != _FUNC_PROTO:
            raise self._damaged()
        parameters = tuple(
            self._string(struct.unpack_from("<I", self._types, at + 8 * index)[0])
            for index in range(count)
        )
        result = self._resolve(result)
        if not result:
            return Prototype(parameters, 0, False)
        kind, _count, _flag, size, at = self._type(result)
        if kind == _INT:
            (encoding,) = struct.unpack_from("<I", self._types, at)
            return Prototype(parameters, size, bool(encoding >> 24 & _SIGNED))
        return Prototype(parameters, 8 if kind == _PTR else size, False)

    def size(self, name: str) -> int:
        """Bytes of `struct name`."""
        if not self.has_types and name in _FIXED_SIZES:
            return _FIXED_SIZES[name]
        return self._type(self._record(name))[3]

    def offset(self, path: str) -> int:
        """Byte offset of a member: "device.dma_mask", "pv_ops.mmu.x". `InputError` if absent."""
        if not self.has_types and path in _FIXED_OFFSETS:
            return _FIXED_OFFSETS[path]
        record, *fields = path.split(".")
        number = self._record(record)
        bits = 0
        for field in fields:
            found = self._member(number, field, set())
            if found is None:
                raise InputError(f"{self._name}: this kernel has no member {path}")
            bits += found[0]
            number = found[1]
        return bits // 8
