# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels by guest kinds, each brought to user space and asked to read through its drivers.

A run boots the kernel, has PID 1 read from every device, and compares. A second boot of the same
kernel has to give the same events.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import GuestemuError
from guestemu.guest.linux.boot import lacking
from guestemu.guest.linux.load import LOADER
from guestemu.guest.linux.userland.running import RunningKernel
from guestemu.guest.linux.userland.session import (
    DeviceRead,
    Setting,
    Userland,
    read_device,
)

RIGHT: Final = "right"
ABSENT: Final = "absent"
FAILED: Final = "failed"
MEMORY: Final = 128
TD_MEMORY: Final = 256
_MILLION: Final = 1_000_000
_SHOWN: Final = 8


class DriverRun(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel as a guest of one kind. `outcome` is "right", "absent" (the kernel is not made for
    this kind; `text` says what it lacks), or "failed" with the reason in `text`.

    `seconds` of CPU time and `blocks` (basic blocks) of the boot and the reads; `traps` are MMIO
    accesses by #VC or #VE, `accesses` those of devices to memory, `rules` counts those checked by
    rule. `again` is the event hash of a second boot, empty without one.
    """

    kernel: str
    version: str
    sev: str
    outcome: str
    text: str = ""
    reads: tuple[DeviceRead, ...] = ()
    seconds: float = 0.0
    blocks: int = 0
    traps: int = 0
    accesses: int = 0
    rules: dict[str, int] = {}
    event_hash: str = ""
    again: str = ""

    @property
    def summary(self) -> str:
        """The run in a cell of a table."""
        if self.outcome != RIGHT:
            return f"{self.outcome}: {self.text}"
        twice = ", twice" if self.again else ""
        return (
            f"{len(self.reads)} of {len(self.reads)} right, {self.accesses} accesses checked, "
            f"{self.blocks / _MILLION:.1f} M blocks, {self.seconds:.0f} s, "
            f"{self.event_hash[:_SHOWN]}{twice}"
        )


def try_drivers(
    name: str, image: Path, sev: str, devices: Sequence[str], repeats: bool = True
) -> DriverRun:
    """Boots the kernel in `image` (called `name`) as a guest of kind `sev` with `devices`, reads
    512 bytes through each driver; with `repeats` a second time, for the event hash."""
    kernel = LOADER.kernel(image)
    head = DriverRun(kernel=name, version=kernel.version, sev=sev, outcome=ABSENT)
    missing = lacking(kernel, sev)
    if missing:
        return msgspec.structs.replace(head, text=f"no {', '.join(missing)}")
    memory = TD_MEMORY if sev == "tdx" else MEMORY
    setting = Setting(sev=sev, memory=memory, devices=tuple(devices))
    start = time.process_time()
    try:
        found = _read_all(head, image, setting)
        seconds = round(time.process_time() - start, 1)
        again = _read_all(head, image, setting).event_hash if repeats else ""
    except GuestemuError as error:
        return msgspec.structs.replace(head, outcome=FAILED, text=str(error))
    found = msgspec.structs.replace(found, seconds=seconds, again=again)
    if found.outcome == RIGHT and repeats and again != found.event_hash:
        return msgspec.structs.replace(found, outcome=FAILED, text="two boots differ")
    return found


def _read_all(head: DriverRun, image: Path, setting: Setting) -> DriverRun:
    """One boot and the reads. Raises `InputError`, `CommandFailed`."""
    running = Userland(LOADER).start(image, setting, is_cold=True)
    try:
        reads = tuple(read_device(running, name) for name in setting.devices)
        wrong = _wrong(running, reads)
        return msgspec.structs.replace(
            head,
            outcome=FAILED if wrong else RIGHT,
            text=wrong,
            reads=reads,
            blocks=running.blocks,
            traps=running.traps,
            accesses=running.accesses,
            rules=dict(running.rules.checked),
            event_hash=running.event_hash,
        )
    finally:
        running.machine.close()


def _wrong(running: RunningKernel, reads: Sequence[DeviceRead]) -> str:
    """What is wrong with a run, empty for nothing."""
    for read in reads:
        if read.error:
            return f"{read.device}: errno {read.error}"
        if not read.is_right:
            return f"{read.device}: not what the device holds"
    if running.rules.violations:
        first = running.rules.violations[0]
        return f"{first.rule}: {first.text}"
    return ""
