# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a kernel from its entry to user space and on (facts U1 to U9, U26 to U28).

Beside a boot to `rest_init` that needs SYSCALL, interrupts, exceptions in user mode, MMIO, and an
answer to PID 1, which asks for commands by system calls that no kernel has.

Everything that the guest can see depends on what it did before, never on the computer: guest time
counts basic blocks and RDTSCs, an idle CPU jumps to its timer's deadline, and every RDTSC is
answered here, also in modules and in user mode. So two runs are equal, event for event.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from guestemu.abi import ghcb, tdx
from guestemu.abi.addresses import PAGE_SIZE, PMD_SIZE, Gva
from guestemu.abi.errors import GuestemuError, InputError
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.abi.x86 import RFLAGS_FIXED, RFLAGS_IF, VECTOR_NMI, VECTOR_VC, Mode
from guestemu.events.base import Event
from guestemu.events.devices import DeviceAccess, DeviceMessage
from guestemu.events.exits import HypercallExit
from guestemu.guest.linux import boot
from guestemu.guest.linux.kernel import Kernel
from guestemu.guest.linux.platform import Console
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.guest.linux.userland.callers import Callers
from guestemu.guest.linux.userland.cpus import HYPERCALL, Cpus
from guestemu.guest.linux.userland.hardware import PcHardware
from guestemu.guest.linux.userland.mappings import BOOT_OPTIONS, PREFIX, DmaMappings, Span
from guestemu.guest.linux.userland.random import RandomNumbers
from guestemu.guest.linux.userland.rules import DeviceRules
from guestemu.guest.td import VirtualException
from guestemu.machine import layout
from guestemu.machine.callbacks import CodeHook
from guestemu.machine.devices import find_device
from guestemu.machine.devices.apic import MSRS as APIC_MSRS
from guestemu.machine.devices.apic import LocalApics
from guestemu.machine.devices.hostile import Hostility
from guestemu.machine.devices.mmio import HOLE_END, HOLE_START
from guestemu.machine.devices.quiesce import HeldWork
from guestemu.machine.engine import HOOK_CODE
from guestemu.machine.exits import (
    BudgetExhausted,
    Exit,
    Halt,
    Hypercall,
    MapGpaRange,
    Shutdown,
    Syscall,
    Trap,
    Unbacked,
    VcpuAccess,
)
from guestemu.machine.interrupts import deliver
from guestemu.machine.machine import MachineConfig
from guestemu.machine.segments import KernelSegments

COMMAND_LINE: Final = (
    f"{boot.DEFAULT_COMMAND_LINE} printk.devkmsg=on cryptomgr.notests "
    "initcall_blacklist=jent_mod_init"
)
"""Without self-tests of cryptography: they take 3 to 15 seconds and touch no device (fact U10)."""

ONE_CPU: Final = "acpi=off noapic nolapic nosmp"
"""What `COMMAND_LINE` says of CPUs."""

SEVERAL_CPUS: Final = "noapic pci=lastbus=1"
"""In its place: the tables name no I/O APIC and no PCI bus."""

TDX_COMMAND_LINE: Final = "idle=poll"
"""A TD waits by TDVMCALL with interrupts enabled for one block only (fact U5)."""

_POOL_SLOTS: Final = 2048
"""What `COMMAND_LINE` gives swiotlb."""

START: Final = "rest_init"
GIVES_UP: Final = ("panic", "machine_halt", "native_machine_halt", "machine_power_off")
DEFAULT_BUDGET: Final = 2_000_000_000
"""Basic blocks; user space is reached after 60 to 150 million."""

HOST_NEXT: Final = 1_000_000
HOST_RESULT: Final = 1_000_001
"""System calls of init.c."""

