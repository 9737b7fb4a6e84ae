# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu explore kernel-migration` runs, and its report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.sev_firmware import Policy
from guestemu.guest.linux.load import LOADER, linux_config
from guestemu.host.kvm.tdx_map_gpa import TdxKvm
from guestemu.machine.machine import MachineConfig
from guestemu.migration.firmware_link import FirmwareSender
from guestemu.migration.sev_host import SevHost
from guestemu.migration.sweep.connection import connect_firmware, connect_plain
from guestemu.migration.sweep.experiment import GUEST_BUDGET, Connect, Experiment
from guestemu.migration.sweep.handler_path import connect_handler, connect_unbound
from guestemu.migration.sweep.heat import Heat, heat_of
from guestemu.migration.sweep.instants import FetchOrder, SweepPoint, SweepResult, sweep
from guestemu.migration.sweep.scenario import Variant
from guestemu.migration.sweep.tuples import Matrix, visible_instants
from guestemu.migration.sweep.vmsa_link import LEGACY_COMMANDS, VMSA_COMMANDS, kvm_answers

MEMORY_MIB: Final = 128
CBIT: Final = 39
LEAVES: Final = {"4k": (False,), "2m": (True,), "both": (False, True)}
"""Values of --leaf: whether the kernel has to split the page's leaf, for each window."""

PATHS: Final[Mapping[str, Connect]] = {
    "plain": connect_plain,
    "firmware": connect_firmware,
    "handler": connect_handler,
}


class SweepRequest(msgspec.Struct, frozen=True):
    """The options. `leaf` and `path` are keys of `LEAVES` and `PATHS`; `repaired` is about KVM's
    part of a TD's MapGPA."""

    image: Path
    every: int
    path: str
    leaf: str
    order: FetchOrder
    sev: str
    tuples: bool
    there_and_back: bool
    repaired: bool = False

    @property
    def kvm(self) -> TdxKvm:
        """The KVM that leaves a MapGPA between two chunks; `repaired`: it answers retry then."""
        return TdxKvm(name="7.3", is_cut=True, checks_wants_to_run=self.repaired)


class InstructionWindow(msgspec.Struct, frozen=True):
    """The sweep over one window of `instructions`: see `SweepResult`."""

    name: str
    instructions: int
    points: int
    differences: int
    lost_strict: int
    lost_defined: int
    seconds: float
    pages: float
    first: list[SweepPoint]
    heat: tuple[Heat, ...] = ()


class Tuples(msgspec.Struct, frozen=True):
    """One order over all tuples of instants; `undefined` differ in undefined bytes only."""

    tuples: int
    lost: int
    undefined: int
    is_right: bool


class SweepReport(msgspec.Struct):
    """The JSON object. Counts are over all windows; times and rates are of the migrations alone, of
    sweep and matrix; `cpu_seconds` are this process's, the rest of `seconds` it waited for a core.
    `instants` and `matrix` are of the tuples; `kvm` is what KVM's ioctls answered that this
    migration would have needed."""

    version: str
    sev: str
    path: str
    every: int
    order: str
    points: int = 0
    differences: int = 0
    lost_strict: int = 0
    lost_defined: int = 0
    tuples: dict[str, Tuples] = msgspec.field(default_factory=dict)
    migrations_per_second: float = 0.0
    pages_per_migration: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    instants: int = 0
    matrix: int = 0
    windows: list[InstructionWindow] = msgspec.field(default_factory=list)
    kvm: dict[str, str] = msgspec.field(default_factory=dict)
    interrupted: bool = False

    @property
    def is_wrong(self) -> bool:
        """A migrated guest was different or lost stores, or a right order lost some."""
        loses = any(order.lost for order in self.tuples.values() if order.is_right)
        return bool(self.differences or self.lost_defined) or loses


class SweepWatcher:
    """Told of the work as it goes; does nothing by itself. Any method may raise
    KeyboardInterrupt, which ends the run with what was found."""

    def begin(self, name: str, total: int) -> None:
        """`total` migrations follow, of the window or matrix `name`."""

    def before(self) -> None:
        """A migration begins."""

    def after(self) -> None:
        """It has ended."""


