# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel boot` does."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from guestemu.abi.hypercalls import hypercall_text
from guestemu.cli import console
from guestemu.cli.errors import one_line

if TYPE_CHECKING:
    from guestemu.guest.td import Td
    from guestemu.report.document import Document

_ACTIVE = re.compile(r"Memory Encryption Features active: (.*)")


class BootRequest(msgspec.Struct, frozen=True):
    """What to boot and how; `memory` in MiB, `budget` in basic blocks, `command_line` is added;
    `console_ve`: in a TD the console's ports raise #VE like the others."""

    image: str
    until: str
    memory: int
    cbit: int
    sev: str
    command_line: str
    budget: int
    console_ve: bool = False


class BootHypercall(msgspec.Struct, frozen=True):
    """A hypercall of the boot; all are answered 0."""

    nr: int
    args: tuple[int, ...]
    ret: int = 0


class BootReport(msgspec.Struct, frozen=True):
    """A boot that arrived. `active` is what the kernel says is active, None before it says so;
    `migration_control` every value written to the MSR, `console` what the kernel printed: its log,
    as a kernel with PREEMPT_RT has no console before its threads run. `virtualization_exceptions`
    counts the #VEs of a TD by what raised them."""

    version: str
    reached: str
    seconds: float
    sev: str
    active: str | None
    hypercalls: tuple[BootHypercall, ...]
    migration_control: tuple[int, ...]
    console: str
    virtualization_exceptions: dict[str, int]


def boot_image(request: BootRequest, show_console: bool, to_stderr: bool) -> BootReport:
    """Boots. Raises `InputError` where the image, the memory or the way to `until` fails."""
    from guestemu.abi.errors import InputError
    from guestemu.abi.msrs import MSR_KVM_MIGRATION_CONTROL
    from guestemu.events.exits import HypercallExit, WrmsrExit
    from guestemu.guest.linux.boot import (
        DEFAULT_COMMAND_LINE,
        boot_kernel,
        describe_end,
        last_lines,
    )
    from guestemu.guest.linux.images import find_image
    from guestemu.guest.linux.load import LOADER, linux_config
    from guestemu.guest.linux.platform import Console
    from guestemu.guest.linux.printk import KernelLog
    from guestemu.guest.linux.recorder import BootRecorder
    from guestemu.machine.exits import Trap

    config = linux_config(request.memory, request.cbit, request.sev)
    kernel = LOADER.kernel(find_image(request.image))
    recorder = BootRecorder()
    say = console.note if to_stderr else console.emit
    lines: Callable[[str], None] | None = say if show_console else None
    booted = boot_kernel(
        kernel,
        config,
        recorder,
        until=request.until,
        command_line=f"{DEFAULT_COMMAND_LINE} {request.command_line}".strip(),
        console=Console(lines, request.console_ve),
        budget=request.budget,
    )
    ending = describe_end(booted)
    if not isinstance(booted.end, Trap):
        for line in () if show_console else last_lines(booted):
            console.note(f"| {one_line(line)}")
        raise InputError(f"{kernel.name}: did not reach {request.until}: {ending}")
    log = KernelLog(kernel, booted.machine.ram)
    text = "\n".join(record.text for record in log.records()) or booted.console.text
    active = _ACTIVE.search(text)
    return BootReport(
        version=kernel.version,
        reached=request.until,
        seconds=round(booted.seconds, 3),
        sev=request.sev,
        active=active[1].strip() if active else None,
        hypercalls=tuple(
            BootHypercall(told.nr, told.args)
            for told in recorder.exits
            if isinstance(told, HypercallExit)
        ),
        migration_control=tuple(
            told.args[0]
            for told in recorder.exits
            if isinstance(told, WrmsrExit) and told.nr == MSR_KVM_MIGRATION_CONTROL
        ),
        console=text,
        virtualization_exceptions=exceptions_of(booted.platform.td),
    )


def exceptions_of(td: Td | None) -> dict[str, int]:
    """#VEs of instructions, by what raised them."""
    from guestemu.abi.tdx import Vmcall

    return {} if td is None else {Vmcall(kind).name: td.reflected[kind] for kind in td.reflected}


def document(report: BootReport) -> Document:
    """For people."""
    from guestemu.kernel.document import shown
    from guestemu.report.document import Document, Paragraph

    calls = [hypercall_text(call.nr, call.args) for call in report.hypercalls]
    written = ", ".join(f"{value:#x}" for value in report.migration_control) or "not written"
    lines = [
        f"memory encryption: {report.active or 'not announced yet'}",
        *shown(calls, " hypercalls"),
        f"MIGRATION_CONTROL: {written}",
    ]
    if report.virtualization_exceptions:
        lines.append(exceptions_text(report.virtualization_exceptions))
    title = f"{report.version}: reached {report.reached} in {report.seconds} s"
    return Document(title, lead=tuple(map(Paragraph, lines)))


def exceptions_text(counts: Mapping[str, int]) -> str:
    """#VEs in one line."""
    return f"#VE: {', '.join(f'{name} {count}' for name, count in counts.items())}"
