# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted Linux kernel behind the `Guest` interface: its own functions do the work.

The kernel is booted to `rest_init` and kept there; every operation is one call of a kernel function
on the boot stack, with `rest_init` (a stop) as its return address. Regions are memory that the
kernel's own page allocator gave out, brought to the layout that programs expect by the kernel's own
`set_memory_4k` and `vmap`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, Gpa, Gva, to_signed
from guestemu.abi.errno import ENOSYS
from guestemu.abi.errors import InputError
from guestemu.abi.regions import REGIONS, Instruction, Region
from guestemu.abi.x86 import PTE_PRESENT, PTE_PSE, RFLAGS_FIXED, Mode
from guestemu.guest.base import CallOutcome, Guest, PlacedRegion, RawRegisters
from guestemu.guest.linux.boot import BootedKernel, describe_end
from guestemu.guest.linux.kernel import KERNEL_MAP
from guestemu.guest.stubs import RawStubs
from guestemu.machine.engine import HOOK_CODE, REGISTERS, CodeHook, Context
from guestemu.machine.exits import Trap
from guestemu.machine.leafmap import LeafMap, Window
from guestemu.machine.paging import walk

STOP_AT: Final = "rest_init"
GFP_KERNEL: Final = 0xCC0
MAX_ORDER_PAGES: Final = 1024
_MAX_ORDER: Final = 10
_STACK_GAP: Final = 0x200
_ARGUMENTS: Final = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
_VM_MAP: Final = 0x4
_PAGE_KERNEL: Final = 0x8000_0000_0000_0163
_MAX_BLOCKS: Final = 16
_ALLOC_PAGES: Final = ("alloc_pages", "alloc_pages_noprof")
_GET_FREE_PAGES: Final = ("__get_free_pages", "get_free_pages_noprof")


