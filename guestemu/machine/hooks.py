# SPDX-License-Identifier: GPL-2.0-or-later
"""The hooks of one CPU: they turn what the emulator reports into a pending event.

A hypercall is answered inside its hook where there is a handler (twice as fast as stopping
and starting again). Everything else is recorded and ends the run; `Vcpu` then decides. No hook lets
an exception through into C: it is kept in `errors`, the run ends, and `Vcpu` raises it again.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from guestemu.abi.ghcb import EXIT_VMMCALL
from guestemu.abi.x86 import VECTOR_VC
from guestemu.machine.callbacks import (
    CodeHook,
    CpuidHook,
    InHook,
    InterruptHook,
    InvalidHook,
    OutHook,
    SyscallHook,
    TscHook,
    UnmappedHook,
)
from guestemu.machine.cpuid import CpuidLeaf
from guestemu.machine.engine import (
    HOOK_BLOCK,
    HOOK_CODE,
    HOOK_INSN,
    HOOK_INSN_INVALID,
    HOOK_INTR,
    HOOK_MEM_UNMAPPED,
    INSN_CPUID,
    INSN_IN,
    INSN_OUT,
    INSN_RDTSC,
    INSN_RDTSCP,
    INSN_SYSCALL,
    MEM_WRITE_UNMAPPED,
    REGISTERS,
    Engine,
    RegisterBatch,
)
from guestemu.machine.exits import (
    ExitHandler,
    GuestFault,
    Halt,
    Hypercall,
    PortOut,
    Shutdown,
    Syscall,
    Trap,
    Unbacked,
    Vmgexit,
)
from guestemu.machine.interventions import Intervention
from guestemu.machine.native import HostCode
from guestemu.machine.pc_sync import find_switch

if TYPE_CHECKING:
    from guestemu.machine.vcpu import Vcpu

COUNTER_SIZE: Final = 1 << 12

_VMMCALL, _VMCALL, _VMGEXIT, _TRAP, _INVALID, _REFLECTED, _ANSWERED = range(7)
_INSTRUCTIONS: Final = {
    b"\x0f\x01\xd9": _VMMCALL,
    b"\x0f\x01\xc1": _VMCALL,
    b"\xf3\x0f\x01\xd9": _VMGEXIT,
}
HYPERCALL_LENGTH: Final = 3
_ANSWERED_LENGTH: Final = 4
_EVERYWHERE: Final = -1

DecideHook = ctypes.CFUNCTYPE(ctypes.c_bool)
"""What the native hook of VMMCALL calls; the arguments it passes as well are not looked at."""


class BlockWatch(ctypes.Structure):
    """The record that the native block hook works on; layout as in native/hooks.c."""

    _fields_ = (
        ("counters", ctypes.c_uint64),
        ("mask", ctypes.c_uint64),
        ("left", ctypes.c_int64),
        ("stop", ctypes.c_uint64),
        ("unsynced", ctypes.c_uint64),
    )


class InvalidWatch(ctypes.Structure):
    """The record that the native hook of VMMCALL works on; layout as in native/hooks.c."""

    _fields_ = (
        ("read_batch", ctypes.c_uint64),
        ("in_ids", ctypes.c_uint64),
        ("in_values", ctypes.c_uint64),
        ("in_count", ctypes.c_uint64),
        ("decide", ctypes.c_void_p),
        ("write_batch", ctypes.c_uint64),
        ("out_ids", ctypes.c_uint64),
        ("out_values", ctypes.c_uint64),
        ("out_count", ctypes.c_uint64),
    )


class PendingException:
    """An exception that the CPU raised at the instruction where the run ended."""

    __slots__ = ("vector",)

    def __init__(self, vector: int) -> None:
        self.vector = vector


class PendingMsr:
    """RDMSR or WRMSR about to execute."""

    __slots__ = ("is_write", "rip")

    def __init__(self, rip: int, is_write: bool) -> None:
        self.rip = rip
        self.is_write = is_write


Pending = (
    PendingException
    | PendingMsr
    | GuestFault
    | Intervention
    | Hypercall
    | Vmgexit
    | Trap
    | Syscall
    | PortOut
    | Unbacked
    | Halt
    | Shutdown
    | None
)

Instruction = Callable[["Vcpu"], Vmgexit | Shutdown | Halt | int | None]
"""Carries out an instruction for the emulator: the exit to end with, or None to go on behind it; a
number is RAX there, for an instruction that has not written it."""


class CpuHooks:
    """Hooks of one engine, and what they noted.

    `counters` are 4096 eight-bit counters of basic blocks (never wrapping to 0); `traps` the
    addresses of UD2 instructions that end a run instead of raising #UD. `cpuid_function` (function,
    subfunction) replaces the table `cpuid`; `port_in` and `port_out` answer I/O ports in place:
    without them an OUT is an exit and an IN reads all ones. `instructions` are carried out by what
    they map to; the keys are encodings of four bytes that the emulator takes for undefined.
    `reflects_vmmcall` makes VMMCALL a #VC and VMCALL a #UD, as in a SEV-ES guest (A31);
    `vmcall_fault`, as in a TD, makes VMMCALL a #UD and VMCALL what it returns (T32); `msr_fault`,
    where it is set, what RDMSR (False) and WRMSR (True) of an MSR raise that the CPU does not keep
    (None: nothing).
    """

    def __init__(self, engine: Engine, code: HostCode, cbit_mask: int) -> None:
        self.engine = engine
        self.cbit_mask = cbit_mask
        self.pending: Pending = None
        self.errors: list[BaseException] = []
        self.traps: set[int] = set()
        self.handler: ExitHandler | None = None
        self.vcpu: Vcpu | None = None
        self.cpuid: dict[int, CpuidLeaf] = {}
        self.cpuid_function: Callable[[int, int], CpuidLeaf] | None = None
        self.port_in: Callable[[int, int], int] | None = None
        self.port_out: Callable[[int, int, int], None] | None = None
        self.counters = bytearray(COUNTER_SIZE)
        self.rip_moved = False
        self.reflects_vmmcall = False
        self.vmcall_fault: Callable[[], GuestFault] | None = None
        self.msr_fault: Callable[[bool], GuestFault | None] | None = None
        self.instructions: dict[bytes, Instruction] = {}
        self._answers: dict[int, Instruction] = {}
        self.patched: list[int] = []
        self._kinds: dict[int, int] = {}
        self._msr_sites: dict[int, bool] = {}
        self._in = RegisterBatch(engine, ("rip", "rax", "rbx", "rcx", "rdx", "rsi", "cs"))
        self._out = RegisterBatch(engine, ("rax", "rip"))
        self._in_values = self._in.values
        self._out_values = self._out.values
        self.watch = BlockWatch()
        self._counters_owner: object = self.counters
        self._counted = memoryview(self.counters)
        self.watch.counters = ctypes.addressof(
            (ctypes.c_char * COUNTER_SIZE).from_buffer(self.counters)
        )
        self.watch.mask = COUNTER_SIZE - 1
        self.watch.stop = engine.function("uc_emu_stop")
        self._is_native = code.available
        if code.available:
            engine.add_native_hook(HOOK_BLOCK, code.block_hook, self.watch)
        else:
            engine.add_hook(HOOK_BLOCK, CodeHook(self._on_block))
        self._decide_hook = DecideHook(self._decide)
        self.invalid_watch = InvalidWatch()
        self._add_invalid_hook(code)
        engine.add_hook(HOOK_INTR, InterruptHook(self._on_interrupt))
        engine.add_hook(HOOK_MEM_UNMAPPED, UnmappedHook(self._on_unmapped))
        engine.add_hook(HOOK_INSN, CpuidHook(self._on_cpuid), instruction=INSN_CPUID)
        engine.add_hook(HOOK_INSN, OutHook(self._on_out), instruction=INSN_OUT)
        engine.add_hook(HOOK_INSN, InHook(self._on_in), instruction=INSN_IN)

    def clear(self) -> None:
        """Before a run: nothing is pending."""
        self.pending = None

    def _add_invalid_hook(self, code: HostCode) -> None:
        engine = self.engine
        if not code.available:
            engine.add_hook(HOOK_INSN_INVALID, InvalidHook(self._on_invalid))
            return
        watch = self.invalid_watch
        watch.read_batch = engine.function("uc_reg_read_batch")
        watch.in_ids, watch.in_values, watch.in_count = self._in.addresses
        watch.decide = ctypes.cast(self._decide_hook, ctypes.c_void_p)
        watch.write_batch = engine.function("uc_reg_write_batch")
        watch.out_ids, watch.out_values, watch.out_count = self._out.addresses
        engine.add_native_hook(HOOK_INSN_INVALID, code.invalid_hook, watch)

    def add_msr_site(self, rip: int, is_write: bool) -> None:
        """Makes the RDMSR or WRMSR at linear address `rip` an exit. Before the code first runs."""
        if rip not in self._msr_sites:
            self.engine.add_hook(HOOK_CODE, CodeHook(self._on_msr), begin=rip, end=rip)
        self._msr_sites[rip] = is_write

    def add_fault_site(self, rip: int, fault: Callable[[], GuestFault | None]) -> None:
        """Asks `fault` before each execution of the instruction at linear address `rip`: what it
        returns is raised there (None: nothing). Flush the translated blocks afterwards."""

        def on_site(_uc: object, _rip: int, _size: int, _user: object) -> None:
            try:
                raised = fault()
            except BaseException as error:
                self.errors.append(error)
                self.engine.stop()
                return
            if raised is not None:
                self.pending = raised
                self.engine.stop()

        self.engine.add_hook(HOOK_CODE, CodeHook(on_site), begin=rip, end=rip)

    def add_out_site(self, after: int) -> None:
        """Makes an OUT whose next instruction is at `after` end the run there. Elsewhere the CPU
        notices a port write's stop at the end of the block. Before the code first runs."""
        self.engine.add_hook(HOOK_CODE, CodeHook(self._on_after_out), begin=after, end=after)

    @contextlib.contextmanager
    def rip_by_block(self) -> Iterator[None]:
        """Inside, hooks of loads and stores find RIP at the start of its block, and a run that they
        end leaves it there; faults and every other exit have it right. Looking RIP up takes half of
        the time of code that runs once. Without native hooks nothing changes."""
        switch = find_switch() if self._is_native else None
        if switch is not None:
            self.watch.unsynced = (self.engine.handle.value or 0) + switch
        try:
            yield
        finally:
            self.watch.unsynced = 0

    def end_at_syscall(self) -> None:
        """Makes SYSCALL an exit; without this it does nothing. Before the code first runs."""

        def on_syscall(_uc: object, _user: object) -> None:
            self.pending = Syscall()
            self.engine.stop()

        self.engine.add_hook(HOOK_INSN, SyscallHook(on_syscall), instruction=INSN_SYSCALL)

    def answer_tsc(self, read: Callable[[], int]) -> None:
        """RDTSC and RDTSCP return what `read` says, wherever they stand and at any CPL; otherwise
        the emulator returns the computer's own counter. Before the code first runs."""

        def on_tsc(_uc: object, _user: object) -> int:
            try:
                ticks = read()
                self.engine.write(REGISTERS["rax"], ticks & 0xFFFFFFFF)
                self.engine.write(REGISTERS["rdx"], ticks >> 32)
            except BaseException as error:
                self.errors.append(error)
                self.engine.stop()
            return 1

        for instruction in (INSN_RDTSC, INSN_RDTSCP):
            self.engine.add_hook(HOOK_INSN, TscHook(on_tsc), instruction=instruction)

    def forget_code(self) -> None:
        """After guest code was changed from outside."""
        self._kinds.clear()
        self.engine.flush_blocks()

    def note_patch(self, rip: int, old: bytes, new: bytes) -> None:
        """After the host wrote `new` over the instruction `old` at `rip`.

        The hypercalls are all one undefined instruction to the emulator: swapping them changes no
        translated block. Any other patch forgets them all.
        """
        self._kinds.pop(rip, None)
        if old in _INSTRUCTIONS and new in _INSTRUCTIONS:
            self.patched.append(rip)
        else:
            self.forget_code()
            self.patched.append(_EVERYWHERE)

    def undo_patches(self) -> None:
        """After a rollback put the patched instructions back."""
        if _EVERYWHERE in self.patched:
            self.forget_code()
        for rip in self.patched:
            self._kinds.pop(rip, None)
        self.patched.clear()

    def point_counters(self, address: int, mask: int, owner: object) -> None:
        """Counts blocks at host `address` (a power of two of bytes, `mask` = size - 1), which is
        memory of `owner`: kept, as a guest may outlive the counting code."""
        self._counters_owner = owner
        counters = (ctypes.c_uint8 * (mask + 1)).from_address(address)
        self._counted = memoryview(counters).cast("B")
        self.watch.counters = address
        self.watch.mask = mask

    @property
    def exit_registers(self) -> tuple[RegisterBatch, RegisterBatch]:
        """What the native hook of VMMCALL reads (RIP, RAX, RBX, RCX, RDX, RSI, CS) and, answered,
        writes (RAX, RIP)."""
        return self._in, self._out

    @property
    def rax(self) -> int:
        """RAX of the instruction that is being carried out."""
        return self._in_values[1]

    def is_vmmcall(self, rip: int) -> bool:
        """Whether the instruction at `rip`, where the CPU stands, is VMMCALL and a hypercall."""
        kind = self._kinds.get(rip)
        return (self._decode(rip) if kind is None else kind) == _VMMCALL

    # Hook bodies ------------------------------------------------------------------------------

    def _on_invalid(self, _uc: object, _user: object) -> bool:
        self._in.read()
        if self._decide():
            self._out.write()
            return True
        return False

    def _decide(self) -> bool:
        """With the registers in `_in`: answers a hypercall into `_out` (True) or ends the run."""
        try:
            rip, nr, a0, a1, a2, a3, selector = self._in_values.tolist()
            kind = self._kinds.get(rip)
            if kind is None:
                kind = self._decode(rip)
            vcpu = self.vcpu
            if kind <= _VMCALL and vcpu is not None:
                cpl, is_64bit = vcpu.privilege(selector)
                call = Hypercall(nr, a0, a1, a2, a3, cpl, is_64bit, vcpu, kind == _VMCALL)
                if self.handler is None:
                    self.pending = call
                    return False
                value = self.handler.hypercall(call)
                if self.rip_moved:
                    self.rip_moved = False
                    rip = self.engine.read(REGISTERS["rip"])
                out = self._out_values
                out[0] = value
                out[1] = rip + HYPERCALL_LENGTH
                return True
            if kind == _ANSWERED and vcpu is not None:
                answer = self._answers[rip](vcpu)
                if answer is None:
                    answer = self.engine.read(REGISTERS["rax"])
                if isinstance(answer, int):
                    out = self._out_values
                    out[0] = answer
                    out[1] = rip + _ANSWERED_LENGTH
                    return True
                self.pending = answer
                return False
            self.pending = self._stop_for(kind, rip)
        except GuestFault as fault:
            self.pending = fault
        except BaseException as error:
            self.errors.append(error)
        return False

    def _stop_for(self, kind: int, rip: int) -> Pending:
        if kind == _VMGEXIT:
            return Vmgexit(rip)
        if kind == _TRAP:
            return Trap(rip)
        if kind == _REFLECTED:
            if self.vmcall_fault is not None:
                return self.vmcall_fault()
            return GuestFault(VECTOR_VC, EXIT_VMMCALL)
        return PendingException(6)

    def _decode(self, rip: int) -> int:
        """What the instruction at `rip` is; the answer is kept until `forget_code`."""
        if rip in self.traps:
            kind = _TRAP
        else:
            code = self.vcpu.read_code(4) if self.vcpu is not None else b""
            kind = _INSTRUCTIONS.get(code[:3], _INSTRUCTIONS.get(code, _INVALID))
            if code in self.instructions:
                kind = _ANSWERED
                self._answers[rip] = self.instructions[code]
            elif self.reflects_vmmcall and kind <= _VMCALL:
                kind = _REFLECTED if kind == _VMMCALL else _INVALID
            elif self.vmcall_fault is not None and kind <= _VMCALL:
                kind = _REFLECTED if kind == _VMCALL else _INVALID
        self._kinds[rip] = kind
        return kind

    def _on_interrupt(self, _uc: object, vector: int, _user: object) -> None:
        self.pending = PendingException(vector)
        self.engine.stop()

    def _on_msr(self, _uc: object, address: int, _size: int, _user: object) -> None:
        self.pending = PendingMsr(address, self._msr_sites[address])
        self.engine.stop()

    def _on_unmapped(
        self, _uc: object, kind: int, address: int, size: int, _value: int, _user: object
    ) -> bool:
        gpa = address & ~self.cbit_mask
        rip = self.engine.read(REGISTERS["rip"])
        self.pending = Unbacked(gpa, size, kind == MEM_WRITE_UNMAPPED, rip)
        return False

    def _on_cpuid(self, _uc: object, _user: object) -> int:
        try:
            engine = self.engine
            function = engine.read(REGISTERS["rax"]) & 0xFFFFFFFF
            if self.cpuid_function is None:
                leaf = self.cpuid.get(function)
            else:
                leaf = self.cpuid_function(function, engine.read(REGISTERS["rcx"]) & 0xFFFFFFFF)
            if leaf is None:
                return 0
            for name, value in zip(("rax", "rbx", "rcx", "rdx"), leaf, strict=True):
                engine.write(REGISTERS[name], value)
        except BaseException as error:
            self.errors.append(error)
            self.engine.stop()
        return 1

    def _on_after_out(self, _uc: object, _address: int, _size: int, _user: object) -> None:
        if isinstance(self.pending, PortOut):
            self.engine.stop()

    def _on_out(self, _uc: object, port: int, size: int, value: int, _user: object) -> None:
        if self.port_out is None:
            self.pending = PortOut(port, size, value)
            self.engine.stop()
            return
        try:
            self.port_out(port, size, value)
        except BaseException as error:
            self.errors.append(error)
            self.engine.stop()

    def _on_in(self, _uc: object, port: int, size: int, _user: object) -> int:
        try:
            if self.port_in is not None:
                return self.port_in(port, size)
        except BaseException as error:
            self.errors.append(error)
            self.engine.stop()
        return (1 << 8 * size) - 1

    def _on_block(self, _uc: object, address: int, _size: int, _user: object) -> None:
        index = (address ^ address >> 4) & self.watch.mask
        self._counted[index] = self._counted[index] % 255 + 1
        self.watch.left -= 1
        if self.watch.left < 0:
            self.engine.stop()
