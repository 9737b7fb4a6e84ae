# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel kexec` does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.hypercalls import answer_text, hypercall_text
from guestemu.cli import console

if TYPE_CHECKING:
    from pathlib import Path

    from guestemu.kernel.kexec import KexecMoment, KexecReport, OldKernel

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
    cpus: int
    crashed_cpu: int


def run_kexec(request: KexecRequest) -> KexecReport:
    """Runs it. Raises `InputError`."""
    from guestemu.guest.linux.images import find_image
    from guestemu.guest.linux.load import LOADER, linux_config
    from guestemu.host.permission import named_by_user
    from guestemu.host.registry import load_host
    from guestemu.kernel.arguments import parse_number
    from guestemu.kernel.kexec import OneCpu, kexec_from

    if request.crashed_cpu and not (request.crash and request.cpus > request.crashed_cpu == 1):
        raise InputError(f"--crashed-cpu {request.crashed_cpu}: take 0 or 1, with --crash --cpus 2")
    hole = parse_number(request.hole, "--hole") if request.hole else 0
    host = load_host(request.host, plugin=named_by_user(request.host)[1])
    image = find_image(request.image)
    new = LOADER.kernel(find_image(request.to) if request.to else image)
    config = linux_config(request.memory, request.cbit, request.sev)
    old: OldKernel
    if request.cpus > 1:
        old = _several(image, request)
    else:
        old = OneCpu(LOADER.guest(image, config, _BUDGET))
    return kexec_from(old, new, config, host, hole, request.crash)


def _several(image: Path, request: KexecRequest) -> OldKernel:
    from guestemu.guest.linux.load import LOADER
    from guestemu.guest.linux.userland.session import Setting, Userland
    from guestemu.kernel.kexec_several import SeveralCpus

    setting = Setting(
        sev=request.sev, memory=request.memory, cbit=request.cbit, devices=(), cpus=request.cpus
    )
    return SeveralCpus(Userland(LOADER).start(image, setting), request.crashed_cpu)


def tell(report: KexecReport) -> None:
    """For people."""
    cpus = f" with {report.cpus} CPUs" if report.cpus > 1 else ""
    console.emit(f"{report.old}{cpus} -> {report.new} on {report.host}")
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
    for left in report.vmsas:
        use = "in use: no access to it returns" if left.is_in_use else "in use by no vCPU"
        console.emit(f"  a VMSA is left at GPA {left.gfn << 12:#x}, {use}")
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
