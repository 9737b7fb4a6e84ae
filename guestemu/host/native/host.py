# SPDX-License-Identifier: GPL-2.0-or-later
"""A `Host` made of merged KVM and a native exit handler over it.

KVM's half (CPL, number, alignment, wrap, widths) is guestemu's; the handler sees what reaches user
space. Its record is what KVM's memory attributes say, unless it exports its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Final

from bitarray import bitarray

from guestemu.abi.addresses import to_signed
from guestemu.abi.errno import ENOTTY, MAX_ERRNO
from guestemu.abi.errors import HostFailedError, InputError
from guestemu.abi.msrs import KVM_MIGRATION_READY, MSR_KVM_MIGRATION_CONTROL
from guestemu.host.base import VcpuAccess
from guestemu.host.calls import Calls
from guestemu.host.hang_guard import HangGuard
from guestemu.host.kvm.guest_memory import (
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
    GuestMemory,
    MemoryFaultExit,
    Slot,
)
from guestemu.host.kvm.memory_host import MemoryHost
from guestemu.host.kvm.run import KvmRun, MsrExit
from guestemu.host.kvm.uapi import (
    KVM_EXIT_HYPERCALL,
    KVM_EXIT_MEMORY_FAULT,
    KVM_EXIT_X86_RDMSR,
    KVM_EXIT_X86_WRMSR,
)
from guestemu.host.native import wire
from guestemu.host.native.library import LoadedHandler
from guestemu.host.native.process import COMMAND, HandlerProcess
from guestemu.host.permission import REMEDY, file_of
from guestemu.host.userspace.base import UserSpace, VmStopped
from guestemu.host.userspace.injection import Injection

IN_PROCESS: Final = ":in-process"
_BLOCKS_SHIFT: Final = 32
_NO_FAILURE: Final = (wire.NO_FAILURE, 0)


def is_native(spec: str) -> bool:
    """Whether a host's spec names a shared object or a command."""
    return spec.startswith(COMMAND) or file_of(spec).endswith(".so")


def load_native(spec: str, plugin: str, switches: tuple[str, ...] = ()) -> NativeHost:
    """The host of FILE.so, FILE.so:in-process or cmd:COMMAND.

    `plugin` is the file or command as `permission` gave it. Raises `InputError` without one, for
    switches, and for a word behind the file that is not "in-process".
    """
    if not plugin:
        raise InputError(f"host {spec}: is code, and nothing here allows it; {REMEDY}")
    if switches:
        raise InputError(f"host {spec}: a native handler has no switches")
    if spec.startswith(COMMAND):
        return NativeHost(spec)
    mode = spec.removeprefix(file_of(spec))
    if mode not in {"", IN_PROCESS}:
        raise InputError(f"host {spec}: {mode[1:]!r} is not known; write FILE.so{IN_PROCESS}")
    return NativeHost(f"{plugin}{mode}")


