# SPDX-License-Identifier: GPL-2.0-or-later
"""The ACPI tables that name CPUs: checksums, and what leads to what."""

from __future__ import annotations

import struct

from guestemu.guest.linux.acpi import AT, MAILBOX, acpi_tables


def table(page, address):
    at = address - AT
    (size,) = struct.unpack_from("<I", page, at + 4)
    return page[at : at + size]


def test_the_root_leads_to_every_cpu():
    page = acpi_tables(3)
    assert page[:8] == b"RSD PTR "
    assert sum(page[:20]) % 256 == sum(page[:36]) % 256 == 0
    (address,) = struct.unpack_from("<Q", page, 24)
    root = table(page, address)
    found = {}
    for (entry,) in struct.iter_unpack("<Q", root[36:]):
        part = table(page, entry)
        found[part[:4]] = part
    (code,) = struct.unpack_from("<I", found[b"FACP"], 40)
    tables = [root, *found.values(), table(page, code)]
    assert [part[:4] for part in tables] == [b"XSDT", b"FACP", b"APIC", b"DSDT"]
    assert all(sum(part) % 256 == 0 for part in tables)
    cpus = list(struct.iter_unpack("<BBBBI", found[b"APIC"][44:]))
    assert cpus == [(0, 8, index, index, 1) for index in range(3)]


def test_a_td_finds_the_mailbox_that_starts_its_cpus():
    """Multiprocessor wakeup structure: type 16, 16 bytes, version 0, the mailbox's address (ACPI
    6.5, 5.2.12.19)."""
    page = acpi_tables(2, has_mailbox=True)
    at = page.index(b"APIC")
    (length,) = struct.unpack_from("<I", page, at + 4)
    assert sum(page[at : at + length]) % 256 == 0
    wakeup = struct.unpack("<BBHIQ", page[at + length - 16 : at + length])
    assert wakeup == (16, 16, 0, 0, MAILBOX)
