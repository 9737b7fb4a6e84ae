# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel run` does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from guestemu.abi.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from guestemu.events.devices import DeviceViolation
    from guestemu.events.exits import HypercallExit
    from guestemu.guest.linux.userland.running import Ended, RunningKernel
    from guestemu.guest.linux.userland.session import DeviceRead
    from guestemu.report.document import Document

_TEXT: Final = "text:"
_SHOWN: Final = 32
_MAX_FILE: Final = 1 << 26


class RunRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to run; `memory` in MiB, `until` a kernel function or "text:TEXT", `workload` a file of
    commands, `budget` in basic blocks."""

    image: str
    sev: str
    cpus: int
    memory: int
    cbit: int
    devices: tuple[str, ...]
    append: str
    commands: tuple[str, ...]
    workload: Path | None
    init: Path | None
    initrd: Path | None
    until: str
    modules: Path | None
    is_cold: bool
    budget: int


class RanCommand(msgspec.Struct, frozen=True):
    """A command of PID 1 and its result: what the last system call returned (negative: an errno);
    `data` the first bytes that were read, in hexadecimal."""

    command: str
    value: int
    data: str


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """A run. `reached` says how it ended; `seconds` of CPU time; `restored` that it began from a
    snapshot in user space; `conversions` are pages whose status the host was told; `accesses` are
    those of devices to memory; `traps` MMIO accesses by #VC or #VE, `virtualization_exceptions`
    the other #VEs of a TD by what raised them; `cpus` are on at the end and
    have sent `ipis` interprocessor interrupts, `messages` are those of each device to each CPU by
    MSI-X. `mappings` counts the kernel's own dma:* events by
    name; `rules` the accesses that each rule was applied to (userland/rules.py) and `violations`
    are those that broke one."""

    version: str
    sev: str
    cpus: int
    ipis: int
    reached: str
    seconds: float
    restored: bool
    blocks: int
    syscalls: int
    interrupts: int
    traps: int
    virtualization_exceptions: dict[str, int]
    hypercalls: int
    conversions: int
    accesses: int
    messages: dict[str, list[int]]
    mappings: dict[str, int]
    rules: dict[str, int]
    violations: tuple[DeviceViolation, ...]
    reads: tuple[DeviceRead, ...]
    commands: tuple[RanCommand, ...]
    event_hash: str
    console: str

    @property
    def is_wrong(self) -> bool:
        """Whether a driver read something that its device does not hold, or a rule was broken."""
        return bool(self.violations) or not all(read.is_right for read in self.reads)


def run_kernel(request: RunRequest, on_line: Callable[[str], None] | None) -> RunReport:
    """Runs it. Raises `InputError`, also where the kernel does not get where it should."""
    from guestemu.guest.linux.images import find_image

    image = find_image(request.image)
    commands = (
        *(read_commands(request.workload) if request.workload is not None else ()),
        *request.commands,
    )
    if request.init is not None or request.initrd is not None or request.until:
        if commands:
            raise InputError("--command and --workload: without --init, --initrd and --until only")
        return _run_own(request, image, on_line)
    return _run_commands(request, image, commands, on_line)


def read_commands(workload: Path) -> tuple[str, ...]:
    """The commands in a file: one a line, `#` begins a comment. Raises `InputError`."""
    text = _read(workload).decode("utf-8", "replace")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    found = tuple(line for line in lines if line)
    if not found:
        raise InputError(f"{workload}: no command; write one a line, such as `read /dev/vda 512`")
    return found


def _read(path: Path) -> bytes:
    from guestemu.abi.files import read_regular

    try:
        return read_regular(path, _MAX_FILE)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _run_commands(
    request: RunRequest,
    image: Path,
    commands: tuple[str, ...],
    on_line: Callable[[str], None] | None,
) -> RunReport:
    from guestemu.guest.linux.load import LOADER
    from guestemu.guest.linux.userland.running import CommandFailed
    from guestemu.guest.linux.userland.session import Setting, Userland, read_device

    setting = Setting(
        sev=request.sev,
        cpus=request.cpus,
        memory=request.memory,
        cbit=request.cbit,
        devices=request.devices,
        append=request.append,
        modules=str(request.modules or ""),
    )
    start = time.process_time()
    userland = Userland(LOADER, on_line)
    running = userland.start(image, setting, request.is_cold)
    if userland.was_restored and on_line is not None:
        for line in running.console.text.splitlines():
            on_line(line)
    try:
        ran = tuple(_ran(running, command, request.budget) for command in commands)
        names = () if commands else request.devices
        reads = tuple(read_device(running, name) for name in names)
    except CommandFailed as failed:
        raise InputError(f"{image.name}: {failed}") from None
    return _report(
        request,
        running,
        "user space",
        time.process_time() - start,
        reads=reads,
        commands=ran,
        restored=userland.was_restored,
    )


def _ran(running: RunningKernel, command: str, budget: int) -> RanCommand:
    result = running.command(command, budget)
    return RanCommand(command, result.value, result.data[:_SHOWN].hex())


def _run_own(request: RunRequest, image: Path, on_line: Callable[[str], None] | None) -> RunReport:
    """A user's own PID 1 or initramfs, or a stop before user space."""
    from guestemu.guest.linux.load import LOADER, linux_config
    from guestemu.guest.linux.userland.cpus import with_cpus
    from guestemu.guest.linux.userland.initramfs import make_initramfs
    from guestemu.guest.linux.userland.running import RunningKernel, command_line
    from guestemu.native import guest_program
    from guestemu.native.build import INIT

    if request.init is not None and request.initrd is not None:
        raise InputError("--init and --initrd: give one of them")
    if request.initrd is not None:
        initramfs = _read(request.initrd)
    else:
        init = guest_program(INIT) if request.init is None else _read(request.init)
        initramfs = make_initramfs(init, {})
    start = time.process_time()
    kernel = LOADER.kernel(image)
    running = RunningKernel(
        kernel,
        with_cpus(linux_config(request.memory, request.cbit, request.sev), request.cpus),
        initramfs,
        devices=request.devices,
        command_line=command_line(
            kernel, request.sev, request.append, request.cpus, request.devices
        ),
        on_line=on_line,
    )
    text = request.until.removeprefix(_TEXT)
    is_text = text != request.until
    if request.until and not is_text:
        running.stop_at(request.until)
    until = (lambda: text in running.console.text) if is_text else None
    ended = running.run(request.budget, until)
    if not _is_arrival(ended, request.until):
        raise InputError(f"{image.name}: did not reach {request.until or 'an end'}: {ended.text}")
    reached = request.until if ended.reason == "until" else ended.text
    return _report(request, running, reached, time.process_time() - start)


