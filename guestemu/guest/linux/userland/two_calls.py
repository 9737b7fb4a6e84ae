# SPDX-License-Identifier: GPL-2.0-or-later
"""Two calls of a kernel's functions at a time, one on each of two CPUs.

Both are made where the kernel may sleep and may be interrupted. CPU 0 makes its call in PID 1's
system call nanosleep, which is entered as the other function in its place. CPU 1 makes it in a
kernel thread, which waits at its entry. Who executes when is an order of turns that begins where
CPU 0 enters its function; CPU 1 does nothing before that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from guestemu.abi.addresses import Gva
from guestemu.abi.errno import MAX_ERRNO
from guestemu.abi.errors import InputError
from guestemu.guest.linux.userland.cpus import Cpus, Turn
from guestemu.guest.linux.userland.running import Ended, RunningKernel

RETURN: Final = "return"
"""The event of a turn that ends where its CPU's call returns."""

_IN_PID_1: Final = "__x64_sys_nanosleep"
_IN_THREAD: Final = "__x64_sys_getpid"
_COMMAND: Final = "sleep 0"
_WAIT: Final = "sleep 1"
_MASKS: Final = "cpu_bit_bitmap"
_MAX_CPUS: Final = 8192
_NAME: Final = "linux_banner"
_ARGUMENTS: Final = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
_WAITS: Final = 50
_CALL_BUDGET: Final = 20_000_000


class KernelCall(msgspec.Struct, frozen=True):
    """One call: the function and its arguments, as the kernel's C has them."""

    function: str
    arguments: tuple[int, ...] = ()


class Returned(msgspec.Struct, frozen=True):
    """How a call returned: RAX, and the basic blocks of the run until then."""

    value: int
    blocks: int

    @property
    def number(self) -> int:
        """The value as an `int`."""
        value = self.value & 0xFFFFFFFF
        return value - (value >> 31 << 32)


