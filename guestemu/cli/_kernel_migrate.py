# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel migrate` does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.names import nearest, plural
from guestemu.cli import console

if TYPE_CHECKING:
    from guestemu.kernel.device_migration import DeviceMigration
    from guestemu.report.document import Document


class MigrateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to migrate: `points` (none: all), `commands` of PID 1 (none: a read of each device),
    `host` the source's, `lose` the page that its record misses; `memory` in MiB."""

    image: str
    sev: str
    cpus: int
    memory: int
    cbit: int
    devices: tuple[str, ...]
    points: tuple[str, ...]
    commands: tuple[str, ...]
    host: str
    lose: str


class MigrateReport(msgspec.Struct, frozen=True, kw_only=True):
    """All migrations, device by device; `seconds` of CPU time behind the start."""

    version: str
    sev: str
    host: str
    lose: str
    seconds: float
    migrations: tuple[DeviceMigration, ...]
    interrupted: bool

    @property
    def is_wrong(self) -> bool:
        """Whether a migration lost something, or did not take place."""
        return any(migration.is_wrong for migration in self.migrations)


def run_migrate(request: MigrateRequest) -> MigrateReport:
    """Runs the migrations; Ctrl-C ends them early. Raises `InputError`."""
    from guestemu.guest.linux.images import find_image
    from guestemu.guest.linux.load import LOADER
    from guestemu.guest.linux.userland.session import Setting, Userland
    from guestemu.host.permission import named_by_user
    from guestemu.host.registry import load_host
    from guestemu.kernel.device_migration import LOSABLE, DeviceMigrations
    from guestemu.machine.devices.quiesce import POINTS

    for name in request.points:
        if name not in POINTS:
            raise InputError(f"--at {name}: {nearest(name, POINTS)}")
    if request.lose and request.lose not in LOSABLE:
        raise InputError(f"--lose {request.lose}: {nearest(request.lose, LOSABLE)}")
    setting = Setting(
        sev=request.sev,
        cpus=request.cpus,
        memory=request.memory,
        cbit=request.cbit,
        devices=request.devices,
    )
    host = load_host(request.host, plugin=named_by_user(request.host)[1])
    with console.busy("booting"):
        migrations = DeviceMigrations(
            Userland(LOADER), find_image(request.image), setting, host, request.lose
        )
    start = time.process_time()
    done: list[DeviceMigration] = []
    interrupted = False
    try:
        with console.busy("migrating"):
            for device in request.devices:
                points = request.points or tuple(POINTS)
                done.extend(migrations.migrate(device, at, request.commands) for at in points)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        migrations.close()
    return MigrateReport(
        version=migrations.source.kernel.version,
        sev=request.sev,
        host=request.host,
        lose=request.lose,
        seconds=round(time.process_time() - start, 3),
        migrations=tuple(done),
        interrupted=interrupted,
    )


def document(report: MigrateReport) -> Document:
    """For people."""
    from guestemu.kernel.document import shown
    from guestemu.report.document import Bullets, Document, Grid, Item

    head = ("device", "at", "stopped in", "private", "shared", "not done yet", "outcome")
    rows = tuple(
        (
            *(one.device, one.point, one.function, one.private, one.shared),
            *(one.held or "-", one.outcome),
        )
        for one in report.migrations
    )
    wrong = (
        Item(
            f"{one.device}, {one.point}: {one.outcome}: {one.text}",
            (Bullets(tuple(shown([*(page.text for page in one.lost), *one.violations], ""))),),
            indent=0,
        )
        for one in report.migrations
        if one.is_wrong
    )
    missed = f", its record misses a page of {report.lose}" if report.lose else ""
    return Document(
        f"{report.version}, {report.sev}, from {report.host}{missed}: "
        f"{plural(len(report.migrations), 'migration')} in {report.seconds} s of CPU time",
        lead=(Grid(head, rows), *wrong),
    )
