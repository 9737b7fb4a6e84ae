# SPDX-License-Identifier: GPL-2.0-or-later
"""Calling functions of a booted kernel.

The vCPU stands where the boot was stopped, at `rest_init` on the boot stack unless another function
was asked for, with everything a kernel function may use. A call restores that context, pushes the
address of the stop as return address and runs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from guestemu.abi.addresses import Gva, to_signed
from guestemu.abi.errors import InputError
from guestemu.abi.x86 import RFLAGS_FIXED, RFLAGS_IF
from guestemu.guest.base import CallOutcome
from guestemu.guest.linux.boot import BootedKernel, describe_end
from guestemu.guest.linux.loops import looping_function
from guestemu.guest.linux.oops import OopsStops
from guestemu.guest.linux.printk import KernelLog, warnings_of
from guestemu.guest.linux.symbols import SymbolIndex
from guestemu.machine.engine import REGISTERS, Context
from guestemu.machine.exits import BudgetExhausted, Trap

_STACK_GAP: Final = 0x200
_ARGUMENTS: Final = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")


class KernelCalls:
    """Calls into one booted kernel; `budget` bounds each call in basic blocks, `stack` is RSP at
    its stop, `lines` what the kernel printed in the last call.

    Raises `InputError` where the kernel did not arrive at its stop.
    """

    def __init__(self, booted: BootedKernel, budget: int) -> None:
        if not isinstance(booted.end, Trap):
            ending = describe_end(booted)
            raise InputError(f"{booted.kernel.name}: did not reach {booted.until}: {ending}")
        self.kernel = booted.kernel
        self.budget = budget
        self.context = Context(booted.machine.engine)
        self.stack = booted.machine.current.read_register("rsp")
        self._engine = booted.machine.engine
        self._vcpu = booted.machine.current
        self._console = booted.console
        self._log = KernelLog(booted.kernel, booted.machine.ram)
        self._seen = self._start = self._place_in_log()
        self._stop = booted.end.rip
        self._index: SymbolIndex | None = None
        self._loop: tuple[int, str] = (0, "")
        self.lines: list[str] = []
        self._oops = OopsStops(self.kernel)
        for address in self._oops.addresses:
            booted.platform.hook_stop(address)

    def call(self, function: str, *arguments: int) -> CallOutcome:
        """Calls a kernel function with up to six integer arguments; the value is RAX (64 bits)."""
        return self.call_address(self.kernel.address(function), *arguments)

    def call_address(self, address: int, *arguments: int) -> CallOutcome:
        """As `call`, by the function's virtual address."""
        self.context.restore()
        engine = self._engine
        stack = (self._vcpu.read_register("rsp") - _STACK_GAP & ~0xF) - 8
        self._vcpu.write_memory(Gva(stack), struct.pack("<Q", self._stop))
        engine.write(REGISTERS["rsp"], stack)
        engine.write(REGISTERS["rflags"], RFLAGS_FIXED | RFLAGS_IF)
        for name, value in zip(_ARGUMENTS, arguments, strict=False):
            engine.write(REGISTERS[name], value & 0xFFFF_FFFF_FFFF_FFFF)
        end = self._vcpu.run(address, self.budget)
        self.lines = self.take_lines()
        warnings = warnings_of(self.lines)
        if type(end) is Trap and end.rip == self._stop:
            return CallOutcome(self._vcpu.read_register("rax"), None, warnings)
        if type(end) is Trap and end.rip in self._oops.addresses:
            return CallOutcome(None, self._oops.read(self._vcpu, end.rip), warnings)
        if type(end) is BudgetExhausted:
            self._loop = (end.rip, looping_function(self._vcpu, self.index, stack + 8))
        return CallOutcome(None, end, warnings)

    def int_call(self, function: str, *arguments: int) -> CallOutcome:
        """As `call` for a function that returns int."""
        outcome = self.call(function, *arguments)
        if outcome.value is None:
            return outcome
        return CallOutcome(to_signed(outcome.value, 32), None, outcome.warnings)

    def must(self, names: Iterable[str] | str, *arguments: int) -> int:
        """Calls the first function that this kernel has; it has to return non-zero."""
        candidates = (names,) if isinstance(names, str) else tuple(names)
        for name in candidates:
            if name in self.kernel.symbols:
                outcome = self.call(name, *arguments)
                if not outcome.value:
                    raise InputError(f"{self.kernel.name}: {name} failed: {outcome}")
                return outcome.value
        raise InputError(f"{self.kernel.name}: this kernel has none of {', '.join(candidates)}")

    @property
    def index(self) -> SymbolIndex:
        """The kernel's functions by address; made at first use."""
        if self._index is None:
            self._index = SymbolIndex(self.kernel)
        return self._index

    def location(self, rip: int) -> str:
        """Kernel function and offset of `rip`; where the last call used up its budget at `rip`,
        the function that loops in front."""
        where = self.index.location(rip)
        looped_at, function = self._loop
        if rip == looped_at and function:
            return f"{where}, looping in {function}"
        return where

    def _place_in_log(self) -> tuple[int, int]:
        """How far the log is: its mark and its last number; of the console, where there is no
        readable log, its length."""
        if not self._log.is_readable:
            return len(self._console.text), -1
        records = self._log.records()
        return self._log.mark(), records[-1].number if records else -1

    def take_lines(self) -> list[str]:
        """What the kernel has printed since the last call of this method."""
        mark, last = self._seen
        if not self._log.is_readable:
            text = self._console.text
            self._seen = len(text), -1
            return text[mark:].splitlines()
        new = self._log.mark()
        if new == mark:
            return []
        records = self._log.records(last) if new > mark else self._log.records()
        self._seen = new, records[-1].number if records else last
        return [line for record in records for line in record.text.splitlines()]

    def forget_lines(self) -> None:
        """The guest was put back: what it printed since is not part of its log any more."""
        self._seen = self._start

    def read_u64(self, address: int) -> int:
        """A 64-bit word at a kernel virtual address; `InputError` where nothing is mapped."""
        data = self._vcpu.read_memory(Gva(address), 8)
        if data is None:
            raise InputError(f"{self.kernel.name}: {address:#x} is not mapped")
        return int.from_bytes(data, "little")
