# SPDX-License-Identifier: GPL-2.0-or-later
"""ACPI tables that name a PC's CPUs, and nothing else (ACPI 6.5, chapter 5).

Behind them lies a page for starting CPUs: the mailbox of a TD's multiprocessor wakeup structure, or
the AP jump table of a SEV-ES guest. e820 says ACPI NVS of it: a kernel maps that as private, as
firmware wrote it, while a mapping of a reserved range is shared (__ioremap_check_encrypted()).

A kernel without CONFIG_X86_MPPARSE finds its CPUs in the MADT only (fact U30). RSDP, XSDT, FADT,
FACS, MADT and a DSDT without code are enough for 6.1 to 7.3; there is no I/O APIC.
"""

from __future__ import annotations

import struct
from typing import Final

AT: Final = 0xE0000
"""The tables' page. An encrypted guest maps memory that e820 calls ACPI's as private."""

SIZE: Final = 0x1000
MAILBOX: Final = AT + SIZE
"""The page for starting CPUs."""

PM_CONTROL: Final = 0x604
PM_PORTS: Final = range(0x600, 0x606)
"""Event (4 bytes) and control (2 bytes) registers of power management."""

SCI_ENABLED: Final = 1
"""What `PM_CONTROL` reads; the event registers read 0."""

_XSDT, _DSDT, _FACS, _FADT, _MADT = 0x100, 0x300, 0x400, 0x500, 0x700
_SCI: Final = 9
_LOCAL_APICS: Final = 0xFEE00000
_HAS_8259S: Final = 1
_LEGACY_DEVICES: Final = 3
_FIXED_FLAGS: Final = 1 << 0 | 1 << 4 | 1 << 5 | 1 << 8
"""WBINVD works; no power and no sleep button; a 32-bit timer, which is absent."""

_WAKEUP: Final = 0x10
"""Type of the multiprocessor wakeup structure (5.2.12.19)."""

_HEADER: Final = struct.Struct("<4sIBB6s8sI4sI")
_OEM: Final = b"GSTEMU"
_MAKER: Final = (_OEM, b"GUESTEMU", 1, b"GEMU", 1)
_ROOT_SIZE: Final = 36
_FADT_SIZE: Final = 244


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    size = _HEADER.size + len(body)
    head = _HEADER.pack(signature, size, revision, 0, *_MAKER)
    table = bytearray(head + body)
    table[9] = _checksum(table)
    return bytes(table)


def _fadt() -> bytes:
    body = bytearray(_FADT_SIZE - _HEADER.size)
    for offset, form, value in (
        (36, "<I", AT + _FACS),
        (40, "<I", AT + _DSDT),
        (46, "<H", _SCI),
        (56, "<I", PM_PORTS.start),
        (64, "<I", PM_CONTROL),
        (88, "<B", 4),
        (89, "<B", 2),
        (109, "<H", _LEGACY_DEVICES),
        (112, "<I", _FIXED_FLAGS),
        (140, "<Q", AT + _DSDT),
    ):
        struct.pack_into(form, body, offset - _HEADER.size, value)
    return _table(b"FACP", 3, bytes(body))


def acpi_tables(cpus: int, has_mailbox: bool = False) -> bytes:
    """The page at `AT` for CPUs with the APIC IDs 0 to `cpus` - 1; with `has_mailbox` they are
    started by the mailbox at `MAILBOX`, version 0: once each."""
    page = bytearray(SIZE)
    apics = b"".join(struct.pack("<BBBBI", 0, 8, index, index, 1) for index in range(cpus))
    if has_mailbox:
        apics += struct.pack("<BBHIQ", _WAKEUP, 16, 0, 0, MAILBOX)
    for at, table in (
        (_XSDT, _table(b"XSDT", 1, struct.pack("<QQ", AT + _FADT, AT + _MADT))),
        (_DSDT, _table(b"DSDT", 2, b"")),
        (_FACS, struct.pack("<4sI", b"FACS", 64).ljust(64, b"\0")),
        (_FADT, _fadt()),
        (_MADT, _table(b"APIC", 3, struct.pack("<II", _LOCAL_APICS, _HAS_8259S) + apics)),
    ):
        page[at : at + len(table)] = table
    root = bytearray(_ROOT_SIZE)
    root[:16] = b"RSD PTR \0" + _OEM + b"\2"
    struct.pack_into("<I", root, 20, _ROOT_SIZE)
    struct.pack_into("<Q", root, 24, AT + _XSDT)
    root[8] = _checksum(root[:20])
    root[32] = _checksum(root)
    page[: len(root)] = root
    return bytes(page)