def run(request: SweepRequest, watcher: SweepWatcher) -> SweepReport:
    """Does all of it. Raises `InputError` for an image or a configuration that does not boot."""
    config = linux_config(MEMORY_MIB, CBIT, request.sev, coherent=False)
    kernel = LOADER.kernel(request.image)
    report = SweepReport(
        kernel.version, request.sev, request.path, request.every, request.order.value
    )
    if request.sev in {"es", "snp"}:
        report.kvm = _refusals(request.image, config, request.sev)
    if request.sev == "snp":
        return report
    try:
        for split in LEAVES[request.leaf]:
            _sweep(request, config, Variant(split, request.there_and_back), report, watcher)
        if request.sev == "tdx":
            chunked = Variant(round_trip=request.there_and_back, chunked=True)
            _sweep(request, config, chunked, report, watcher)
        if request.tuples:
            _tuples(request, config, report, watcher)
    except KeyboardInterrupt:
        report.interrupted = True
    migrations = report.points + report.matrix
    report.migrations_per_second = migrations / report.seconds if report.seconds else 0.0
    pages = sum(window.pages * window.points for window in report.windows)
    report.pages_per_migration = pages / report.points if report.points else 0.0
    return report


def _sweep(
    request: SweepRequest,
    config: MachineConfig,
    variant: Variant,
    report: SweepReport,
    watcher: SweepWatcher,
) -> None:
    result = SweepResult()
    experiment = Experiment(request.image, config, variant, PATHS[request.path])
    length = experiment.recording.length
    points = (length + request.every - 1) // request.every + len(experiment.cuts())
    watcher.begin(variant.name, points)
    try:
        steps = sweep(experiment, request.every, request.order, result, request.kvm)
        _follow(steps, watcher)
    finally:
        experiment.close()
        report.points += result.points
        report.differences += result.differences
        report.lost_strict += result.lost_strict
        report.lost_defined += result.lost_defined
        report.seconds += result.seconds
        report.cpu_seconds += result.cpu_seconds
        report.windows.append(
            InstructionWindow(
                variant.name,
                length,
                result.points,
                result.differences,
                result.lost_strict,
                result.lost_defined,
                result.seconds,
                result.pages / result.points if result.points else 0.0,
                result.first,
                heat_of(result.tries),
            )
        )


def _tuples(
    request: SweepRequest, config: MachineConfig, report: SweepReport, watcher: SweepWatcher
) -> None:
    variant = Variant(False, request.there_and_back)
    connect = connect_unbound if request.path == "handler" else PATHS[request.path]
    experiment = Experiment(request.image, config, variant, connect)
    matrix = Matrix(experiment, visible_instants(experiment.recording))
    report.instants = len(matrix.instants)
    watcher.begin("matrix of instants", matrix.size)
    try:
        _follow(matrix.run(), watcher)
        for found in matrix.judge_all():
            report.tuples[found.order] = Tuples(
                found.tuples, found.lost, found.undefined, found.is_right
            )
    finally:
        experiment.close()
        report.matrix = len(matrix.arrivals)
        report.seconds += matrix.seconds
        report.cpu_seconds += matrix.cpu_seconds
        report.differences += sum(
            arrival.difference is not None for arrival in matrix.arrivals.values()
        )


def _follow(steps: Iterable[object], watcher: SweepWatcher) -> None:
    """Runs a generator of migrations and reports each to the watcher."""
    iterator = iter(steps)
    done = object()
    while True:
        watcher.before()
        step = next(iterator, done)
        watcher.after()
        if step is done:
            return


def _refusals(image: Path, config: MachineConfig, sev: str) -> dict[str, str]:
    """What KVM says to those ioctls that a guest of this kind would need and does not get."""
    guest = LOADER.guest(image, config, GUEST_BUDGET)
    ram = guest.machine.ram
    if sev == "snp":
        host = SevHost("source", ram, 0)
        host.vm.is_snp = True
        return kvm_answers(host, LEGACY_COMMANDS)
    cipher = ram.cipher
    try:
        sender = FirmwareSender(ram, config.key, Policy.SEV | Policy.ES)
        return kvm_answers(sender.host, VMSA_COMMANDS)
    finally:
        ram.cipher = cipher
