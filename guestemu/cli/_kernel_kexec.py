# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel kexec` does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from guestemu.abi.hypercalls import answer_text, hypercall_text
from guestemu.cli import console

if TYPE_CHECKING:
    from guestemu.kernel.kexec import KexecMoment, KexecReport

_BUDGET: Final = 20_000_000
_MAX_LINES: Final = 16


class KexecRequest(msgspec.Struct, frozen=True):
    """What to boot, over what; `memory` in MiB, `hole` an address as text or ""."""

    image: str
    to: str
    memory: int
    cbit: int
    sev: str
    host: str
    hole: str
    crash: bool


def run_kexec(request: KexecRequest) -> KexecReport:
    """Runs it. Raises `InputError`."""
    from guestemu.guest.linux.images import find_image
    from guestemu.guest.linux.load import LOADER, linux_config
    from guestemu.host.permission import named_by_user
    from guestemu.host.registry import load_host
    from guestemu.kernel.arguments import parse_number
    from guestemu.kernel.kexec import kexec

    hole = parse_number(request.hole, "--hole") if request.hole else 0
    host = load_host(request.host, plugin=named_by_user(request.host)[1])
    image = find_image(request.image)
    new = LOADER.kernel(find_image(request.to) if request.to else image)
    config = linux_config(request.memory, request.cbit, request.sev)
    return kexec(LOADER.guest(image, config, _BUDGET), new, host, hole, request.crash)


def tell(report: KexecReport) -> None:
    """For people."""
    console.emit(f"{report.old} -> {report.new} on {report.host}")
    for name, moment in (
        ("the old kernel runs", report.running),
        ("jump", report.at_jump),
        ("first hypercall of the new kernel", report.before_reset),
        ("the new kernel runs", report.after),
    ):
        console.emit(f"  {name}: {_moment(moment)}")
    written = ", ".join(f"{value:#x}" for value in report.msr) or "not written"
    console.emit(f"  MIGRATION_CONTROL: {written}")
    for call in report.refused[:_MAX_LINES]:
        console.emit(f"  {hypercall_text(call.nr, call.args)} -> {answer_text(call.ret)}")
    for what, runs in (("stale", report.stale), ("missing", report.missing)):
        for first, pages in runs[:_MAX_LINES]:
            console.emit(f"  {what}: {pages} pages from GPA {first << 12:#x} on, {_MEANING[what]}")
        if len(runs) > _MAX_LINES:
            console.emit(f"  and {len(runs) - _MAX_LINES} more; --json lists them")
    for first, pages in report.unusable[:_MAX_LINES]:
        console.emit(f"  unusable: {pages} pages from GPA {first << 12:#x} on, {_NOT_THE_GUESTS}")
    if report.unshared:
        console.emit("  the old kernel made its memory private before the jump")
    console.emit(f"  the new kernel: {report.end}")
    if report.has_booted and not report.stale and not report.missing:
        console.emit("  the host's record agrees with the new kernel's page tables")


_NOT_THE_GUESTS: Final = "mapped private and not validated or accepted"
_MEANING: Final = {
    "stale": "shared for the host, private in the guest",
    "missing": "private for the host, shared in the guest",
}


def _moment(moment: KexecMoment) -> str:
    ready = "may migrate" if moment.migration_ready else "may not migrate"
    return f"the host has {moment.shared} pages as shared and {ready}"
