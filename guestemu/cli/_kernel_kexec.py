# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel kexec` does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from guestemu.abi.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from guestemu.kernel.kexec import KexecReport, OldKernel

_BUDGET: Final = 20_000_000


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
