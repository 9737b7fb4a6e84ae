# SPDX-License-Identifier: GPL-2.0-or-later
"""The mirror's vCPU: a CPU of its own over the source's RAM.

It starts in the state that a VMSA for a handler would hold (F8, F16): 64-bit mode, CPL 0, CR3, RIP,
RSP, RDI; no IDT, so every exception is a triple fault. Interrupts are not modelled: the vCPU runs
when the VMM lets it, until it halts.
"""

from __future__ import annotations

import ctypes
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE
from guestemu.abi.errors import EngineError
from guestemu.abi.x86 import CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_PAE, VECTOR_PF
from guestemu.host.mirror.interface import StopCause
from guestemu.host.mirror.mmu import MirrorMmu, NoSlot
from guestemu.host.mirror.vm import SharedRamMirror
from guestemu.machine.callbacks import CodeHook, InterruptHook, MemoryHook
from guestemu.machine.engine import (
    ERR_INSN_INVALID,
    HOOK_BLOCK,
    HOOK_INTR,
    HOOK_MEM,
    MEM_WRITE,
    OK,
    REGISTERS,
    Context,
    Engine,
)
from guestemu.machine.hooks import COUNTER_SIZE, BlockWatch
from guestemu.machine.native import HostCode

_VECTOR_UD: Final = 6


class StartState(msgspec.Struct, frozen=True):
    """Registers at the start; everything else is zero or as after reset."""

    rip: int
    rsp: int
    rdi: int
    cr3: int


class VcpuStop(msgspec.Struct, frozen=True):
    """Why the vCPU cannot go on; `detail` as in `interface.HandlerStop`."""

    cause: StopCause
    rip: int
    detail: int