class NativeUserSpace(UserSpace):
    """A native handler as the user space of one VM.

    `handler` is the process or the loaded library behind `spec`; `migration_control` what the guest
    last wrote and the handler accepted; `blocks` has one of 32 bits for each block that ran at the
    last hypercall, if the handler was compiled with -fsanitize-coverage. A process that is
    `running` and serves such a memory is taken over: the handler's own reset makes the new VM.
    `calls`, if set, knows the call of the program that would end this process.
    """

    touches_vcpu: ClassVar[bool] = False

    __slots__ = (
        *("_is_new", "_story", "blocks", "calls", "handler", "injection", "memory"),
        "migration_control",
        "spec",
    )

    def __init__(
        self,
        spec: str,
        memory: GuestMemory,
        vcpus: int = 1,
        running: HandlerProcess | LoadedHandler | None = None,
    ) -> None:
        self.spec = spec
        self.memory = memory
        self.injection = Injection()
        self.migration_control = 0
        self.blocks = 0
        self.calls: Calls | None = None
        self.handler: HandlerProcess | LoadedHandler
        if isinstance(running, HandlerProcess) and running.serves(memory, vcpus):
            self.handler = running
        elif spec.endswith(IN_PROCESS):
            self.handler = LoadedHandler(spec.removesuffix(IN_PROCESS), memory, vcpus)
        else:
            self.handler = HandlerProcess(spec, memory, vcpus)
        self._is_new = True
        self._story = b""

    def restore(self) -> bool:
        """A new VM, as the handler's own reset makes it."""
        self.memory.restore()
        self.migration_control = 0
        self.blocks = 0
        self._is_new = True
        self._story = b""
        return True

    def renew(self) -> None:
        """See `NativeHost.renew`."""
        if isinstance(self.handler, HandlerProcess):
            self.handler.renew()
            self._is_new = True

    def _exit(self, reason: int, words: tuple[int, ...], vcpu: int) -> tuple[int, int]:
        """Answer and data; raises `VmStopped` where the handler ends the VM."""
        handler = self.handler
        if isinstance(handler, LoadedHandler):
            if self.calls is not None:
                self._watch(self.calls)
            is_new, self._is_new = self._is_new, False
            outcome, answer, data = handler.exit(reason, words, vcpu, is_new)
            if self.calls is not None:
                self.calls.leave()
        else:
            failure = self.memory.ordered_failure or _NO_FAILURE
            outcome, answer, data = self._ask(
                handler, wire.exit_record(reason, words, vcpu, failure)
            )
        if outcome:
            if outcome != wire.STOP:
                raise HostFailedError(f"the native handler returned outcome {outcome}")
            raise VmStopped(f"{self.spec} stopped the VM")
        return answer, data

    def _watch(self, calls: Calls) -> None:
        """Before a call into a library of this process."""
        if calls.enter():
            raise HostFailedError(f"the native handler {calls.how}")

    def _enter(self, handler: LoadedHandler) -> None:
        """Before a call that is no exit, of a VM that is as it should be."""
        if self.calls is not None:
            self._watch(self.calls)
        if self._is_new:
            self._is_new = False
            handler.reset()

    def _ask(self, handler: HandlerProcess, record: bytes) -> tuple[int, int, int]:
        """Outcome, answer and data of a record; its calls are made here as well."""
        is_new, self._is_new = self._is_new, False
        self._story += record
        requests = wire.RESET + record if is_new else record
        outcome, answer, data, calls = handler.ask(requests, self._story)
        wrong = wire.replay(self.memory, calls)
        if wrong:
            raise HostFailedError(f"the native handler {wrong}")
        return outcome, answer, data

    def plug(self, slot: Slot) -> int:
        """Hot-plugs a slot: 0 or the negative errno of a handler that refuses it."""
        handler, memory = self.handler, self.memory
        if not handler.takes_slots:
            return -ENOTTY
        memory.plug(slot)
        if isinstance(handler, LoadedHandler):
            self._enter(handler)
            result = handler.plug()
            if self.calls is not None:
                self.calls.leave()
        else:
            failure = memory.ordered_failure or _NO_FAILURE
            _, answer, _ = self._ask(handler, wire.plug_record(slot, failure))
            result = to_signed(answer)
        if result:
            memory.unplug(slot)
        if not -MAX_ERRNO <= result <= 0:
            raise HostFailedError(f"the native handler returned {result} from guestemu_layout()")
        return result

    def hypercall_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """Hands the exit to the handler; `ret` is what it leaves there."""
        request = run.hypercall
        if self.injection.answers:
            request.ret = self.injection.take_answer()
            return
        args = request.args
        words = (request.nr, args[0], args[1], args[2], request.ret, request.longmode)
        request.ret, self.blocks = self._exit(KVM_EXIT_HYPERCALL, words, vcpu.index)

    def _msr_exit(self, reason: int, access: MsrExit, vcpu: int) -> None:
        words = (access.index, access.reason, access.data)
        error, data = self._exit(reason, words, vcpu)
        access.error = 1 if self.injection.take_msr_error() else int(bool(error))
        if reason == KVM_EXIT_X86_RDMSR:
            access.data = data
        elif not access.error and access.index == MSR_KVM_MIGRATION_CONTROL:
            self.migration_control = access.data

    def rdmsr_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """Hands the exit to the handler."""
        self._msr_exit(KVM_EXIT_X86_RDMSR, run.msr, vcpu.index)

    def wrmsr_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """Hands the exit to the handler."""
        self._msr_exit(KVM_EXIT_X86_WRMSR, run.msr, vcpu.index)

    def memory_fault(self, fault: MemoryFaultExit) -> bool:
        """KVM_EXIT_MEMORY_FAULT: True if the handler re-enters, as it does after a conversion."""
        flags = KVM_MEMORY_EXIT_FLAG_PRIVATE if fault.is_private else 0
        self._exit(KVM_EXIT_MEMORY_FAULT, (flags, fault.gpa, fault.size), 0)
        return True

    def private_map(self) -> bitarray:
        """The handler's record, or KVM's attributes."""
        if not self.handler.has_map or self._is_new:
            return self.memory.attributes
        data = self.handler.read_map()
        if len(data) != (self.memory.frames + 7) // 8:
            return self.memory.attributes
        bits = bitarray(endian="little")
        bits.frombytes(data)
        return bits[: self.memory.frames]


