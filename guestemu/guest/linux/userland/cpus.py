# SPDX-License-Identifier: GPL-2.0-or-later
"""Several CPUs of a running kernel, one at a time in the one emulated CPU (fact U30).

CPUs take turns of `SLICE` basic blocks; a turn also ends where the CPU halts, sends an IPI, or is
sent one. A CPU with interrupts off takes what waits soon after it turns them on (running.py). An
order of turns (`Turn`) comes before that. Each change empties the emulator's TLB, so a guest that
forgets a remote flush is caught only where CPUs keep their translations (machine/translations.py).
How CPUs begin is in starts.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.guest.linux.userland.starts import CpuStarts
from guestemu.machine.cpuid import CpuidLeaf
from guestemu.machine.devices.apic import LocalApics
from guestemu.machine.devices.state import StatefulDevice
from guestemu.machine.machine import Machine, MachineConfig

SLICE: Final = 20_000
MAX_CPUS: Final = 8
HYPERCALL: Final = "hypercall"
IPI: Final = "ipi"
"""Events that end a turn, see `Turn`."""
_LOW: Final = 1 << 20 >> 12
"""Frames that code without paging reaches: real-mode trampolines lie below 1 MiB."""

_X2APIC: Final = 1 << 21
_DEADLINE_TIMER: Final = 1 << 24
_APIC: Final = 1 << 9
_ALWAYS_RUNNING_TIMER: Final = 1 << 2


def with_cpus(config: MachineConfig, cpus: int) -> MachineConfig:
    """`config` for a kernel with `cpus` CPUs. Raises `InputError` for a number out of range."""
    if cpus not in range(1, MAX_CPUS + 1):
        raise InputError(f"cpus {cpus}: 1 to {MAX_CPUS}")
    if cpus == 1:
        return config
    return msgspec.structs.replace(config, vcpus=cpus, mirrored=_LOW)


def apic_cpuid(
    base: Callable[[int, int], CpuidLeaf], machine: Machine
) -> Callable[[int, int], CpuidLeaf]:
    """CPUID with a local APIC in x2APIC mode and a TSC-deadline timer; the current CPU's ID."""

    def cpuid(function: int, subfunction: int) -> CpuidLeaf:
        leaf = base(function, subfunction)
        if function == 1:
            return leaf._replace(
                ebx=leaf.ebx | machine.current.index << 24,
                ecx=leaf.ecx | _X2APIC | _DEADLINE_TIMER,
                edx=leaf.edx | _APIC,
            )
        if function == 6:
            return leaf._replace(eax=_ALWAYS_RUNNING_TIMER)
        if function == 0x80000001:
            return leaf._replace(edx=leaf.edx | _APIC)
        return leaf

    return cpuid


class CpuState(msgspec.Struct):
    """One CPU that does not execute now: where it goes on, the stop that it has passed, whether it
    waits in HLT, whether it halted for good (an offline CPU), whether it is held from outside."""

    rip: int = 0
    passed: int = 0
    is_halted: bool = False
    is_dead: bool = False
    is_held: bool = False


class Turn(msgspec.Struct):
    """CPU `cpu` executes `blocks` basic blocks, or until it reaches `address`, or until `event`:
    "hypercall" (its next one was answered), "ipi" (it has sent its next one), or another that its
    user ends. It ends early where the CPU has to wait."""

    cpu: int
    blocks: int = SLICE
    address: int | None = None
    event: str = ""


class CpusState(msgspec.Struct):
    """All CPUs: each one by number, the one that executes, how many changes of turn there were."""

    states: list[CpuState]
    current: int = 0
    switches: int = 0


class Cpus(StatefulDevice[CpusState]):
    """The CPUs of `machine`; their registers are the contexts of its vCPUs."""

    def __init__(self, machine: Machine, apics: LocalApics, starts: CpuStarts) -> None:
        super().__init__(CpusState([CpuState() for _ in machine.vcpus]))
        self._machine = machine
        self._apics = apics
        self._starts = starts
        self.turns: list[Turn] = []
        """Who executes next; the order in which CPUs take turns by themselves comes after it."""

    @property
    def slice(self) -> int:
        """Basic blocks for which the CPU that was chosen may execute."""
        return self.turns[0].blocks if self.turns else SLICE

    def spend(self, blocks: int) -> None:
        """The CPU that was chosen has executed `blocks`."""
        if self.turns:
            self.turns[0].blocks -= blocks
            if self.turns[0].blocks <= 0:
                del self.turns[0]

    def end_turn(self, is_end: Callable[[Turn], bool]) -> bool:
        """Ends the present turn if it is the executing CPU's and `is_end` says so; whether it
        did."""
        turns = self.turns
        if not turns or turns[0].cpu != self._machine.current.index or not is_end(turns[0]):
            return False
        del turns[0]
        return True

    @property
    def states(self) -> list[CpuState]:
        """By number."""
        return self.state.states

    @property
    def order(self) -> list[int]:
        """CPU numbers, the one after the present one first."""
        count = len(self.states)
        return [(self._machine.current.index + step) % count for step in range(1, count + 1)]

    def is_on(self, index: int) -> bool:
        """Whether CPU `index` was started and has not halted for good."""
        if self.states[index].is_dead or self._apics.state.apics[index].is_waiting:
            return False
        return not self._starts.is_stopped(index)

    def may_execute(self, index: int) -> bool:
        """Whether CPU `index` is on and not held."""
        return self.is_on(index) and not self.states[index].is_held

    @property
    def online(self) -> int:
        """How many are on."""
        return sum(self.is_on(index) for index in range(len(self.states)))

    def change(self, index: int) -> None:
        """CPU `index` executes from now on; RIP of the other one has been kept in its state."""
        if self._machine.current.index != index:
            self._machine.activate(index)
            self.state.current = index
            self.state.switches += 1

    def begin(self, index: int) -> bool:
        """CPU `index` begins if it was started and has not begun yet; whether it did. It executes
        then."""
        start = self._starts.take(index)
        if start is None:
            return False
        machine = self._machine
        self.change(index)
        start()
        machine.current.kernel_segments = machine.vcpus[0].kernel_segments
        self.states[index] = CpuState()
        return True