class MirrorVcpu:
    """One vCPU of `vm`. `cbit_mask` is the C-bit as the processor has it in page-table entries.

    `counters` are 4096 eight-bit counters of basic blocks; `code` gives the machine-code bodies of
    the hooks. The RAM must have its memory hooks (no deferred ones, `Machine.watch_memory`).
    """

    def __init__(self, vm: SharedRamMirror, cbit_mask: int, code: HostCode) -> None:
        self.vm = vm
        self.engine = Engine()
        self._map(vm)
        self.mmu = MirrorMmu(self.engine, vm, cbit_mask)
        self.vector: int | None = None
        self.counters = bytearray(COUNTER_SIZE)
        self._watch = BlockWatch()
        self._watch.counters = ctypes.addressof(
            (ctypes.c_char * COUNTER_SIZE).from_buffer(self.counters)
        )
        self._watch.mask = COUNTER_SIZE - 1
        self._watch.stop = self.engine.function("uc_emu_stop")
        self._host_code = code  # the hooks' bodies: the source's machine may go before us
        self._add_hooks(code)
        self.engine.write(REGISTERS["cr4"], CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT)
        self._fresh = Context(self.engine)
        self._rip = 0
        self._budget = 0
        self._generation = 0
        self._code_frame = 0
        self._code = b""
        self._has_strayed = False
        """Code outside of the page that `_code` is of may have run since blocks were forgotten."""

    def _map(self, vm: SharedRamMirror) -> None:
        """The source's buffers at the physical addresses that its own CPU has them at."""
        ram = vm.ram
        low = ram.low * PAGE_SIZE
        rest = ram.frames * PAGE_SIZE - low
        private, shared = int(ram.watch.private), int(ram.watch.shared)
        if low:
            self.engine.map(0, low, private)
            self.engine.map(ram.cbit_mask, low, private)
        if rest:
            self.engine.map(low, rest, shared + low)
            self.engine.map(ram.cbit_mask | low, rest, private + low)

    def _add_hooks(self, code: HostCode) -> None:
        engine = self.engine
        engine.add_hook(HOOK_INTR, InterruptHook(self._on_interrupt))
        if code.available:
            engine.add_native_hook(HOOK_BLOCK, code.block_hook, self._watch)
            engine.add_native_hook(HOOK_MEM, code.memory_hook, self.vm.ram.watch)
        else:
            engine.add_hook(HOOK_BLOCK, CodeHook(self._on_block))
            engine.add_hook(HOOK_MEM, MemoryHook(self._on_memory))

    def _on_interrupt(self, _uc: object, vector: int, _user: object) -> None:
        self.vector = vector
        self.engine.stop()

    def _on_block(self, _uc: object, address: int, _size: int, _user: object) -> None:
        index = (address ^ address >> 4) & (COUNTER_SIZE - 1)
        self.counters[index] = self.counters[index] % 255 + 1
        self._watch.left -= 1
        if self._watch.left < 0:
            self.engine.stop()

    def _on_memory(
        self, _uc: object, kind: int, address: int, size: int, value: int, _user: object
    ) -> None:
        try:
            self.vm.ram.note_access(kind == MEM_WRITE, address, size, value)
        except BaseException as error:
            self.vm.ram.errors.append(error)
            self.engine.stop()

    def start(self, state: StartState) -> None:
        """Puts the vCPU into its start state (KVM_SET_REGS, or a VMSA)."""
        self._fresh.restore()
        for name, value in (("rsp", state.rsp), ("rdi", state.rdi), ("cr3", state.cr3)):
            self.engine.write(REGISTERS[name], value)
        self._rip = state.rip
        if self._has_strayed:
            self._forget_blocks()
        else:
            self.engine.flush_tlb()

    def watch_code(self, ram_addr: int) -> None:
        """Translated blocks are forgotten when the page at `ram_addr` changes from outside, and at
        a new start where code of other pages may have run."""
        if ram_addr != self._code_frame:
            self._code_frame = ram_addr
            self._code = b""

    @property
    def rip(self) -> int:
        """Where it stands."""
        return self._rip

    @property
    def blocks_run(self) -> int:
        """Basic blocks of the last run."""
        return self._budget - int(self._watch.left)

    def run(self, budget: int) -> VcpuStop | None:
        """Runs until HLT (None) or for `budget` basic blocks, or until it cannot go on."""
        if self._generation != self.vm.generation:
            self._generation = self.vm.generation
            self.engine.flush_tlb()
        self._forget_changed_code()
        self.vector = None
        self.mmu.fault = None
        self._budget = budget
        self._watch.left = budget
        begun = self._rip
        result = self.engine.start(begun)
        self._rip = self.engine.read(REGISTERS["rip"])
        if result != OK or self._watch.left < 0 or (begun ^ self._rip) >> PAGE_SHIFT:
            self._has_strayed = True
        for errors in (self.mmu.errors, self.vm.ram.errors):
            if errors:
                error = errors[0]
                errors.clear()
                raise error
        return self._stopped(result)

    def interrupt(self, error: BaseException) -> None:
        """Ends the run that goes on: `run` raises `error` after the present block. Called inside of
        a hook."""
        self.mmu.errors.append(error)
        self._watch.left = -1

    def _stopped(self, result: int) -> VcpuStop | None:
        if self._watch.left < 0:
            return VcpuStop(StopCause.TIMEOUT, self._rip, self._budget)
        fault = self.mmu.fault
        if isinstance(fault, NoSlot):
            return VcpuStop(StopCause.MMIO, self._rip, fault.mirror_gpa)
        if fault is not None:
            return VcpuStop(StopCause.SHUTDOWN, self._rip, VECTOR_PF)
        if self.vector is not None:
            return VcpuStop(StopCause.SHUTDOWN, self._rip, self.vector)
        if result == ERR_INSN_INVALID:
            return VcpuStop(StopCause.SHUTDOWN, self._rip, _VECTOR_UD)
        if result != OK:
            raise EngineError(f"the mirror's vCPU ended at {self._rip:#x} with error {result}")
        return None

    def _forget_changed_code(self) -> None:
        start = self._code_frame
        now = bytes(self.vm.ram.private[start : start + PAGE_SIZE])
        if now != self._code:
            self._code = now
            self._forget_blocks()

    def _forget_blocks(self) -> None:
        self.engine.flush_blocks()
        self.engine.flush_tlb()  # whether a page can run depends on its code
        self._has_strayed = False

    def close(self) -> None:
        """Frees the CPU."""
        self.engine.close()
