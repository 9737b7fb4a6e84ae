# SPDX-License-Identifier: GPL-2.0-or-later
"""Hostile devices: what a device returns is changed, and the guest's kernel has to bear it.

In a guest with encrypted memory the device belongs to the host, which the guest does not trust.
Each experiment starts from a checkpoint in user space. A few of the device's answers are changed
(registers, completions, used rings, data; some are lost), a short workload runs through the real
driver, and the outcome is classified. What the device may do is unlimited; what must not happen is
that the kernel oopses, warns, loops, or lets a device reach memory by a rule of rules.py.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.guest.linux.userland.complaints import printed_warnings
from guestemu.guest.linux.userland.running import CommandFailed, RunningKernel
from guestemu.guest.linux.userland.session import read_device
from guestemu.machine.devices.hostile import REGISTER, STORE

COMMAND_BLOCKS: Final = 1_500_000
"""Budget of a command; an honest read takes some 20,000 basic blocks."""

_WAITING_TICKS: Final = 20
"""Interrupts that come in a budget only where the CPU is idle: then time jumps to the next one."""

_NUMBERS: Final = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8,}|\d+")
_HORIZON: Final = {STORE: 24, REGISTER: 24}
_MAX_CHANGES: Final = 4
_PROVOKED: Final[dict[str, tuple[str, ...]]] = {
    "nvme": ("write /sys/class/nvme/nvme0/rescan_controller 1",),
}
"""What the device's driver is asked beside a read."""


class HostileExperiment(msgspec.Struct, frozen=True, kw_only=True):
    """One experiment: its number, what was changed, how it ended, and one line about it.

    `outcome` is "right", "data" (other bytes arrived), "error" (an errno), "waits" (the driver
    sleeps for an answer that was lost), or a finding: "loop" (the CPU is busy and does not come
    back), "warning", "panic", "rule".
    """

    number: int
    outcome: str
    text: str
    changes: tuple[str, ...]

    @property
    def is_finding(self) -> bool:
        """Whether the kernel did what it must not."""
        return self.outcome in {"loop", "warning", "panic", "rule"}

    @property
    def key(self) -> str:
        """The same for findings that look alike."""
        return f"{self.outcome}: {_NUMBERS.sub('N', self.text)}"


class _Plan:
    """Which of the device's answers an experiment changes, and how."""

    def __init__(self, seed: int, number: int) -> None:
        self._random = random.Random(f"{seed}:{number}")
        self._at = {
            kind: {self._random.randrange(limit) for _ in range(self._random.randint(0, 2))}
            for kind, limit in _HORIZON.items()
        }
        if not any(self._at.values()):
            self._at[STORE].add(self._random.randrange(4))
        self._seen = dict.fromkeys(_HORIZON, 0)
        self.changes: list[str] = []

    def change(self, kind: str, data: bytes, what: str) -> bytes | None:
        """See `Tamper`."""
        if kind not in self._seen:
            return data
        index = self._seen[kind]
        self._seen[kind] += 1
        if index not in self._at[kind] or not data or len(self.changes) >= _MAX_CHANGES:
            return data
        way = self._random.randrange(5)
        changed = bytearray(data)
        if way == 0 and kind == STORE:
            self.changes.append(f"{what} lost")
            return None
        at = self._random.randrange(len(changed))
        if way == 1:
            changed[at] ^= 1 << self._random.randrange(8)
        elif way == 2:
            changed[:] = b"\xff" * len(changed)
        elif way == 3:
            changed[:] = bytes(len(changed))
        else:
            changed[at : at + 4] = self._random.randbytes(min(4, len(changed) - at))
        self.changes.append(f"{what}: {_differences(data, bytes(changed))}")
        return bytes(changed)

    def after_store(self) -> bool:
        """See `Tamper`."""
        return False

    def loses_interrupt(self) -> bool:
        """See `Tamper`."""
        return False


def _differences(old: bytes, new: bytes) -> str:
    places = [at for at in range(len(old)) if old[at] != new[at]]
    if not places:
        return "unchanged"
    first, last = places[0], places[-1] + 1
    shown = new[first : min(last, first + 8)].hex()
    return f"bytes {first} to {last} become {shown}{'...' if last - first > 8 else ''}"


class HostileRuns:
    """Experiments on one device of a kernel in user space. `stale_bytes` adds up over all."""

    def __init__(self, running: RunningKernel, device: str, seed: int) -> None:
        """Takes the checkpoint. Raises `InputError` for a device that cannot be read from."""
        if not running.hardware.devices[device].NODE:
            raise InputError(f"device {device}: it has no file to read from")
        self._running = running
        self._name = device
        self._seed = seed
        self.stale_bytes = 0
        self._hostility = running.make_hostile(device)
        read_device(running, device)
        running.checkpoint()

    def run(self, numbers: range) -> Iterator[HostileExperiment]:
        """The experiments `numbers`, one after the other; each depends on seed and number only."""
        for number in numbers:
            yield self._one(number)

    def _one(self, number: int) -> HostileExperiment:
        running, plan = self._running, _Plan(self._seed, number)
        printed = len(running.console.text)
        broken = len(running.rules.violations)
        self._hostility.begin(plan)
        try:
            outcome, text = self._workload(printed, broken)
        finally:
            self._hostility.end()
            running.rollback()
        self.stale_bytes += self._hostility.port.stale
        return HostileExperiment(
            number=number, outcome=outcome, text=text, changes=tuple(plan.changes)
        )

    def _workload(self, printed: int, broken: int) -> tuple[str, str]:
        running = self._running
        start = running.interrupts
        try:
            for command in _PROVOKED.get(self._name, ()):
                running.command(command, COMMAND_BLOCKS)
            found = read_device(running, self._name, COMMAND_BLOCKS)
        except CommandFailed as failed:
            kind = failed.ended.reason
            if kind != "budget":
                return "panic", failed.ended.text
            is_idle = running.interrupts - start > _WAITING_TICKS
            return ("waits" if is_idle else "loop"), failed.ended.text
        warning = next(iter(printed_warnings(running.console.text, printed)), None)
        if warning is not None:
            return "warning", warning
        if len(running.rules.violations) > broken:
            violation = running.rules.violations[broken]
            return "rule", f"{violation.rule}: {violation.text}"
        if found.error:
            return "error", f"errno {found.error}"
        return ("right" if found.is_right else "data"), f"{found.size} bytes"
