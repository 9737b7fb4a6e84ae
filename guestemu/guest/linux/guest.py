# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted Linux kernel behind the `Guest` interface: its own functions do the work.

The kernel is booted to `rest_init` and kept there; every operation is one call of a kernel function
(calls.py) on memory that the kernel's own allocator gave out (prepare.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, Gpa, Gva
from guestemu.abi.errno import EFAULT, ENOSYS
from guestemu.abi.errors import InputError
from guestemu.abi.regions import Instruction, Region
from guestemu.abi.x86 import PTE_PRESENT, PTE_PSE, Mode
from guestemu.guest.base import CallOutcome, Guest, RawRegisters
from guestemu.guest.linux.calls import KernelCalls
from guestemu.guest.linux.dma import KernelDma
from guestemu.guest.linux.es import SevEs
from guestemu.guest.linux.prepare import Prepared, page_table_root
from guestemu.guest.linux.recorder import joined
from guestemu.guest.stubs import RawStubs
from guestemu.guest.td_stub import TdStub
from guestemu.machine.callbacks import CodeHook
from guestemu.machine.engine import HOOK_CODE, REGISTERS
from guestemu.machine.leafmap import LeafMap, Window
from guestemu.machine.paging import walk
from guestemu.machine.psc_lies import LIES
from guestemu.machine.rmp import Rmp
from guestemu.machine.snp_psc import psc_kernel

_BOOL: Final = 0xFF
_SCRATCH_BELOW_STACK: Final = 0x800
_ALLOC_PAGES: Final = ("alloc_pages", "alloc_pages_noprof", "alloc_pages_current")
_ALLOC_PAGES_UMA: Final = (
    "__alloc_pages",
    "__alloc_pages_noprof",
    "alloc_pages_node_noprof",
)
"""Without CONFIG_NUMA the others are inline functions that call one of these (include/linux/gfp.h:
the last one from 7.3 on)."""


def page_allocators(symbols: Mapping[str, int]) -> list[int]:
    """Where the functions are that the split of a leaf takes its page table from."""
    names = _ALLOC_PAGES if symbols.keys() & set(_ALLOC_PAGES) else _ALLOC_PAGES_UMA
    return [symbols[name] for name in names if name in symbols]


