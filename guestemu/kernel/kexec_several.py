# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel of several CPUs that leaves in a kexec, by its own shutdown from begin to end.

It runs in user space, and PID 1 calls kernel_kexec(), which stops the other CPUs by IPIs and makes
memory private where the kernel can; or a CPU crashes, in __crash_kexec(), which stops the others by
NMIs. A page of zeros stands for the image that the system call kexec_load would have loaded; the
run ends at machine_kexec(), the jump. Its requests are answered as those of its boot were, and the
host hears of them afterwards.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi.addresses import Gva
from guestemu.abi.errors import InputError
from guestemu.abi.msrs import MSR_KVM_MIGRATION_CONTROL
from guestemu.events.exits import WrmsrExit
from guestemu.guest.linux.kernel import Kernel
from guestemu.guest.linux.userland.running import Ended, RunningKernel
from guestemu.guest.linux.userland.two_calls import KernelCall, TwoCalls
from guestemu.kernel.kexec import LEFT_PAGES, KexecWatch
from guestemu.machine.machine import Machine
from guestemu.runner.told import tell_exits

_JUMP: Final = "machine_kexec"
_ALLOCATORS: Final = ("__get_free_pages", "get_free_pages_noprof")
_ZEROED: Final = 0xDC0
"""GFP_KERNEL | __GFP_ZERO."""

_LEFT_ORDER: Final = LEFT_PAGES.bit_length() - 1
_BUDGET: Final = 400_000_000
_WHILE: Final = KernelCall("msleep", (1000,))
"""What CPU 0 does while CPU 1 crashes."""


class SeveralCpus:
    """An `OldKernel` of several CPUs; `crashed_cpu`, 0 or 1, is the one that crashes."""

    def __init__(self, running: RunningKernel, crashed_cpu: int = 0) -> None:
        self._running = running
        self._crashed_cpu = crashed_cpu
        self._calls = TwoCalls(running)
        self._watch: KexecWatch | None = None
        self._told = 0

    @property
    def kernel(self) -> Kernel:
        """See `OldKernel`."""
        return self._running.kernel

    @property
    def machine(self) -> Machine:
        """See `OldKernel`."""
        return self._running.machine

    def begin(self, watch: KexecWatch) -> None:
        """See `OldKernel`."""
        self._watch = watch
        watch.host.reset(self.machine.config.frames)
        self._tell()
        watch.msr.clear()

    def share(self) -> None:
        """See `OldKernel`."""
        error = self._calls.call("set_memory_decrypted", self._allocate(_LEFT_ORDER), LEFT_PAGES)
        if error:
            raise InputError(f"{self.kernel.name}: set_memory_decrypted failed: {error:#x}")
        self._tell()

    def leave(self, crash: bool) -> None:
        """See `OldKernel`."""
        kernel, running = self.kernel, self._running
        image = kernel.address("kexec_crash_image" if crash else "kexec_image")
        word = self._allocate(0).to_bytes(8, "little")
        self.machine.current.write_memory(Gva(image), word)
        jump = Ended("until", _JUMP)
        running.intercept(kernel.address(_JUMP), lambda: jump)
        call = KernelCall("__crash_kexec", (0,)) if crash else KernelCall("kernel_kexec")
        if crash and self._crashed_cpu:
            self._calls.start_thread()
            ended = self._calls.run((_WHILE, call), (), _BUDGET)
        else:
            ended = self._calls.begin(call)
        if ended != jump:
            raise InputError(f"{kernel.name}: {call.function}() did not jump: {ended.text}")
        self._tell()

    def reset(self) -> None:
        """Does nothing: it is not used again."""

    def _allocate(self, order: int) -> int:
        """Pages of the kernel's allocator, filled with zeros."""
        name = next(name for name in _ALLOCATORS if name in self.kernel.symbols)
        return self._calls.call(name, _ZEROED, order)

    def _tell(self) -> None:
        """The host hears what it has not heard yet."""
        assert self._watch is not None
        exits = self._running.recorder.exits
        new, self._told = exits[self._told :], len(exits)
        tell_exits(self._watch.host, new, self.machine.current)
        self._watch.msr += [
            told.args[0]
            for told in new
            if isinstance(told, WrmsrExit) and told.nr == MSR_KVM_MIGRATION_CONTROL
        ]