class LinuxGuest(Guest):
    """A real kernel. `booted` stopped at `rest_init`; `generation` is the snippet generation whose
    DMA policy this kernel's follows ("6.1" or "6.12").

    Raises `InputError` where the kernel did not get there or lacks a function that is needed.
    """

    def __init__(self, booted: BootedKernel, budget: int) -> None:
        if not isinstance(booted.end, Trap):
            raise InputError(f"{booted.kernel.name}: {describe_end(booted, STOP_AT)}")
        kernel = booted.kernel
        self.kernel = kernel
        self.console = booted.console
        self.name = f"linux:{kernel.version}"
        self.generation = "6.12" if _version(kernel.version) >= (6, 7) else "6.1"
        self.budget = budget
        self.machine = booted.machine
        self._stop = kernel.address(STOP_AT)
        self._vcpu = self.machine.current
        self._context = Context(self.machine.engine)
        self._split_failures: int | None = None
        self._console_seen = len(self.console.text)
        ram = self.machine.ram
        self.root = Gpa(self._vcpu.read_register("cr3") & ~0xFFF & ~self.machine.pte_cbit)
        self.direct_map = Gva(self.read_u64(kernel.address("page_offset_base")))
        self._install_fault_hooks()
        self._stubs = RawStubs(self.machine)
        self._place_regions()
        self.machine.watch_memory(self._shared_frames())
        alias = self.regions[Region.V]
        self.leaf_map = LeafMap(
            ram,
            self.root,
            self.machine.pte_cbit,
            Window(self.direct_map, 0, self.machine.config.frames),
            Window(alias.gva, alias.gpa >> PAGE_SHIFT, alias.pages),
        )
        self.dma_frames = range(0)
        self.machine.checkpoint()

    # Calling the kernel -----------------------------------------------------------------------

    def call(self, function: str, *arguments: int) -> CallOutcome:
        """Calls a kernel function with up to six integer arguments; the value is RAX (64 bits)."""
        self._context.restore()
        engine = self.machine.engine
        stack = self._vcpu.read_register("rsp") - _STACK_GAP & ~0xF
        stack -= 8
        self._vcpu.write_memory(Gva(stack), struct.pack("<Q", self._stop))
        engine.write(REGISTERS["rsp"], stack)
        engine.write(REGISTERS["rflags"], RFLAGS_FIXED | 1 << 9)
        for name, value in zip(_ARGUMENTS, arguments, strict=False):
            engine.write(REGISTERS[name], value & 0xFFFF_FFFF_FFFF_FFFF)
        end = self._vcpu.run(self.kernel.address(function), self.budget)
        warnings = self._take_warnings()
        if type(end) is Trap and end.rip == self._stop:
            return CallOutcome(self._vcpu.read_register("rax"), None, warnings)
        return CallOutcome(None, end, warnings)

    def _int_call(self, function: str, *arguments: int) -> CallOutcome:
        outcome = self.call(function, *arguments)
        if outcome.value is None:
            return outcome
        return CallOutcome(to_signed(outcome.value, 32), None, outcome.warnings)

    def _must(self, names: Iterable[str] | str, *arguments: int) -> int:
        """Calls the first function that this kernel has, which has to return non-zero."""
        candidates = (names,) if isinstance(names, str) else tuple(names)
        for name in candidates:
            if name in self.kernel.symbols:
                outcome = self.call(name, *arguments)
                if not outcome.value:
                    raise InputError(f"{self.name}: {name} failed while setting up: {outcome}")
                return outcome.value
        raise InputError(f"{self.name}: this kernel has none of {', '.join(candidates)}")

    def _take_warnings(self) -> tuple[str, ...]:
        text = self.console.text
        new, self._console_seen = text[self._console_seen :], len(text)
        return tuple(
            line.partition("WARNING: ")[2] for line in new.splitlines() if "WARNING: " in line
        )

    def read_u64(self, address: int) -> int:
        """A 64-bit word at a kernel virtual address; `InputError` where nothing is mapped."""
        data = self._vcpu.read_memory(Gva(address), 8)
        if data is None:
            raise InputError(f"{self.name}: {address:#x} is not mapped")
        return int.from_bytes(data, "little")

    # Set-up -----------------------------------------------------------------------------------

    def _shared_frames(self) -> list[int]:
        """Frames whose leaf in the direct map or in the kernel image has C=0."""
        frames: list[int] = []
        ram = self.machine.ram
        cbit = self.machine.pte_cbit
        for base, pages in (
            (self.direct_map, ram.frames),
            (Gva(KERNEL_MAP), min(ram.frames, 1 << 18)),
        ):
            page = 0
            while page < pages:
                leaf = walk(ram, cbit, self.root, Gva(base + (page << PAGE_SHIFT)))
                size = 1 << 9 * (leaf.level - 1)
                first = page & ~(size - 1)
                if leaf.is_present and leaf.level <= 3 and not leaf.entry & cbit:
                    frames.extend(range(first, min(first + size, pages)))
                page = first + size
        return frames

    def _place_regions(self) -> None:
        small, large = self._allocate_blocks()
        for pages in range(0, MAX_ORDER_PAGES, PMD_SIZE // PAGE_SIZE):
            self.call("set_memory_4k", small + (pages << PAGE_SHIFT), PMD_SIZE // PAGE_SIZE)
        self.regions = {
            Region.D: PlacedRegion(Gva(small), self._gpa_of(small), REGIONS[Region.D].pages),
            Region.L: PlacedRegion(Gva(large), self._gpa_of(large), REGIONS[Region.L].pages),
        }
        self.regions[Region.V] = self._make_alias(small)

    def _allocate_blocks(self) -> tuple[int, int]:
        """Addresses of a 4 MiB block and of two adjacent ones."""
        size = MAX_ORDER_PAGES * PAGE_SIZE
        blocks: list[int] = []
        while len(blocks) < _MAX_BLOCKS:
            blocks = sorted([*blocks, self._must(_GET_FREE_PAGES, GFP_KERNEL, _MAX_ORDER)])
            for low, high in pairwise(blocks):
                others = [block for block in blocks if block not in {low, high}]
                if high - low == size and others:
                    return others[0], low
        raise InputError(f"{self.name}: no 8 MiB of contiguous memory; give it more memory")

    def _gpa_of(self, address: int) -> Gpa:
        return Gpa(address - self.direct_map)

    def _make_alias(self, first: int) -> PlacedRegion:
        """vmap() of D's first frames."""
        pages = REGIONS[Region.V].pages
        vmemmap = self.read_u64(self.kernel.address("vmemmap_base"))
        array = self._must(_GET_FREE_PAGES, GFP_KERNEL, 0)
        gfn = self._gpa_of(first) >> PAGE_SHIFT
        size = self.kernel.btf.size("page")
        entries = struct.pack(f"<{pages}Q", *(vmemmap + (gfn + i) * size for i in range(pages)))
        self._vcpu.write_memory(Gva(array), entries)
        cbit = self.machine.pte_cbit
        address = self._must("vmap", array, pages, _VM_MAP, _PAGE_KERNEL | cbit)
        return PlacedRegion(Gva(address), self._gpa_of(first), pages)

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

        for name in _ALLOC_PAGES:
            address = self.kernel.symbols.get(name)
            if address is not None:
                engine.add_hook(HOOK_CODE, CodeHook(on_alloc_pages), begin=address, end=address)

    # Guest ------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Back to the state after boot."""
        self.machine.rollback()
        self.leaf_map.rollback()
        self._split_failures = None

    @property
    def notifies_with_attributes(self) -> bool:
        """Kernels that boot here notify by KVM_HC_MAP_GPA_RANGE."""
        return True

    def set_memory_encrypted(self, gva: Gva, pages: int) -> CallOutcome:
        """See `Guest`."""
        return self._int_call("set_memory_encrypted", gva, pages)

    def set_memory_decrypted(self, gva: Gva, pages: int) -> CallOutcome:
        """See `Guest`."""
        return self._int_call("set_memory_decrypted", gva, pages)

    def early_set_memory_encrypted(self, gva: Gva, size: int) -> CallOutcome:
        """See `Guest`."""
        return self._int_call("early_set_memory_encrypted", gva, size)

    def early_set_memory_decrypted(self, gva: Gva, size: int) -> CallOutcome:
        """See `Guest`."""
        return self._int_call("early_set_memory_decrypted", gva, size)

    def memset(self, gva: Gva, value: int, size: int) -> CallOutcome:
        """See `Guest`."""
        return self.call("memset", gva, value, size)

    def load(self, gva: Gva) -> CallOutcome:
        """The kernel's memcpy() of 8 bytes to its stack page, read from there."""
        target = self._vcpu.read_register("rsp") - 0x800
        outcome = self.call("memcpy", target, gva, 8)
        if outcome.value is None:
            return outcome
        return CallOutcome(self.read_u64(target), None, outcome.warnings)

    def touch_cbit(self, gva: Gva, private: bool) -> CallOutcome:
        """An edit of the entry, as the kernel has no function for it."""
        leaf = walk(self.machine.ram, self.machine.pte_cbit, self.root, gva)
        if leaf.level != 1 or not leaf.is_present:
            return CallOutcome(-14)
        cbit = self.machine.pte_cbit
        entry = leaf.entry | cbit if private else leaf.entry & ~cbit
        self._edit(leaf.entry_gpa, entry)
        return CallOutcome(0)

    def kvm_init_platform(self, efi: bool) -> CallOutcome:
        """See `Guest`; whether the kernel was booted by EFI is the boot's business."""
        return self.call("kvm_init_platform")

    def kvm_guest_cpu_offline(self) -> CallOutcome:
        """See `Guest`."""
        return self.call("kvm_guest_cpu_offline", 0)

    def set_memory_enc_stop_conversion(self) -> CallOutcome:
        """See `Guest`."""
        if "set_memory_enc_stop_conversion" not in self.kernel.symbols:
            return CallOutcome(-ENOSYS)
        return self.call("set_memory_enc_stop_conversion")

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

    def fail_split(self, after: int) -> None:
        """See `Guest`."""
        self._split_failures = after

    def clear_faults(self) -> None:
        """See `Guest`."""
        self._split_failures = None

    def edit_entry(self, gva: Gva, clear_all: bool) -> bool:
        """See `Guest`."""
        leaf = walk(self.machine.ram, self.machine.pte_cbit, self.root, gva)
        if leaf.level != 1 or not leaf.is_present or leaf.entry & PTE_PSE:
            return False
        self._edit(leaf.entry_gpa, 0 if clear_all else leaf.entry & ~PTE_PRESENT)
        return True

    def _edit(self, entry_gpa: Gpa, entry: int) -> None:
        self.machine.ram.write_u64(entry_gpa, entry)
        self.leaf_map.reread(entry_gpa)
        self.machine.engine.flush_tlb()


def _version(text: str) -> tuple[int, int]:
    parts = text.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        return 0, 0