class LinuxGuest(Guest):
    """A real kernel, prepared. `generation` is the snippet generation whose DMA policy this
    kernel's follows ("6.1" or "6.12"); `budget` bounds each operation in basic blocks.
    """

    def __init__(self, prepared: Prepared, budget: int) -> None:
        booted = prepared.booted
        kernel = booted.kernel
        self.kernel = kernel
        self.console = booted.console
        self.platform = booted.platform
        self.td = booted.platform.td
        self.boot_exits = joined(prepared.boot_exits)
        self.name = f"linux:{kernel.version}"
        self.generation = "6.12" if _version(kernel.version) >= (6, 7) else "6.1"
        self.budget = budget
        self.machine = booted.machine
        self.calls = KernelCalls(booted, budget)
        self._vcpu = self.machine.current
        self._split_failures: int | None = None
        self.instructions = 0
        self._counter: object = None
        self._frame_mask = self.calls.read_u64(kernel.address("physical_mask")) & ~PAGE_MASK
        self.booted = booted
        self._dma: KernelDma | None = None
        self.root = page_table_root(booted)
        self.direct_map = Gva(self.calls.read_u64(kernel.address("page_offset_base")))
        self.regions = prepared.regions
        self._install_fault_hooks()
        self._stubs = RawStubs(self.machine, self._switch)
        self.machine.watch_memory(prepared.shared_current)
        sev = self.platform.sev
        if sev is not None and sev.snp is not None:
            sev.snp.enforce()
        if self.td is not None:
            self.td_stub = TdStub(self.machine, self._switch)
            self.td.watch()
        alias = self.regions[Region.V]
        self.leaf_map = LeafMap(
            self.machine.ram,
            self.root,
            self.machine.bit,
            Window(self.direct_map, 0, self.machine.config.frames),
            Window(alias.gva, alias.gpa >> PAGE_SHIFT, alias.pages),
        )
        self.dma_frames = range(0)
        self.machine.checkpoint()

    def call(self, function: str, *arguments: int) -> CallOutcome:
        """Calls a kernel function; the value is RAX (64 bits)."""
        return self.calls.call(function, *arguments)

    def set_budget(self, budget: int) -> None:
        """Bounds each operation from now on, in basic blocks."""
        self.budget = budget
        self.calls.budget = budget

    def count_instructions(self) -> None:
        """From now on `instructions` counts those that run. Each costs a call of Python: for
        telling about one call, not for programs."""
        if self._counter is None:

            def on_instruction(_uc: object, _rip: int, _size: int, _user: object) -> None:
                self.instructions += 1

            self._counter = CodeHook(on_instruction)
            self.machine.engine.add_hook(HOOK_CODE, self._counter)
            self.machine.engine.flush_blocks()

    @property
    def snp(self) -> SevEs | None:
        """KVM and the hardware below an SNP guest."""
        sev = self.platform.sev
        return None if sev is None or sev.snp is None else sev

    @property
    def rmp(self) -> Rmp | None:
        """The reverse map table of an SNP guest."""
        sev = self.platform.sev
        return None if sev is None or sev.snp is None else sev.snp.rmp

    def use_kvm(self, kernel: str, repaired: frozenset[str] = frozenset()) -> None:
        """See `Guest`. A KVM that is too old for SNP is taken for 6.12's."""
        super().use_kvm(kernel, repaired)
        if self.platform.sev is not None:
            self.platform.sev.use(psc_kernel(kernel), repaired)

    def use_lie(self, name: str) -> None:
        """See `Guest`."""
        super().use_lie(name)
        if self.platform.sev is not None:
            self.platform.sev.lie = LIES.get(name)

    def lie_until_reset(self, name: str) -> None:
        """See `Guest`."""
        if self.platform.sev is not None:
            self.platform.sev.lie_until_reset(LIES[name])

    def raw_psc(
        self, words: Sequence[int], header: int, scratch: int = 0, length: int = 2032
    ) -> CallOutcome:
        """See `Guest`."""
        sev = self.platform.sev
        if sev is None or sev.snp is None:
            return CallOutcome(-ENOSYS)
        return sev.request_by_hand(words, header, scratch, length)

    def location(self, rip: int) -> str:
        """Kernel function and offset; where a call used up its budget, the function that loops."""
        return self.calls.location(rip)

    def close(self) -> None:
        """Does nothing: the loader keeps guests, booted, for the next request."""

    def _install_fault_hooks(self) -> None:
        """alloc_pages() returns NULL while a split failure is ordered."""
        engine = self.machine.engine

        def on_alloc_pages(_uc: object, _rip: int, _size: int, _user: object) -> None:
            left = self._split_failures
            if left is None:
                return
            if left:
                self._split_failures = left - 1
                return
            stack = engine.read(REGISTERS["rsp"])
            data = self._vcpu.read_memory(Gva(stack), 8)
            if data is not None:
                engine.write(REGISTERS["rax"], 0)
                engine.write(REGISTERS["rsp"], stack + 8)
                engine.write(REGISTERS["rip"], int.from_bytes(data, "little"))

        for address in page_allocators(self.kernel.symbols):
            engine.add_hook(HOOK_CODE, CodeHook(on_alloc_pages), begin=address, end=address)

    # Guest ------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Back to the state after boot."""
        self.machine.rollback()
        self.calls.forget_lines()
        self.leaf_map.rollback()
        self._dma = None
        self._split_failures = None

    def set_memory_encrypted(self, gva: Gva, pages: int) -> CallOutcome:
        """See `Guest`."""
        return self.calls.int_call("set_memory_encrypted", gva, pages)

    def set_memory_decrypted(self, gva: Gva, pages: int) -> CallOutcome:
        """See `Guest`."""
        return self.calls.int_call("set_memory_decrypted", gva, pages)

    def early_set_memory_encrypted(self, gva: Gva, size: int) -> CallOutcome:
        """See `Guest`."""
        return self.calls.int_call("early_set_memory_encrypted", gva, size)

    def early_set_memory_decrypted(self, gva: Gva, size: int) -> CallOutcome:
        """See `Guest`."""
        return self.calls.int_call("early_set_memory_decrypted", gva, size)

    def memset(self, gva: Gva, value: int, size: int) -> CallOutcome:
        """See `Guest`."""
        return _void(self.call("memset", gva, value, size))

    def load(self, gva: Gva) -> CallOutcome:
        """The kernel's memcpy() of 8 bytes to its stack page, read from there."""
        target = self.calls.stack - _SCRATCH_BELOW_STACK
        outcome = self.call("memcpy", target, gva, 8)
        if outcome.value is None:
            return outcome
        return CallOutcome(self.calls.read_u64(target), None, outcome.warnings)

    def touch_cbit(self, gva: Gva, private: bool) -> CallOutcome:
        """An edit of the entry and a TLB flush, as the kernel has no function for it. The store is
        logged like the guest's own."""
        leaf = walk(self.machine.ram, self.machine.pte_cbit, self.root, gva)
        if leaf.level != 1 or not leaf.is_present:
            return CallOutcome(-EFAULT)
        entry = self.machine.bit.select(leaf.entry, private)
        ram = self.machine.ram
        ram.write_u64(leaf.entry_gpa, entry)
        ram.note_access(True, ram.bit.select(leaf.entry_gpa, private=True), 8, entry)
        self.machine.engine.flush_tlb()
        return CallOutcome(0)

    def kvm_init_platform(self, efi: bool) -> CallOutcome:
        """Nothing: the boot has called it (`boot_exits`), and a kernel that calls this __init
        function once more stops at a BUG, as its clock source is registered already."""
        return CallOutcome(0)

    def kvm_guest_cpu_offline(self) -> CallOutcome:
        """See `Guest`."""
        return _void(self.call("kvm_guest_cpu_offline", 0))

    def set_memory_enc_stop_conversion(self) -> CallOutcome:
        """See `Guest`."""
        if "set_memory_enc_stop_conversion" not in self.kernel.symbols:
            return CallOutcome(-ENOSYS)
        outcome = self.call("set_memory_enc_stop_conversion")
        if outcome.value is None:
            return outcome
        return CallOutcome(outcome.value & _BOOL, None, outcome.warnings)

    def raw_hypercall(
        self, instruction: Instruction, registers: RawRegisters, mode: Mode, cpl: int
    ) -> CallOutcome:
        """See `Guest`."""
        return self._stubs.hypercall(instruction, registers, mode, cpl, self.budget)

    def raw_rdmsr(self, index: int, mode: Mode, cpl: int) -> CallOutcome:
        """See `Guest`."""
        return self._stubs.rdmsr(index, mode, cpl, self.budget)

    def raw_wrmsr(self, index: int, value: int, mode: Mode, cpl: int) -> CallOutcome:
        """See `Guest`."""
        return self._stubs.wrmsr(index, value, mode, cpl, self.budget)

    def _switch(self, _state: tuple[Mode, int]) -> None:
        """Raw instructions run on the boot loader's page tables, the kernel on its own."""
        self.machine.engine.flush_tlb()

    def dma_alloc_coherent(self, size: int, may_block: bool) -> CallOutcome:
        """See `Guest`."""
        return self._coherent().alloc(size, may_block)

    def dma_free_coherent(self, gpa: Gpa) -> CallOutcome:
        """See `Guest`."""
        return self._coherent().free(gpa)

    def dma_alloc_pages(self, size: int, may_block: bool) -> CallOutcome:
        """See `Guest`."""
        return self._coherent().alloc_pages(size, may_block)

    def dma_free_pages(self, gpa: Gpa) -> CallOutcome:
        """See `Guest`."""
        return self._coherent().free_pages(gpa)

    def _coherent(self) -> KernelDma:
        if self._dma is None:
            self._dma = KernelDma(self.booted, self.calls)
        return self._dma

    def fail_split(self, after: int) -> None:
        """See `Guest`. Raises `InputError` where the kernel's allocator of pages is not known."""
        if not page_allocators(self.kernel.symbols):
            names = ", ".join((*_ALLOC_PAGES, *_ALLOC_PAGES_UMA))
            raise InputError(f"{self.kernel.name}: this kernel has none of {names}")
        self._split_failures = after

    def clear_faults(self) -> None:
        """See `Guest`."""
        self._split_failures = None

    def edit_entry(self, gva: Gva, clear_all: bool) -> bool:
        """See `Guest`. Without PRESENT the frame's bits are inverted, as the kernel stores such an
        entry (arch/x86/include/asm/pgtable-invert.h, the L1TF mitigation)."""
        leaf = walk(self.machine.ram, self.machine.pte_cbit, self.root, gva)
        if leaf.level != 1 or not leaf.is_present or leaf.entry & PTE_PSE:
            return False
        absent = (leaf.entry & ~PTE_PRESENT) ^ self._frame_mask
        self._edit(leaf.entry_gpa, 0 if clear_all else absent)
        return True

    def _edit(self, entry_gpa: Gpa, entry: int) -> None:
        self.machine.ram.write_u64(entry_gpa, entry)
        self.leaf_map.reread(entry_gpa)
        self.machine.engine.flush_tlb()


def _void(outcome: CallOutcome) -> CallOutcome:
    """A void function leaves 0."""
    return CallOutcome(0, None, outcome.warnings) if outcome.value is not None else outcome


def _version(text: str) -> tuple[int, int]:
    parts = text.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        return 0, 0
