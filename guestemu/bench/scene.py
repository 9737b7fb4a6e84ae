# SPDX-License-Identifier: GPL-2.0-or-later
"""What the benchmarks of one run share: testbeds, the compiled floor, pieces of guest code."""

from __future__ import annotations

from functools import cached_property
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, Gpa, Gva
from guestemu.abi.errors import MissingError
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED
from guestemu.abi.regions import Region
from guestemu.abi.x86 import Mode
from guestemu.bench.floor import Floor, FloorLibrary, cache_directory, compile_floor
from guestemu.guest.base import CallOutcome, Guest
from guestemu.guest.snippet.elf import load_snippet
from guestemu.guest.snippet.memory_map import STACK_SIZE, STACKS
from guestemu.host.base import Hypercall, MapGpaRange, VcpuAccess
from guestemu.machine import layout
from guestemu.machine.engine import RegisterBatch
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header, SevKind
from guestemu.runner.testbed import Testbed, build_testbed

GENERATION: Final = "6.1"
PAGE: Final = 3
LOOP_CALLS: Final = 1000
_LOOP_AT: Final = layout.STUB + 0x400
_LOOP: Final = bytes.fromhex("4c89e0 0f01d9 49ffcd 75f5 f4")
"""loop: mov rax, r12; vmmcall; dec r13; jnz loop; hlt"""

CONVERSION: Final = (
    Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0), region=Region.D, page=PAGE, has_page=False),
)
_CONFIDENTIAL: Final = "snippet:6.12"
ROUND_TRIP: Final = (
    *CONVERSION,
    Op(OpKind.SET_MEMORY_ENCRYPTED, (1, 0), Region.D, PAGE),
)
HYPERCALL: Final = (
    Op(
        OpKind.HYPERCALL,
        (KVM_HC_MAP_GPA_RANGE, 0, 1, MAP_GPA_RANGE_ENCRYPTED, 0),
        region=Region.D,
        page=PAGE,
        has_page=True,
    ),
)


class NoHost:
    """Answers 0 to everything: what an execution costs without a host model."""

    def hypercall(self, call: Hypercall) -> int:
        """0."""
        return 0

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """0."""
        return 0

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        """0."""
        return 0

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """Accepted."""


class RecordedConversion(msgspec.Struct, frozen=True):
    """The fixed program of the execution figures, as guestemu ran it once.

    `dirty` are the pages it wrote (indices of the dirty list), `gva` and `gpa` its page.
    """

    gva: Gva
    gpa: Gpa
    outcome: CallOutcome
    dirty: list[int]


def observe_conversion(guest: Guest) -> RecordedConversion:
    """Runs set_memory_decrypted of one 4 KiB-leaf page and notes what it wrote; resets."""
    ram = guest.machine.ram
    gva = guest.gva(Region.D, PAGE)
    guest.reset()
    outcome = guest.set_memory_decrypted(gva, 1)
    dirty = ram.dirty_list[: ram.watch.dirty_count].tolist()
    guest.reset()
    return RecordedConversion(gva, guest.gpa(Region.D, PAGE), outcome, dirty)


class HypercallLoop:
    """A guest that does nothing but VMMCALLs, answered by the default host.

    One run is `LOOP_CALLS` calls of MAP_GPA_RANGE on one page, with the host called directly.
    """

    def __init__(self) -> None:
        self.testbed = build_testbed(Header(guest=f"snippet:{GENERATION}"))
        machine = self.testbed.guest.machine
        machine.ram.write(Gpa(_LOOP_AT), _LOOP)
        machine.checkpoint()
        machine.hooks.handler = self.testbed.host
        gpa = self.testbed.guest.gpa(Region.D, PAGE)
        self.registers = {
            "rbx": int(gpa),
            "rcx": 1,
            "rdx": 0,
            "rsi": 0,
            "r12": KVM_HC_MAP_GPA_RANGE,
            "r13": LOOP_CALLS,
            "rsp": STACKS + STACK_SIZE,
        }
        self._batch = RegisterBatch(machine.engine, tuple(self.registers))
        self._context = machine.modes.context(Mode.LONG64, 0)

    def run(self, count: int) -> None:
        """`count` loops."""
        vcpu = self.testbed.guest.machine.current
        for _ in range(count):
            self._context.restore()
            for position, value in enumerate(self.registers.values()):
                self._batch.values[position] = value
            self._batch.write()
            vcpu.run(_LOOP_AT, 1 << 40)

    def floor(self, library: FloorLibrary) -> Floor:
        """The same loop with a C host and no other hook."""
        machine = self.testbed.guest.machine
        return Floor(library, machine, _LOOP_AT, self.registers, [], hooks=False)


class BenchScene:
    """Built piece by piece, when a benchmark asks for it."""

    @cached_property
    def floor_note(self) -> str:
        """Why there is no C floor; empty where there is one."""
        try:
            _ = self._library
        except MissingError as error:
            return f"floor unavailable: {error}"
        return ""

    @cached_property
    def library(self) -> FloorLibrary | None:
        """The compiled floor, None where `floor_note` says why not."""
        return None if self.floor_note else self._library

    @cached_property
    def _library(self) -> FloorLibrary:
        return FloorLibrary(compile_floor(cache_directory()))

    @cached_property
    def testbed(self) -> Testbed:
        """The default guest (C-bit 39) under the default host with all checks."""
        return build_testbed(Header(guest=f"snippet:{GENERATION}"))

    @cached_property
    def walker_testbed(self) -> Testbed:
        """The same with C-bit 51, translated by our own walker."""
        return build_testbed(Header(guest=f"snippet:{GENERATION}", cbit=51))

    @cached_property
    def snp_testbed(self) -> Testbed:
        """6.12's code as an SNP guest, under KVM of 7.3."""
        header = Header(guest=_CONFIDENTIAL, sev=SevKind.SEV_SNP, host="snp-kvm:7.3")
        return build_testbed(header)

    @cached_property
    def tdx_testbed(self) -> Testbed:
        """The same as a TD."""
        return build_testbed(Header(guest=_CONFIDENTIAL, sev=SevKind.TDX))

    @cached_property
    def sev_testbed(self) -> Testbed:
        """The same code's generation as a plain SEV guest."""
        return build_testbed(Header(guest=_CONFIDENTIAL))

    @cached_property
    def conversion(self) -> RecordedConversion:
        """The fixed program, as seen on `testbed`."""
        return observe_conversion(self.testbed.guest)

    @cached_property
    def loop(self) -> HypercallLoop:
        """A guest of VMMCALLs."""
        return HypercallLoop()

    @cached_property
    def floor(self) -> Floor | None:
        """The fixed program in C, one hook: the VMMCALL's."""
        return self._conversion_floor(hooks=False)

    @cached_property
    def hooked_floor(self) -> Floor | None:
        """The fixed program in C with guestemu's memory and block hooks."""
        return self._conversion_floor(hooks=True)

    def _conversion_floor(self, hooks: bool) -> Floor | None:
        library = self.library
        if library is None:
            return None
        conversion = self.conversion
        guest = self.testbed.guest
        guest.reset()  # the floor takes over memory and flags as they are
        return Floor(
            library,
            guest.machine,
            load_snippet(GENERATION).symbols["set_memory_decrypted"],
            {"rdi": conversion.gva, "rsi": 1, "rsp": STACKS + STACK_SIZE - 8},
            conversion.dirty,
            hooks,
        )


def page_of(gpa: Gpa) -> int:
    """The frame number of `gpa`."""
    return gpa // PAGE_SIZE