_LSTAR: Final = 0xC0000082
_FMASK: Final = 0xC0000084
_NB_CFG: Final = 0xC001001F
_INTERCEPTED: Final = "intercepted"
_SYSCALL: Final = b"\x0f\x05"
_HLT: Final = b"\xf4"
_PAUSE: Final = b"\xf3\x90"
_POLL: Final = "cpu_idle_poll"
_MODULES: Final = 0xFFFF_FFFF_C000_0000
"""MODULES_VADDR (arch/x86/include/asm/pgtable_64_types.h) with CONFIG_RANDOMIZE_BASE."""
_CHUNK: Final = 200_000
_WINDOW: Final = 64
"""Basic blocks after which a CPU with interrupts off that has one waiting is looked at again."""
_NS_PER_BLOCK: Final = 2
_TSC_STEP: Final = 1000
_KERNEL_ADDRESS: Final = 0xFFFF_8880_0000_0000
_INITRD_BELOW_END: Final = PMD_SIZE
_RAMDISK_IMAGE: Final = 0x218
_MAX_LINE: Final = 1000
_MAX_DATA: Final = 4 << 20
_MAX_COMMAND_LINE: Final = 2047
COMMAND_BUDGET: Final = 400_000_000
"""Basic blocks of one command."""


class CommandFailed(GuestemuError):
    """The kernel did not come back from a command: `ended` says how it ended."""

    def __init__(self, command: str, ended: Ended) -> None:
        super().__init__(f"{command}: {ended.text}")
        self.ended = ended


class CommandResult(msgspec.Struct, frozen=True):
    """What PID 1 returned for a command: the result of the last system call of it (negative: an
    errno), and the bytes that were read."""

    command: str
    value: int
    data: bytes


def command_line(
    kernel: Kernel, sev: str, append: str = "", cpus: int = 1, devices: Sequence[str] = ()
) -> str:
    """The whole command line for `kernel` as a guest of this kind with these devices."""
    parts = [COMMAND_LINE]
    if cpus > 1:
        parts = [COMMAND_LINE.replace(ONE_CPU, f"{SEVERAL_CPUS} nr_cpus={cpus}")]
        slots = sum(find_device(name).BOUNCE_SLOTS for name in devices)
        if slots:
            parts.append(f"swiotlb={_POOL_SLOTS + cpus * slots}")
    if f"{PREFIX}dma_map" in kernel.symbols:
        parts.append(BOOT_OPTIONS)
    if sev == "tdx":
        parts.append(TDX_COMMAND_LINE)
    return " ".join([*parts, append]).strip()


class Ended(msgspec.Struct, frozen=True):
    """Why a run ended: `reason` is "idle" (PID 1 waits for a command), "until", "halted",
    "panic", "budget" or "stopped"; `text` one line."""

    reason: str
    text: str


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot keeps of a run. `asked` is the command that PID 1 carries out, None where it
    is idle."""

    rip: int
    tsc: int
    randoms: int
    blocks: int
    syscalls: int
    interrupts: int
    traps: int
    reflected: dict[int, int]
    exceptions: dict[int, VirtualException]
    accesses: int
    messages: dict[str, list[int]]
    checked: dict[str, int]
    mappings: dict[str, int]
    live: list[Span]
    purposes: dict[str, int]
    event_hash: str
    asked: str | None


class _Kept(msgspec.Struct, frozen=True):
    """A checkpoint beside the machine's own."""

    state: RunState
    rules: tuple[frozenset[int], int]
    exits: int
    results: int
    contexts: list[bytes]


class RunRecorder(BootRecorder):
    """A `BootRecorder` that also calls `notify` with each exit. `apics` answer their own MSRs."""

    def __init__(self, notify: Callable[[Event], None], apics: LocalApics | None) -> None:
        super().__init__()
        self._notify = notify
        self._apics = apics

    def hypercall(self, call: Hypercall) -> int:
        """See `ExitHandler`."""
        value = super().hypercall(call)
        self._notify(self.exits[-1])
        return value

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """See `ExitHandler`."""
        value = super().map_gpa_range(call)
        self._notify(self.exits[-1])
        return value

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        """See `ExitHandler`."""
        if self._apics is not None and index in APIC_MSRS:
            return self._apics.read(vcpu.index, index)
        return super().rdmsr(index, vcpu)

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """See `ExitHandler`."""
        if self._apics is not None and index in APIC_MSRS:
            self._apics.write(vcpu.index, index, value)
            return
        super().wrmsr(index, value, vcpu)
        self._notify(self.exits[-1])


class Patience:
    """Tells a driver that waits for an answer that was lost: `TICKS` interrupts have come since a
    device last touched memory. An idle CPU goes from one timer interrupt to the next, 250 in a
    second of guest time."""

    TICKS: Final = 100

    def __init__(self, running: RunningKernel) -> None:
        self._running = running
        self._accesses, self._since = running.accesses, running.interrupts

    def is_over(self) -> bool:
        """For `RunningKernel.run`."""
        running = self._running
        if running.accesses != self._accesses:
            self._accesses, self._since = running.accesses, running.interrupts
        return running.interrupts - self._since > self.TICKS