class TwoCalls:
    """See the module's docstring. `call` comes first, then `start_thread`, `checkpoint` and `run`.
    `returned` has, for each CPU, how its call returned; `on_enter` and `on_return` are called with
    the CPU's number when it begins and when it did."""

    def __init__(self, running: RunningKernel) -> None:
        """Binds PID 1, which is idle, to CPU 0. Raises `InputError`."""
        cpus = running.hardware.cpus
        if cpus is None or len(cpus.states) < 2:
            raise InputError("calls on two CPUs: the kernel has one; run it with two")
        self._running = running
        self._cpus: Cpus = cpus
        self._calls: list[KernelCall | None] = [None, None]
        self._awaited: list[tuple[int, int] | None] = [None, None]
        self._turns: Sequence[Turn] = ()
        self.returned: list[Returned | None] = [None, None]
        self.entered: list[int] = [0, 0]
        """Basic blocks of the run where each call began."""
        self.on_enter: Callable[[int], None] | None = None
        self.on_return: Callable[[int], None] | None = None
        kernel = running.kernel
        running.intercept(kernel.address(_IN_PID_1), self._enter_in_pid_1)
        running.intercept(kernel.address(_IN_THREAD), self._enter_in_thread)
        self._pin()

    def call(self, function: str, *arguments: int) -> int:
        """PID 1 calls `function` while all CPUs take turns; what it returns, as 64 bits. Raises
        `InputError` where the kernel lacks the function or does not come back."""
        ended = self.begin(KernelCall(function, arguments))
        returned = self.returned[0]
        self._calls[0] = None
        if ended.reason != "idle" or returned is None:
            raise InputError(f"{function}: did not return: {ended.text}")
        return returned.value

    def begin(self, call: KernelCall) -> Ended:
        """PID 1 begins `call` while all CPUs take turns; how the run ends, "idle" where the call
        returned. Raises `InputError` where the kernel lacks the function."""
        self._running.kernel.address(call.function)
        self._calls[0] = call
        self.returned[0] = None
        return self._running.begin(_COMMAND, _CALL_BUDGET)

    def run(
        self, calls: tuple[KernelCall, KernelCall], turns: Sequence[Turn], budget: int
    ) -> Ended:
        """Both calls, from a `checkpoint`; ends where both have returned ("until"), or as
        `RunningKernel.run` ends."""
        self._calls[:] = calls
        self._turns = turns
        self.returned[:] = [None, None]
        running, last = self._running, self._running.blocks + budget
        ended = running.begin(_COMMAND, budget, self._have_returned)
        while ended.reason == "idle" and running.blocks < last:
            # PID 1 is back first; its CPU still answers interrupts
            ended = running.begin(_WAIT, last - running.blocks, self._have_returned)
        return ended

    def _have_returned(self) -> bool:
        return None not in self.returned

    def checkpoint(self) -> None:
        """What `rollback` returns to: both CPUs wait."""
        self._running.checkpoint()

    def rollback(self) -> None:
        """Back to the checkpoint."""
        self._calls[:] = [None, None]
        self._awaited[:] = [None, None]
        self._cpus.turns.clear()
        self._running.rollback()

    # Preparing --------------------------------------------------------------------------------

    def _pin(self) -> None:
        """PID 1 executes on CPU 0 from now on."""
        address = self._running.kernel.address(_MASKS)
        for at in range(address, address + _MAX_CPUS, 8):
            if self._running.machine.current.read_memory(Gva(at), 8) == b"\1".ljust(8, b"\0"):
                break
        else:
            raise InputError(f"{self._running.kernel.name}: {_MASKS} has no mask of CPU 0")
        if error := self.call("sched_setaffinity", 0, at):
            raise InputError(f"PID 1 cannot be bound to CPU 0: error {error:#x}")

    def start_thread(self) -> None:
        """CPU 1 stands at its call from here on, and answers no interrupt before `run`. Raises
        `InputError`."""
        kernel = self._running.kernel
        entry, name = kernel.address(_IN_THREAD), kernel.address(_NAME)
        thread = self.call("kthread_create_on_cpu", entry, 0, 1, name)
        if thread >= (1 << 64) - MAX_ERRNO:
            raise InputError(f"{kernel.name}: no kernel thread on CPU 1: error {thread:#x}")
        self.call("wake_up_process", thread)
        for _ in range(_WAITS):
            if self._cpus.states[1].is_held:
                return
            self._running.command(_WAIT)
        raise InputError(f"{kernel.name}: the kernel thread on CPU 1 does not begin")

    # Entering and returning -------------------------------------------------------------------

    def _enter_in_pid_1(self) -> None:
        call = self._calls[0]
        if call is None:
            return
        self._calls[0] = None
        self._enter(0, call)
        if self._calls[1] is not None:
            self._cpus.turns[:] = self._turns
            state = self._cpus.states[1]
            state.is_held, state.passed = False, 0

    def _enter_in_thread(self) -> None:
        call = self._calls[1]
        if call is None:
            self._cpus.states[1].is_held = True
            return
        self._calls[1] = None
        self._enter(1, call)

    def _enter(self, which: int, call: KernelCall) -> None:
        running = self._running
        vcpu = running.machine.current
        stack = vcpu.read_register("rsp")
        back = int.from_bytes(vcpu.read_memory(Gva(stack), 8) or b"", "little")
        self._awaited[which] = (back, stack + 8)
        self.entered[which] = running.blocks
        if self.on_enter is not None:
            self.on_enter(which)
        running.intercept(back, self._return)
        vcpu.write_register("rip", running.kernel.address(call.function))
        for register, value in zip(_ARGUMENTS, call.arguments, strict=False):
            vcpu.write_register(register, value)

    def _return(self) -> None:
        running = self._running
        vcpu = running.machine.current
        here = (vcpu.read_register("rip"), vcpu.read_register("rsp"))
        for which, awaited in enumerate(self._awaited):
            if awaited != here:
                continue
            self._awaited[which] = None
            self.returned[which] = Returned(vcpu.read_register("rax"), running.blocks)
            self._cpus.end_turn(lambda turn: turn.event == RETURN)
            if self.on_return is not None:
                self.on_return(which)
