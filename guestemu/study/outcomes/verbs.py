# SPDX-License-Identifier: GPL-2.0-or-later
"""What works with a kernel: one experiment for each verb that takes one, as a user would start it.

A cell is OK where the verb does its work and finds what is right for that kernel. A finding of the
verb (lost stores, a stale record) is a cell of its own word, not a failure of the verb.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.guest.linux.boot import boot_kernel, describe_end
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.load import LOADER, linux_config
from guestemu.guest.linux.printk import KernelLog
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.host.registry import load_host
from guestemu.kernel.call import call_function
from guestemu.kernel.efi import Variable, efi_opt_in
from guestemu.kernel.kexec import kexec
from guestemu.machine.exits import Trap
from guestemu.migration.sweep.instants import FetchOrder
from guestemu.migration.sweep.run import SweepRequest, SweepWatcher, run
from guestemu.program.text import parse_text
from guestemu.report.trace.run import run_program
from guestemu.report.trace.words import is_finding, run_word
from guestemu.study.outcomes.cells import ABSENT, FAILED, Verdict

OK: Final = "ok"
MEMORY_MIB: Final = 128
CBIT: Final = 39
BUDGET: Final = 20_000_000
EVERY: Final = 500

_ACTIVE: Final = re.compile(r"Memory Encryption Features active:\s*(.*)")
_ANNOUNCED: Final = {"sev": "SEV", "es": "SEV-ES", "snp": "SEV-SNP"}
_CONVERT: Final = """\
guestemu-program 1
guest linux:{image}
---
set_memory_decrypted D[3] pages=4
set_memory_encrypted D[3] pages=4
"""
_DMA: Final = """\
guestemu-program 1
guest linux:{image}
---
dma_alloc slot=0 size=9000 atomic=0
dma_free slot=0
dma_alloc slot=1 size=4096 atomic=1
dma_free slot=1
"""


class Verb(msgspec.Struct, frozen=True):
    """A column: its name, and the experiment on the image at a path."""

    name: str
    measure: Callable[[Path], Verdict]


def guest_of(image: Path) -> LinuxGuest:
    """The kernel in `image` as a SEV guest, booted once."""
    return LOADER.guest(image, linux_config(MEMORY_MIB, CBIT, "sev"), BUDGET)


def _info(image: Path) -> Verdict:
    kernel = LOADER.kernel(image)
    kernel.address("set_memory_decrypted")
    kernel.btf.offset("device.dma_mask")
    return Verdict(OK, f"{len(kernel.symbols)} symbols")


def _boot_sev(image: Path) -> Verdict:
    """The guest that the other verbs use, up to rest_init and on to its regions."""
    guest = guest_of(image)
    guest.reset()
    return _announced(KernelLog(guest.kernel, guest.machine.ram), "sev")


def _boot(sev: str) -> Callable[[Path], Verdict]:
    def measure(image: Path) -> Verdict:
        kernel = LOADER.kernel(image)
        booted = boot_kernel(kernel, linux_config(MEMORY_MIB, CBIT, sev), BootRecorder())
        try:
            if not isinstance(booted.end, Trap):
                return Verdict(FAILED, describe_end(booted, "rest_init"))
            return _announced(KernelLog(kernel, booted.machine.ram), sev)
        finally:
            booted.machine.close()

    return measure


def _announced(log: KernelLog, sev: str) -> Verdict:
    """Whether the kernel says that this kind of encryption is active."""
    found = _ACTIVE.search("\n".join(record.text for record in log.records()))
    active = found[1].strip() if found else "nothing"
    outcome = OK if _ANNOUNCED[sev] in active.split() else ABSENT
    return Verdict(outcome, f"the kernel announces {active}")


def _call(image: Path) -> Verdict:
    report = call_function(guest_of(image), "set_memory_decrypted", ("page:0", "1"))
    pages = sum(leaf.pages for leaf in report.ptes)
    detail = f"{pages} page shared, {len(report.hypercalls)} hypercalls"
    is_right = report.returned == 0 and pages == 1 and not report.warnings
    return Verdict(OK if is_right else FAILED, detail)


def _run(text: str) -> Callable[[Path], Verdict]:
    def measure(image: Path) -> Verdict:
        program = parse_text(text.format(image=image), str(image))
        finished = run_program(program)
        word = run_word(finished)
        if not is_finding(word):
            return Verdict(OK, word)
        violations = finished.outcome.violations
        checks = sorted({violation.check for violation in violations})
        return Verdict("finding", f"{word}: {', '.join(checks)}")

    return measure


def _efi(image: Path) -> Verdict:
    guest = guest_of(image)
    written = {value: efi_opt_in(guest, value).migration_control for value in Variable}
    opted_in = [value.value for value, msrs in written.items() if msrs == (1,)]
    is_right = opted_in == [Variable.ONE.value]
    return Verdict(OK if is_right else FAILED, f"opts in by {', '.join(opted_in) or 'nothing'}")


def _kexec(image: Path) -> Verdict:
    guest = guest_of(image)
    report = kexec(guest, guest.kernel, load_host("map-gpa-range"))
    if report.stale or report.missing:
        return Verdict("finding", f"{report.stale_pages} pages stale")
    return Verdict(OK, f"{report.running.shared} pages shared before, none stale")


def _explore(image: Path) -> Verdict:
    request = SweepRequest(
        image, EVERY, "plain", "both", FetchOrder.DIRTY_FIRST, "sev", False, False
    )
    report = run(request, SweepWatcher())
    detail = (
        f"{report.points} migrations, {report.differences} guests differ, "
        f"{report.lost_defined} lose stores"
    )
    if report.differences:
        return Verdict(FAILED, detail)
    return Verdict("finding" if report.lost_defined else OK, detail)


VERBS: Final = (
    Verb("info", _info),
    Verb("boot sev", _boot_sev),
    Verb("boot es", _boot("es")),
    Verb("boot snp", _boot("snp")),
    Verb("call", _call),
    Verb("run", _run(_CONVERT)),
    Verb("efi", _efi),
    Verb("kexec", _kexec),
    Verb("dma", _run(_DMA)),
    Verb("explore", _explore),
)
"""Every column of the table."""


def release(image: Path) -> str:
    """The kernel's own name for its version. Raises `InputError`."""
    version = LOADER.kernel(image).version
    if not version:
        raise InputError(f"{image}: has no version")
    return version