class RunningKernel:
    """A kernel with its initramfs and devices, from the entry point on.

    `listeners` hear of every event when it happens. `blocks` counts basic blocks, `syscalls` those
    of user mode, `interrupts` those delivered, `traps` MMIO by #VC or #VE, `accesses` those of
    devices to memory, `messages` those of each device to each CPU by MSI-X. `results` are PID 1's
    answers to commands; `mappings` the DMA mappings that the kernel reports; `rules` judge every
    access of a device, `callers` say what pages were converted for.
    """

    def __init__(
        self,
        kernel: Kernel,
        config: MachineConfig,
        initramfs: bytes,
        *,
        devices: Sequence[str] = (),
        command_line: str = COMMAND_LINE,
        on_line: Callable[[str], None] | None = None,
        load: bool = True,
    ) -> None:
        """Loads everything (without `load` only the machine, for a snapshot); runs nothing. Raises
        `InputError` for what does not fit."""
        self.kernel = kernel
        self.listeners: list[Callable[[Event], None]] = []
        self.results: list[CommandResult] = []
        self.blocks = self.syscalls = self.interrupts = self.traps = self.accesses = 0
        self.messages: dict[str, list[int]] = {}
        self._hash = hashlib.sha256()
        self._on_line = on_line
        self._commands: list[str] = []
        self._asked: str | None = None
        self._is_idle = False
        self._stops: dict[int, str] = {}
        self._actions: dict[int, Callable[[], Ended | None]] = {}
        self._wanted: set[str] = set()
        self._passed = 0
        self._has_polled = False
        self._polling = range(0)
        """A TD's cpu_idle_poll()."""

        self._kept: _Kept | None = None
        self.mapped: list[memoryview] = []
        """Parts of guest memory that a snapshot file is mapped over."""
        self.console = Console(self._line)
        bare = msgspec.structs.replace(config, defer_memory_hooks=True)
        self.machine, self.platform = boot.build_machine(kernel, bare, self.console, load)
        self.machine.msrs.platform[_NB_CFG] = 0
        self.hardware = PcHardware(self.machine, self.platform, devices, self.note)
        self._reflects_mmio = self.platform.sev is not None or self.platform.td is not None
        if not self._reflects_mmio and self.machine.mmio is not None:
            self.machine.mmio.install(self.machine.hooks)
        if load:
            self._load(initramfs, command_line)
        self.mappings = DmaMappings(kernel, self.machine, self.note)
        self.rules = DeviceRules(kernel, self.machine, self.platform, self.mappings, self.note)
        self.listeners.append(self.rules.hear)
        self.callers = Callers(kernel, self.machine)
        self.listeners.append(self._attribute)
        self.machine.log.listener = self.hear
        self.recorder = RunRecorder(self.note, self.hardware.apics)
        self.machine.hooks.handler = self.recorder
        self._rip = kernel.entry
        self._hook()
        vcpu = self.machine.current
        vcpu.enter(Mode.LONG64, 0)
        for name, value in (
            ("rsi", boot.BOOT_PARAMS),
            ("rsp", layout.KERNEL_STACK),
            ("rflags", RFLAGS_FIXED),
        ):
            vcpu.write_register(name, value)

    @property
    def event_hash(self) -> str:
        """SHA-256 over all events and console lines so far."""
        return self._hash.hexdigest()

    def save_state(self) -> RunState:
        """The state between two basic blocks. From here on the hash starts anew from its present
        value, as it does in a run that is restored from a snapshot."""
        state = RunState(
            rip=self._rip,
            tsc=self.platform.tsc,
            randoms=self._random.count,
            blocks=self.blocks,
            syscalls=self.syscalls,
            interrupts=self.interrupts,
            traps=self.traps,
            reflected={} if self.platform.td is None else dict(self.platform.td.reflected),
            exceptions={} if self.platform.td is None else dict(self.platform.td.exceptions),
            accesses=self.accesses,
            messages={name: list(counts) for name, counts in self.messages.items()},
            checked=dict(self.rules.checked),
            mappings=dict(self.mappings.counts),
            live=list(self.mappings.live),
            purposes=dict(self.callers.pages),
            event_hash=self.event_hash,
            asked=None if self._is_idle else self._asked or "",
        )
        self._hash = hashlib.sha256(state.event_hash.encode())
        return state

    def load_state(self, state: RunState) -> None:
        """What `save_state` returned."""
        self._rip = state.rip
        self.platform.tsc = state.tsc
        self._random.count = state.randoms
        self.blocks, self.syscalls = state.blocks, state.syscalls
        self.interrupts, self.traps = state.interrupts, state.traps
        if self.platform.td is not None:
            self.platform.td.reflected = dict(state.reflected)
            self.platform.td.exceptions = dict(state.exceptions)
        self.accesses = state.accesses
        self.messages = {name: list(counts) for name, counts in state.messages.items()}
        self.rules.checked.update(state.checked)
        self.mappings.counts.clear()
        self.mappings.counts.update(state.mappings)
        self.mappings.live[:] = state.live
        self.callers.pages.clear()
        self.callers.pages.update(state.purposes)
        self._passed = 0
        self._hash = hashlib.sha256(state.event_hash.encode())
        self._asked, self._is_idle = state.asked, state.asked is None

    # Experiments ------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """What `rollback` returns to: now, where PID 1 is idle.

        The first time the memory hooks go on, so that only pages that were written are put back;
        every frame that the host has as shared is taken to hold what its shared view holds (facts
        U22, U25). Running is slower from then on.
        """
        machine = self.machine
        if machine.ram.is_plain:
            for part in self.mapped:  # a page counts as empty until it was touched
                bytes(part[::PAGE_SIZE])
            td = self.platform.td
            machine.watch_memory(sorted(self.rules.shared) if td is None else td.sept.shared())
        contexts = self.save_contexts()
        machine.checkpoint()
        self.load_contexts(contexts)
        self._kept = _Kept(
            state=self.save_state(),
            rules=self.rules.keep(),
            exits=len(self.recorder.exits),
            results=len(self.results),
            contexts=contexts,
        )

    def rollback(self) -> None:
        """Back to the checkpoint: memory, CPUs, devices, page states, the host's record, counters.
        The console's text stays."""
        kept = self._kept
        if kept is None:
            raise ValueError("rollback without a checkpoint")
        self.machine.rollback()
        self.load_contexts(kept.contexts)
        del self.recorder.exits[kept.exits :]
        del self.results[kept.results :]
        self._commands.clear()
        self.load_state(kept.state)
        self.rules.restore(kept.rules)

    def make_hostile(self, name: str) -> Hostility:
        """What makes the device `name` hostile. Raises `InputError` for an unknown one."""
        device = self.hardware.devices.get(name)
        if device is None:
            raise InputError(f"device {name}: this kernel has {', '.join(self.hardware.devices)}")
        pulse = self.hardware.pic.pulse
        return Hostility(device, self.machine.ram, self.note, pulse)

    def release(self, name: str, work: HeldWork) -> None:
        """Has the device `name` do what it had not done where it was stopped (`Quiescence`)."""
        work.carry_out(self.hardware.devices[name])
        self.hardware.take_unspent()  # no run is cut short here

    def attach_segments(self, state: tuple[int, bytes]) -> None:
        """The kernel's segments from a snapshot."""
        segments = KernelSegments(self.machine.engine, self.machine.modes)
        segments.load(state)
        for vcpu in self.machine.vcpus:
            vcpu.kernel_segments = segments

    def save_contexts(self) -> list[bytes]:
        """The registers of every CPU; empty for one that has not executed yet."""
        self.machine.current.save()
        return [vcpu.saved for vcpu in self.machine.vcpus]

    def load_contexts(self, contexts: Sequence[bytes]) -> None:
        """What `save_contexts` returned; `Cpus` says which CPU executes."""
        machine, cpus = self.machine, self.hardware.cpus
        for vcpu, context in zip(machine.vcpus, contexts, strict=True):
            vcpu.saved = context
        machine.current = machine.vcpus[0 if cpus is None else cpus.state.current]
        machine.current.load()

    # Setting up -------------------------------------------------------------------------------

    def _load(self, initramfs: bytes, command_line: str) -> None:
        ram = self.machine.ram
        size = ram.frames * PAGE_SIZE
        at = (size - _INITRD_BELOW_END - len(initramfs)) & ~(PAGE_SIZE - 1)
        if at < self.kernel.segments.extent + PMD_SIZE:
            raise InputError(
                f"memory {size >> 20}M: {self.kernel.name} and an initramfs of "
                f"{len(initramfs) >> 10} KiB do not fit; give it more memory"
            )
        ram.private[at : at + len(initramfs)] = initramfs
        image = boot.BOOT_PARAMS + _RAMDISK_IMAGE
        ram.private[image : image + 8] = struct.pack("<II", at, len(initramfs))
        text = command_line.encode()
        if len(text) > _MAX_COMMAND_LINE:
            raise InputError(f"the command line has {len(text)} bytes, {_MAX_COMMAND_LINE} at most")
        where = boot.COMMAND_LINE
        ram.private[where : where + len(text) + 1] = text + b"\0"

    def _hook(self) -> None:
        hooks = self.machine.hooks
        hooks.end_at_syscall()
        hooks.answer_tsc(self._read_tsc)
        self._random = RandomNumbers(self.machine)
        for site in self.kernel.sites:
            if site.mnemonic == "rdrand":
                self._random.hook(site.address)
        for name in (START, *GIVES_UP):
            if name in self.kernel.symbols:
                self._add_stop(self.kernel.address(name), name)
        if self.platform.td is not None:
            self._hook_polling()

    def _hook_polling(self) -> None:
        """The PAUSE of a TD's cpu_idle_poll() is what HLT is elsewhere: the CPU is idle (U5)."""
        start = next(
            (at for name, at in self.kernel.symbols.items() if name.partition(".")[0] == _POLL), 0
        )
        if not start:
            return
        hooks = self.machine.hooks

        def on_code(_uc: object, rip: int, _size: int, _user: object) -> None:
            if self.machine.current.read_code(len(_PAUSE)) == _PAUSE:
                self._has_polled = True
                self.hardware.look_soon()

        end = min((at for at in self.kernel.symbols.values() if at > start), default=start + 1)
        self._polling = range(start, end)
        hooks.engine.add_hook(HOOK_CODE, CodeHook(on_code), begin=start, end=end - 1)

    def _read_tsc(self) -> int:
        self.platform.tsc += _TSC_STEP
        return self.platform.tsc

    def stop_at(self, function: str) -> None:
        """Runs end where `function` is entered. Before that code is run first.

        Raises `InputError` where the kernel lacks it.
        """
        self._wanted.add(function)
        self._add_stop(self.kernel.address(function), function)

    def intercept(self, address: int, action: Callable[[], Ended | None] | None = None) -> None:
        """Asks `action` whenever the instruction at `address` is about to execute: it may change
        registers, RIP too; what it returns ends the run. Without an action only a turn can end
        there."""
        if action is not None:
            self._actions[address] = action
        if address not in self._stops:
            self._add_stop(address, _INTERCEPTED)
            self.machine.engine.flush_blocks()

    def _add_stop(self, address: int, name: str) -> None:
        if address in self._stops:
            return
        self._stops[address] = name
        hooks = self.machine.hooks

        def on_stop(_uc: object, rip: int, _size: int, _user: object) -> None:
            if rip == self._passed:
                self._passed = 0  # the run goes on from where this stop ended the last one
                return
            hooks.pending = Trap(rip)
            hooks.engine.stop()

        hooks.engine.add_hook(HOOK_CODE, CodeHook(on_stop), begin=address, end=address)

    # Events -----------------------------------------------------------------------------------

    def note(self, event: Event) -> None:
        """One thing happened: into the machine's log, and to all who listen."""
        self.machine.log.append(event)

    def hear(self, event: Event) -> None:
        """An event of this machine: counts, the hash, the rules."""
        self.accesses += isinstance(event, DeviceAccess)
        if isinstance(event, DeviceMessage):
            counts = self.messages.setdefault(event.device, [0] * len(self.machine.vcpus))
            for index in event.cpus:
                counts[index] += 1
        cpus = self.hardware.cpus
        if (
            cpus is not None
            and isinstance(event, HypercallExit)
            and cpus.end_turn(lambda turn: turn.event == HYPERCALL)
        ):
            self.hardware.look_soon()
        self._hash.update(msgspec.json.encode(event))
        for listener in self.listeners:
            listener(event)

    def _attribute(self, event: Event) -> None:
        """Counts conversions by what they are for, those after `START`."""
        if not isinstance(event, HypercallExit) or self.machine.current.kernel_segments is None:
            return
        if event.nr == KVM_HC_MAP_GPA_RANGE:
            self.callers.count(event.args[1])

    def _line(self, line: str) -> None:
        self._hash.update(line.encode())
        if self._on_line is not None:
            self._on_line(line)

    # Running ----------------------------------------------------------------------------------

    def run(self, budget: int = DEFAULT_BUDGET, until: Callable[[], bool] | None = None) -> Ended:
        """Until PID 1 waits for a command, `until` says so (asked some ten times in a millisecond
        of guest time), the kernel gives up, or `budget` basic blocks are used up."""
        last = self.blocks + budget
        while self.blocks < last:
            if until is not None and until():
                return Ended("until", "the condition holds")
            ended = None if self.hardware.cpus is None else self._choose_cpu()
            if ended is None:
                ended = self._handle(self._execute_chunk(min(self._chunk, last - self.blocks)))
            if ended is not None:
                return ended
        return Ended("budget", f"{budget} basic blocks are used up in {self.where}")

    @property
    def _chunk(self) -> int:
        return _CHUNK if self.hardware.cpus is None else self.hardware.cpus.slice

    def _choose_cpu(self) -> Ended | None:
        """The next CPU that has something to do becomes the current one; where all wait, guest time
        goes on to the next timer."""
        cpus = self.hardware.cpus
        assert cpus is not None
        here = cpus.states[self.machine.current.index]
        here.rip, here.passed = self._rip, self._passed
        while cpus.turns:
            if self._choose(cpus, cpus.turns[0].cpu):
                return None
            del cpus.turns[0]  # it waits
        while True:
            if any(self._choose(cpus, index) for index in cpus.order):
                return None
            if not self._advance():
                return Ended("halted", f"all CPUs halted with no timer armed in {self.where}")

    def _choose(self, cpus: Cpus, index: int) -> bool:
        """CPU `index` becomes the current one if it has something to do; whether it has."""
        state = cpus.states[index]
        if cpus.begin(index):
            self._rip, self._passed = self.machine.current.read_register("rip"), 0
            return True
        if not cpus.may_execute(index):
            return False
        has_interrupt = self.hardware.has_interrupt(index)
        has_nmi = self.hardware.has_nmi(index)
        if state.is_halted and not has_interrupt and not has_nmi:
            return False
        cpus.change(index)
        self._rip, self._passed = state.rip, state.passed
        state.is_halted = False
        if has_nmi:
            self._take_nmi(index)
        elif has_interrupt:
            self._take_interrupt()
        return True

    def _advance(self) -> bool:
        """Guest time goes on to the next timer; whether there is one."""
        deadline = self.hardware.deadline()
        if deadline is None:
            return False
        self.platform.tsc = max(self.platform.tsc, deadline)
        return True

    @property
    def where(self) -> str:
        """The kernel function where the CPU stands, or the address."""
        if self._rip >= _MODULES:
            return f"a module at {self._rip:#x}"
        return self.kernel.symbol_at(self._rip)

    def _execute_chunk(self, chunk: int) -> Exit:
        """Up to `chunk` basic blocks. Of several CPUs, one that turns interrupts on takes what
        waits for it within `_WINDOW` blocks: so a CPU that waits for its answer gets it."""
        if not self._holds_interrupts_off():
            return self._execute(chunk)
        last = self.blocks + chunk
        while True:
            end_of_window = min(self.blocks + _WINDOW, last)
            end = self._execute(end_of_window - self.blocks)
            is_cut = self.blocks < end_of_window  # something else ended it
            if not isinstance(end, BudgetExhausted) or is_cut or self.blocks >= last:
                return end
            self._rip = end.rip
            if not self._holds_interrupts_off():
                return end

    def _holds_interrupts_off(self) -> bool:
        """Whether an interrupt waits for the current CPU of several, which has interrupts off."""
        if self.hardware.cpus is None:
            return False
        vcpu = self.machine.current
        flags = vcpu.read_register("rflags")
        return not flags & RFLAGS_IF and self.hardware.has_interrupt(vcpu.index)

    def _execute(self, chunk: int) -> Exit:
        vcpu, watch = self.machine.current, self.machine.hooks.watch
        end: Exit = vcpu.run(self._rip, chunk)
        spent = chunk - self.hardware.take_unspent() - max(watch.left, 0)
        if self.hardware.cpus is not None:
            self.hardware.cpus.spend(spent)
        self.blocks += spent
        self.platform.tsc += _NS_PER_BLOCK * spent
        return end

    def _handle(self, end: Exit) -> Ended | None:
        vcpu = self.machine.current
        if isinstance(end, BudgetExhausted):
            self._rip = end.rip
            has_polled, self._has_polled = self._has_polled, False
            if not self._take_interrupt() and has_polled and self._rip in self._polling:
                self._advance()
                self._take_interrupt()
        elif isinstance(end, Syscall):
            return self._syscall()
        elif isinstance(end, Halt):
            self._rip = end.rip
            vcpu.write_register("rip", end.rip)
            return self._wait()
        elif isinstance(end, Unbacked):
            return self._reflect(end)
        elif isinstance(end, Trap):
            self._rip = self._passed = end.rip
            return self._stopped(end.rip)
        else:
            self._rip = vcpu.read_register("rip")
            reason = end.reason if isinstance(end, Shutdown) else str(end)
            return Ended("stopped", f"{reason}, in {self.where}")
        return None

    def _stopped(self, address: int) -> Ended | None:
        name = self._stops.get(address, "")
        machine = self.machine
        cpus = self.hardware.cpus
        if cpus is not None:
            cpus.end_turn(lambda turn: turn.address == address)
        action = self._actions.get(address)
        if action is not None:
            machine.current.write_register("rip", address)
            ended = action()
            self._rip = machine.current.read_register("rip")
            self._passed = address if self._rip == address else 0
            return ended
        if name == START and machine.current.kernel_segments is None:
            machine.current.kernel_segments = KernelSegments(machine.engine, machine.modes)
            if START not in self._wanted:
                return None
        if name == "panic":
            vcpu = self.machine.current
            raw = vcpu.read_memory(Gva(vcpu.read_register("rdi")), 120) or b""
            text = raw.partition(b"\0")[0].decode("ascii", "replace").strip()
            return Ended("panic", f"kernel panic: {text}")
        if name in GIVES_UP and name not in self._wanted:
            return Ended("halted", f"the kernel halted in {name}")
        if name == _INTERCEPTED:
            return None
        return Ended("until", f"reached {name or hex(address)}")

    def _reflect(self, access: Unbacked) -> Ended | None:
        """MMIO of a guest that has to ask for it: #VC or #VE at the instruction."""
        vcpu = self.machine.current
        vcpu.write_register("rip", access.rip)
        self._rip = access.rip
        if not self._reflects_mmio or not HOLE_START <= access.gpa < HOLE_END:
            kind = "store to" if access.is_write else "load from"
            return Ended("stopped", f"{kind} GPA {access.gpa:#x} without memory, in {self.where}")
        self.traps += 1
        td = self.platform.td
        if td is None:
            failed = vcpu.inject(VECTOR_VC, ghcb.EXIT_NPF)
        else:
            fault = td.raise_ve(
                VirtualException(
                    reason=tdx.EXIT_REASON_EPT_VIOLATION,
                    qualification=2 if access.is_write else 1,
                    gla=_KERNEL_ADDRESS + access.gpa,
                    gpa=self.machine.bit.select(access.gpa, private=False),
                )
            )
            failed = vcpu.inject(fault.vector, fault.error_code)
        self._rip = vcpu.read_register("rip")
        return None if failed is None else Ended("stopped", str(failed))

    # Interrupts -------------------------------------------------------------------------------

    def _take_interrupt(self) -> bool:
        """Delivers what the controllers have, if the CPU takes it; whether they have anything."""
        vcpu = self.machine.current
        if not self.hardware.has_interrupt(vcpu.index):
            return False
        vcpu.write_register("rip", self._rip)
        if vcpu.read_register("rflags") & RFLAGS_IF and vcpu.read_code(1) != _HLT:
            self.interrupts += 1
            deliver(vcpu, self.hardware.acknowledge(vcpu.index), None)
            self._rip = vcpu.read_register("rip")
        return True

    def _take_nmi(self, index: int) -> None:
        """Delivers the NMI that stands at CPU `index`, whatever its interrupt flag."""
        vcpu = self.machine.current
        vcpu.write_register("rip", self._rip)
        self.interrupts += 1
        self.hardware.acknowledge_nmi(index)
        deliver(vcpu, VECTOR_NMI, None)
        self._rip = vcpu.read_register("rip")

    def _wait(self) -> Ended | None:
        """HLT: guest time goes on to the next interrupt, or another CPU runs."""
        cpus, index = self.hardware.cpus, self.machine.current.index
        if not self.machine.current.read_register("rflags") & RFLAGS_IF:
            if cpus is None or cpus.online == 1:
                return Ended("halted", f"halted with interrupts off in {self.where}")
            cpus.states[index].is_dead = True
            return None
        if cpus is not None:
            cpus.states[index].is_halted = not self._take_interrupt()
            return None
        while not self._take_interrupt():
            if not self._advance():
                return Ended("halted", f"halted with no timer armed in {self.where}")
        return None

    # System calls -----------------------------------------------------------------------------

    def _syscall(self) -> Ended | None:
        """SYSCALL (AMD64 APM volume 3): to LSTAR at CPL 0; PID 1's own calls end here."""
        vcpu, engine = self.machine.current, self.machine.engine
        back = vcpu.read_register("rip")
        if vcpu.read_code(len(_SYSCALL)) == _SYSCALL:
            back += len(_SYSCALL)
        number = vcpu.read_register("rax")
        if number in {HOST_NEXT, HOST_RESULT}:
            self._rip = back
            vcpu.write_register("rip", back)
            if number == HOST_NEXT:
                return self._next()
            self._result()
            return None
        self.syscalls += 1
        flags = vcpu.read_register("rflags")
        segments = vcpu.kernel_segments
        if segments is None:
            return Ended("stopped", f"SYSCALL before {START}")
        segments.enter()
        vcpu.write_register("rcx", back)
        vcpu.write_register("r11", flags)
        vcpu.write_register("rflags", flags & ~engine.read_msr(_FMASK) | RFLAGS_FIXED)
        self._rip = engine.read_msr(_LSTAR)
        vcpu.write_register("rip", self._rip)
        return None

    def _next(self) -> Ended | None:
        """PID 1 asks for a command."""
        if not self._commands:
            self._is_idle = True
            return Ended("idle", "PID 1 waits for a command")
        self._asked = self._commands.pop(0)
        vcpu = self.machine.current
        data = self._asked.encode()
        if not vcpu.write_memory(Gva(vcpu.read_register("rdi")), data):
            return Ended("stopped", "PID 1's buffer is not mapped")
        vcpu.write_register("rax", len(data))
        return None

    def _result(self) -> None:
        vcpu = self.machine.current
        value = vcpu.read_register("rdx")
        size = min(vcpu.read_register("rsi"), _MAX_DATA)
        data = vcpu.read_memory(Gva(vcpu.read_register("rdi")), size) or b""
        value -= (value >> 63) << 64
        self.results.append(CommandResult(self._asked or "", value, data))
        vcpu.write_register("rax", 0)

    def command(
        self,
        text: str,
        budget: int = COMMAND_BUDGET,
        until: Callable[[], bool] | None = None,
    ) -> CommandResult:
        """Has PID 1 carry out one command of init.c; it must be idle. `until` as in `run`.

        Raises `InputError` for a command of several lines, and `CommandFailed` where the kernel did
        not come back from it.
        """
        if not text.strip() or len(text.encode()) > _MAX_LINE or not text.isprintable():
            raise InputError(f"command {text[:40]!r}: one line of at most {_MAX_LINE} characters")
        if not self._is_idle:
            raise CommandFailed(text, Ended("stopped", "PID 1 does not wait for a command"))
        done = len(self.results)
        ended = self.begin(text, budget, until)
        if ended.reason != "idle" or len(self.results) == done:
            raise CommandFailed(text, ended)
        return self.results[-1]

    def begin(
        self,
        text: str,
        budget: int = COMMAND_BUDGET,
        until: Callable[[], bool] | None = None,
    ) -> Ended:
        """Has PID 1, which is idle, begin a command, and runs as `run` does."""
        self._is_idle = False
        self._commands.append(text)
        return self._next() or self.run(budget, until)