def _is_arrival(ended: Ended, until: str) -> bool:
    """Whether a run ended as it was asked to: at `until`, else where PID 1 halted or waits."""
    return ended.reason in ({"until"} if until else {"halted", "idle"})


def _report(
    request: RunRequest,
    running: RunningKernel,
    reached: str,
    seconds: float,
    reads: tuple[DeviceRead, ...] = (),
    commands: tuple[RanCommand, ...] = (),
    restored: bool = False,
) -> RunReport:
    from guestemu.cli._kernel_boot import exceptions_of
    from guestemu.events.exits import HypercallExit

    cpus, apics = running.hardware.cpus, running.hardware.apics
    calls = [told for told in running.recorder.exits if isinstance(told, HypercallExit)]
    return RunReport(
        version=running.kernel.version,
        sev=request.sev,
        cpus=1 if cpus is None else cpus.online,
        ipis=0 if apics is None else apics.state.sent,
        reached=reached,
        seconds=round(seconds, 3),
        restored=restored,
        blocks=running.blocks,
        syscalls=running.syscalls,
        interrupts=running.interrupts,
        traps=running.traps,
        virtualization_exceptions=exceptions_of(running.platform.td),
        hypercalls=len(calls),
        conversions=_conversions(calls),
        accesses=running.accesses,
        messages=running.messages,
        mappings=running.mappings.counts,
        rules=running.rules.checked,
        violations=tuple(running.rules.violations),
        reads=reads,
        commands=commands,
        event_hash=running.event_hash,
        console=running.console.text,
    )


def _conversions(calls: Sequence[HypercallExit]) -> int:
    """Pages whose status the host changed; all are private at first."""
    from guestemu.abi.addresses import PAGE_SHIFT
    from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED

    shared: set[int] = set()
    changes = 0
    for call in calls:
        if call.nr != KVM_HC_MAP_GPA_RANGE:
            continue
        gpa, pages, attributes, _ = call.args
        if attributes & MAP_GPA_RANGE_ENCRYPTED:
            before = len(shared)
            first = gpa >> PAGE_SHIFT
            shared = {gfn for gfn in shared if not first <= gfn < first + pages}
            changes += before - len(shared)
        else:
            before = len(shared)
            shared.update(range(gpa >> PAGE_SHIFT, (gpa >> PAGE_SHIFT) + pages))
            changes += len(shared) - before
    return changes


def document(report: RunReport) -> Document:
    """For people."""
    from guestemu.report.document import Document, Paragraph

    how = "from a snapshot" if report.restored else "booted"
    return Document(
        f"{report.version}, {report.sev}: {report.reached} in {report.seconds} s of CPU time, "
        f"{how}",
        lead=tuple(map(Paragraph, (*_counts(report), *_results(report)))),
    )


def _counts(report: RunReport) -> Iterator[str]:
    from guestemu.cli._kernel_boot import exceptions_text

    yield (
        f"{report.blocks} basic blocks, {report.syscalls} system calls, "
        f"{report.interrupts} interrupts, {report.traps} trapped MMIO accesses"
    )
    if report.virtualization_exceptions:
        yield exceptions_text(report.virtualization_exceptions)
    if report.cpus > 1 or report.ipis:
        yield f"{report.cpus} CPUs on, {report.ipis} interprocessor interrupts"
    yield (
        f"{report.hypercalls} hypercalls, {report.conversions} pages converted, "
        f"{report.accesses} accesses of devices"
    )
    for device, messages in report.messages.items():
        each = ", ".join(f"CPU {index}: {count}" for index, count in enumerate(messages))
        yield f"interrupts of {device} by MSI-X: {each}"
    applied = ", ".join(f"{rule} {count}" for rule, count in report.rules.items() if count)
    yield f"checked accesses: {applied or 'none'}"


def _results(report: RunReport) -> Iterator[str]:
    from guestemu.kernel.document import shown

    broken = [f"{violation.rule}: {violation.text}" for violation in report.violations]
    yield from shown(broken, "")
    for read in report.reads:
        if read.error:
            what = f"errno {read.error}"
        else:
            what = "what the device holds" if read.is_right else "NOT what the device holds"
        yield f"read {read.size} bytes from {read.node} ({read.device}): {what}"
    for command in report.commands:
        data = f": {command.data}" if command.data else ""
        yield f"{command.command} = {command.value}{data}"
    yield f"event hash {report.event_hash}"
