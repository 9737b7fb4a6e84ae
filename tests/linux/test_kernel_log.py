# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's messages are read from its own log, its warnings with their text."""

from __future__ import annotations

import re

import pytest

from guestemu.abi.regions import Region
from guestemu.guest.linux.printk import KernelLog, warnings_of
from tests.linux.conftest import Bench


def test_the_log_has_what_the_console_printed(kernel: Bench) -> None:
    guest = kernel.guest
    log = KernelLog(guest.kernel, guest.machine.ram)

    records = log.records()

    assert [record.number for record in records] == list(range(len(records)))
    assert records[0].text.startswith("Linux version ")
    stamp = re.compile(r"^\[ *[0-9.]+\] ")
    printed = [stamp.sub("", line).rstrip() for line in guest.console.text.splitlines()]
    for record in records:
        for line in record.text.splitlines():
            assert line.rstrip() in printed


def test_only_what_a_call_printed_is_its_own(kernel: Bench) -> None:
    guest = kernel.guest
    assert guest.call("set_memory_decrypted", kernel.gva(Region.D, 0) + 5, 1).warnings
    assert any("Call Trace:" in line for line in guest.calls.lines)
    assert guest.call("set_memory_decrypted", kernel.gva(Region.D, 0), 1).warnings == ()
    assert guest.calls.lines == []
    guest.reset()
    assert guest.call("set_memory_decrypted", kernel.gva(Region.D, 0) + 5, 1).warnings


def test_a_warning_carries_the_kernel_s_own_text(kernel: Bench) -> None:
    guest = kernel.guest
    address = kernel.gva(Region.D, 0) + 5
    [warning] = guest.call("set_memory_decrypted", address, 1).warnings
    assert "__set_memory_enc_pgtable+0x" in warning
    assert warning.endswith(f": misaligned address: {address:#x}")


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["WARNING: CPU: 0 PID: 0 at a.c:1 f+0x1/0x2"], ("CPU: 0 PID: 0 at a.c:1 f+0x1/0x2",)),
        (
            ["------------[ cut here ]------------", "bad thing", "WARNING: a.c:1 at f+0x1/0x2"],
            ("a.c:1 at f+0x1/0x2: bad thing",),
        ),
        (["------------[ cut here ]------------", "kernel BUG at a.c:1!"], ()),
    ],
)
def test_warnings_of_lines(lines: list[str], found: tuple[str, ...]) -> None:
    assert warnings_of(lines) == found