class NativeHost(MemoryHost):
    """Merged KVM under the handler behind `spec`: FILE.so, FILE.so:in-process or cmd:COMMAND.

    `path` is the file or the command as the user allowed it; `counts_blocks` says that it was
    compiled with -fsanitize-coverage. `reset` raises `PluginError` where it cannot be started.
    """

    name: ClassVar[str] = "native"
    summary: ClassVar[str] = "a VMM's own exit handler, FILE.so or cmd:COMMAND"
    user: NativeUserSpace

    def __init__(self, path: str) -> None:
        self._path = path
        self.calls: Calls | None = None
        self.guard = HangGuard()
        self.counts_blocks = False
        self.user = NativeUserSpace(path, GuestMemory(0))
        super().__init__()

    @property
    def is_in_process(self) -> bool:
        """Whether the handler runs in this process."""
        return self._path.endswith(IN_PROCESS)

    def watch_calls(self, calls: Calls) -> None:
        """From now on `calls` hears of each call into the handler."""
        self.calls = self.user.calls = calls

    def make_user_space(self, frames: int) -> tuple[UserSpace, Injection]:
        """The handler for a VM with the slots described. It is started unless there is no RAM, or
        it runs: a process for each VM costs a Python's start."""
        running = self.user.handler
        memory = GuestMemory(frames, self.memory_slots)
        self.user = NativeUserSpace(self._path, memory, self.vcpu_count, running)
        if frames and self.user.handler is not running:
            features = self.user.handler.start()
            self.serves_migration_control = bool(features & wire.FEATURE_MIGRATION_CONTROL)
            self.counts_blocks = bool(features & wire.FEATURE_BLOCKS)
        self._has_map = self.user.handler.has_map
        self._attributes = memory.attributes
        self.user.calls = self.calls
        return self.user, self.user.injection

    def take_slot(self, slot: Slot) -> int:
        """See `NativeUserSpace.plug`."""
        return self.user.plug(slot)

    def renew(self) -> None:
        """The next VM is the first of its handler, also for what that keeps outside of a VM. In
        this process that is not possible."""
        self.user.renew()

    def private_map(self) -> bitarray:
        """See `NativeUserSpace.private_map`."""
        return self.user.private_map() if self._has_map else self._attributes

    @property
    def state(self) -> int:
        """The path in KVM, and above 32 bits the blocks of the handler that ran."""
        path = int(self.kvm.path)  # a native user space has no states of its own
        return path | self.user.blocks << _BLOCKS_SHIFT if self.counts_blocks else path

    def numbers(self) -> tuple[int, ...]:
        """The numbers in the machine code of a shared object."""
        from guestemu.host.native.code_words import numbers_of  # brings a disassembler

        is_file = not self._path.startswith(COMMAND)
        return numbers_of(Path(file_of(self._path))) if is_file else ()

    @property
    def migration_ready(self) -> bool:
        """Bit 0 of what the guest last wrote."""
        return bool(self.user.migration_control & KVM_MIGRATION_READY)
