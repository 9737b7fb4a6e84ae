# SPDX-License-Identifier: GPL-2.0-or-later
"""What works with a kernel: one experiment for each verb that takes one, as a user would start it.

A cell is OK where the verb does its work and finds what is right for that kernel. A finding of the
verb (lost stores, a stale record) is a cell of its own word, not a failure of the verb.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.load import LOADER, linux_config
from guestemu.kernel.call import call_function
from guestemu.migration.sweep.instants import FetchOrder
from guestemu.migration.sweep.run import SweepRequest, SweepWatcher, run
from guestemu.program.text import parse_text
from guestemu.report.trace.run import run_program
from guestemu.report.trace.words import is_finding, run_word
from guestemu.study.outcomes.cells import FAILED, Cell, Key, Verdict

OK: Final = "ok"
FINDING: Final = "finding"
MEMORY_MIB: Final = 128
CBIT: Final = 39
BUDGET: Final = 20_000_000
EVERY: Final = 500

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


def _in_battery(image: Path) -> Verdict:
    raise InputError(f"{image}: a row of `kernel test`")


class Verb(msgspec.Struct, frozen=True):
    """A column: its name, the name of its cell, and the experiment on the image at a path where the
    battery does not have it."""

    name: str
    key: Key
    measure: Callable[[Path], Verdict] = _in_battery


def guest_of(image: Path) -> LinuxGuest:
    """The kernel in `image` as a SEV guest, booted once."""
    return LOADER.guest(image, linux_config(MEMORY_MIB, CBIT, "sev"), BUDGET)


def _info(image: Path) -> Verdict:
    kernel = LOADER.kernel(image)
    kernel.address("set_memory_decrypted")
    kernel.btf.offset("device.dma_mask")
    return Verdict(OK, f"{len(kernel.symbols)} symbols")


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
        return Verdict(FINDING, f"{word}: {', '.join(checks)}")

    return measure


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
    return Verdict(FINDING if report.lost_defined else OK, detail)


VERBS: Final = (
    Verb("info", Key("", "info"), _info),
    Verb("boot sev", Key("sev", "boot")),
    Verb("boot es", Key("es", "boot")),
    Verb("boot snp", Key("snp", "boot")),
    Verb("boot tdx", Key("tdx", "boot")),
    Verb("call", Key("", "call"), _call),
    Verb("run", Key("", "run"), _run(_CONVERT)),
    Verb("efi", Key("sev", "efi")),
    Verb("kexec", Key("sev", "kexec")),
    Verb("dma", Key("", "dma"), _run(_DMA)),
    Verb("explore", Key("", "explore"), _explore),
)
"""Every column of the table."""


def outcome_of(cell: Cell) -> str:
    """A cell's word in the table of verbs, where the battery says right or wrong: a verb that finds
    a defect of the kernel works."""
    if cell.outcome == "right":
        return OK
    return FINDING if cell.outcome == "wrong" else cell.outcome
