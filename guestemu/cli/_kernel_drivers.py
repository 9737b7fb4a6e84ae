# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel drivers` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.cli import console
from guestemu.cli._kernel_cells import images_of
from guestemu.cli._options import sev_kind

if TYPE_CHECKING:
    from guestemu.kernel.drivers import DriverRun

KINDS: Final = ("sev", "es", "snp", "tdx")
COMMAND: Final = "guestemu kernel drivers"


class DriversReport(msgspec.Struct, frozen=True):
    """The runs, kernel by kernel; `interrupted` by Ctrl-C."""

    runs: tuple[DriverRun, ...]
    interrupted: bool

    @property
    def is_wrong(self) -> bool:
        """Whether a run failed."""
        return any(run.outcome == "failed" for run in self.runs)


def run_drivers(
    names: Sequence[str], kinds: Sequence[str], devices: Sequence[str], repeats: bool
) -> DriversReport:
    """Every kernel (all fetched ones for no name) as each kind. Raises `InputError`,
    `MissingError`."""
    from guestemu.kernel.drivers import try_drivers
    from guestemu.machine.devices import find_device

    for kind in kinds:
        sev_kind(kind)
    for name in devices:
        if not find_device(name).NODE:
            raise InputError(f"--device {name}: it has no file to read from")
    runs: list[DriverRun] = []
    interrupted = False
    try:
        for name, image in images_of(names):
            for kind in kinds or KINDS:
                with console.busy(f"{name} as {kind}"):
                    runs.append(try_drivers(name, image, kind, devices, repeats))
                console.note(f"{name}, {kind}: {runs[-1].summary}")
    except KeyboardInterrupt:
        interrupted = True
    return DriversReport(tuple(runs), interrupted)


def tell(report: DriversReport) -> None:
    """For people."""
    console.emit_table(
        ("kernel", "kind", "drivers"), [(run.kernel, run.sev, run.summary) for run in report.runs]
    )


def write_table(path: Path, report: DriversReport) -> None:
    """Puts the runs into the page's table. Raises `InputError`."""
    from guestemu.study.outcomes.cells import Cell, update

    cells = [
        Cell(
            kernel=run.kernel,
            version=run.version,
            row=run.sev,
            outcome=run.summary,
            detail=run.text,
            kind=run.sev,
        )
        for run in report.runs
    ]
    if cells:
        update(path, COMMAND, cells, KINDS)
