# SPDX-License-Identifier: GPL-2.0-or-later
"""Real kernels as TDX guests: boot, conversions, what is left in page tables and Secure EPT."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa, Gva
from guestemu.abi.regions import Region
from guestemu.abi.tdx import FIELD_CONFIG_FLAGS, FIELD_NOTIFY_ENABLES, TdcallLeaf, Vmcall
from guestemu.events.exits import MapGpaRangeExit
from guestemu.events.tdx import Accept, MapGpaCall
from guestemu.guest.base import GuestOops
from guestemu.guest.linux.boot import boot_kernel
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.load import LOADER, linux_config
from guestemu.guest.linux.platform import Console
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.guest.td import Td
from guestemu.machine.exits import Halt, Trap
from guestemu.machine.sept import ACCEPTED, SHARED

BUDGET = 20_000_000
_MISC_ENABLE = 0x1A0
SWIOTLB_PAGES = 1024
MAP_GPA_CALLS = 1


class TdKernel:
    """A booted TDX guest under a host that agrees."""

    def __init__(self, guest: LinuxGuest) -> None:
        guest.reset()
        assert guest.platform.td is not None
        self.guest = guest
        self.td: Td = guest.platform.td
        self.recorder = BootRecorder()
        guest.machine.hooks.handler = self.recorder

    def view(self, private: bool, page: int) -> bytes:
        gpa = self.guest.gpa(Region.D, page)
        return self.guest.machine.ram.read(Gpa(gpa), 8, private)

    def state(self, page: int) -> int:
        return self.td.sept.state(self.guest.gpa(Region.D, page) >> PAGE_SHIFT)


@pytest.fixture(scope="module")
def td_guest(image_of: Callable[[str], Path]) -> LinuxGuest:
    return LOADER.guest(image_of("6.12"), linux_config(128, 39, "tdx"), BUDGET)


@pytest.fixture
def kernel(td_guest: LinuxGuest) -> Iterator[TdKernel]:
    yield TdKernel(td_guest)
    td_guest.reset()


@pytest.mark.parametrize(("series", "questions"), [("6.12", 1), ("6.18", 2), ("7.3", 2)])
def test_an_unmodified_kernel_boots_as_a_tdx_guest(
    image_of: Callable[[str], Path], series: str, questions: int
) -> None:
    """`questions`: VP.INFO, VM.RD and VM.WR are executed as often (T4)."""
    recorder = BootRecorder()
    kernel = LOADER.kernel(image_of(series))
    booted = boot_kernel(kernel, linux_config(128, 39, "tdx"), recorder)
    assert isinstance(booted.end, Trap)
    text = booted.console.text
    assert "tdx: Guest detected" in text
    assert "Memory Encryption Features active: Intel TDX" in text
    assert "unchecked MSR access" not in text
    td = booted.platform.td
    assert td is not None
    asked = dict.fromkeys((TdcallLeaf.VP_INFO, TdcallLeaf.VM_RD, TdcallLeaf.VM_WR), questions)
    raised = sum(td.reflected.values())
    assert td.leaves == {
        **asked,
        TdcallLeaf.VP_VEINFO_GET: raised,
        TdcallLeaf.VP_VMCALL: raised + MAP_GPA_CALLS,
    }
    assert td.calls == td.reflected
    assert td.reflected[Vmcall.CPUID] == 256 + 15
    assert td.reflected.keys() == {Vmcall.CPUID, Vmcall.IO, Vmcall.RDMSR, Vmcall.WRMSR}
    assert td.fields[TdcallLeaf.VM_WR, FIELD_NOTIFY_ENABLES] == 1
    assert td.fields[TdcallLeaf.VM_RD, FIELD_CONFIG_FLAGS] == 1
    (told,) = recorder.exits
    assert isinstance(told, MapGpaRangeExit)
    gpa, pages, attributes, _ = told.args
    assert (told.origin, told.nr, pages, attributes) == ("mapgpa", 12, SWIOTLB_PAGES, 0)
    first = gpa >> PAGE_SHIFT
    assert td.sept.shared() == list(range(first, first + SWIOTLB_PAGES))
    booted.machine.close()


def test_a_conversion_changes_which_memory_is_behind_a_page(kernel: TdKernel) -> None:
    guest = kernel.guest
    gva = guest.gva(Region.D, 3)
    guest.memset(gva, 0x11, PAGE_SIZE)
    assert kernel.view(True, 3) == b"\x11" * 8
    assert guest.set_memory_decrypted(gva, 1).value == 0
    assert kernel.state(3) == SHARED
    assert guest.load(gva).value == 0
    guest.memset(gva, 0x22, PAGE_SIZE)
    assert kernel.view(False, 3) == b"\x22" * 8
    assert guest.set_memory_encrypted(gva, 1).value == 0
    assert kernel.state(3) == ACCEPTED
    assert guest.load(gva).value == 0


def test_a_conversion_tells_the_module_in_the_kernels_order(kernel: TdKernel) -> None:
    guest, td = kernel.guest, kernel.td
    gva, gpa = guest.gva(Region.D, 8), guest.gpa(Region.D, 8)
    guest.set_memory_decrypted(gva, 2)
    guest.set_memory_encrypted(gva, 2)
    shared, private, *accepts = td.events
    assert isinstance(shared, MapGpaCall)
    assert (shared.gpa, shared.size, shared.private, shared.table_writes) == (gpa, 8192, False, 2)
    assert isinstance(private, MapGpaCall)
    assert (private.gpa, private.size, private.private, private.table_writes) == (
        gpa,
        8192,
        True,
        2,
    )
    assert accepts == [Accept(gpa + 4096 * i, 0, 0, 0, 2) for i in range(2)]
    flips = guest.leaf_map.update(guest.machine.ram.table_writes())
    assert [(flip.pages, flip.private) for flip in flips] == [(1, False)] * 2 + [(1, True)] * 2


def test_a_snapshot_keeps_page_states(kernel: TdKernel) -> None:
    assert len(kernel.td.sept.shared()) == SWIOTLB_PAGES
    kernel.guest.set_memory_decrypted(kernel.guest.gva(Region.D, 0), 4)
    assert len(kernel.td.sept.shared()) == SWIOTLB_PAGES + 4
    kernel.guest.reset()
    assert len(kernel.td.sept.shared()) == SWIOTLB_PAGES


def test_the_kernels_own_handler_reads_an_msr_for_it(kernel: TdKernel) -> None:
    """RDMSR raises #VE; exc_virtualization_exception() fetches the reason and asks by TDVMCALL."""
    guest, td = kernel.guest, kernel.td
    error = guest.gva(Region.D, 0)
    before = dict(td.leaves)
    reflected = guest.call("native_read_msr_safe", _MISC_ENABLE, error)
    calls = {leaf: count - before.get(leaf, 0) for leaf, count in td.leaves.items()}
    td.reflects = False
    try:
        plain = guest.call("native_read_msr_safe", _MISC_ENABLE, error)
    finally:
        td.reflects = True
    assert plain.value is not None
    assert reflected == plain
    assert (calls[TdcallLeaf.VP_VEINFO_GET], calls[TdcallLeaf.VP_VMCALL]) == (1, 1)


IN_CLOCK_DATA = b"\xe4\x71"
IN_WORD = b"\x66\xed"
REP_OUTSB = b"\xf3\x6e"
RET = b"\xc3"
EXECMEM_MODULE_TEXT = 0


def module_code(guest: LinuxGuest, code: bytes) -> int:
    """Address of `code` in memory that the kernel gives to modules."""
    text = guest.call("execmem_alloc", EXECMEM_MODULE_TEXT, PAGE_SIZE).value
    assert text
    assert guest.machine.current.write_memory(Gva(text), code)
    assert guest.call("set_memory_x", text, 1).value == 0
    guest.machine.hooks.forget_code()
    return text


def test_code_that_comes_later_raises_it_like_the_kernels_own(kernel: TdKernel) -> None:
    """A module's IN, then another instruction in its place, which is found, too."""
    guest, td = kernel.guest, kernel.td
    before = Counter(td.reflected)
    text = module_code(guest, IN_CLOCK_DATA + RET)
    first = guest.calls.call_address(text)
    assert first.value is not None
    assert first.value & 0xFF == 0
    assert Counter(td.reflected) - before == {Vmcall.IO: 1}
    assert guest.call("set_memory_rw", text, 1).value == 0
    assert guest.machine.current.write_memory(Gva(text), IN_WORD + RET)
    guest.machine.hooks.forget_code()
    assert guest.calls.call_address(text).value is not None
    assert Counter(td.reflected) - before == {Vmcall.IO: 2}


def test_the_kernel_refuses_string_io(kernel: TdKernel) -> None:
    """handle_io() of arch/x86/coco/tdx/tdx.c takes no string instruction: the fault is the guest's,
    and the hypervisor is not asked."""
    guest, td = kernel.guest, kernel.td
    counts = Counter(td.calls), Counter(td.reflected)
    text = module_code(guest, REP_OUTSB + RET)
    ended = guest.calls.call_address(text).end
    assert isinstance(ended, GuestOops)
    assert ended.rip == text
    assert Counter(td.calls) - counts[0] == {}
    assert Counter(td.reflected) - counts[1] == {Vmcall.IO: 1}


@pytest.mark.soak
def test_a_console_that_raises_ve_asks_for_every_character(image_of: Callable[[str], Path]) -> None:
    recorder = BootRecorder()
    kernel = LOADER.kernel(image_of("6.12"))
    booted = boot_kernel(
        kernel, linux_config(128, 39, "tdx"), recorder, console=Console(raises_ve=True)
    )
    td = booted.platform.td
    assert isinstance(booted.end, Trap)
    assert td is not None
    assert td.reflected[Vmcall.IO] > 2 * len(booted.console.text) > 10_000
    booted.machine.close()


KVM_SIGNATURE_LEAF = 0x4000_0000
RTC_REGISTER = 0x5A
RTC_INDEX, RTC_DATA, DELAY = 0x70, 0x71, 0x80


@pytest.mark.parametrize(
    ("series", "halts"),
    [
        ("6.12", True),
        pytest.param("6.18", False, marks=pytest.mark.soak),
        pytest.param("7.3", False, marks=pytest.mark.soak),
    ],
)
def test_the_kernels_own_handler_asks_for_cpuid_ports_and_halts(
    image_of: Callable[[str], Path], series: str, halts: bool
) -> None:
    """handle_cpuid(), handle_in(), handle_out() and handle_halt(), by TDG.VP.VMCALL (T6, T8).

    Since 6.15 handle_halt() refuses a HLT with interrupts enabled, as here (`halts` False), with a
    WARN, and the handler raises a fault.
    """
    guest = LOADER.guest(image_of(series), linux_config(128, 39, "tdx"), BUDGET)
    guest.reset()
    td = guest.platform.td
    assert td is not None
    booted = Counter(td.reflected)
    before = td.leaves.get(TdcallLeaf.VP_VEINFO_GET, 0), sum(td.calls.values())
    machine = guest.machine
    machine.hooks.handler = BootRecorder()
    ports: list[tuple[int, int, int | None]] = []

    def port_in(port: int, size: int) -> int:
        ports.append((port, size, None))
        return 0x37

    machine.hooks.port_in = port_in
    machine.hooks.port_out = lambda port, size, value: ports.append((port, size, value))
    table = guest.gva(Region.D, 0)
    registers = [table + 4 * index for index in range(4)]

    def cpuid(leaf: int) -> bytes:
        guest.memset(table, 0, 16)
        machine.ram.write(guest.gpa(Region.D, 0), leaf.to_bytes(4, "little"))
        guest.call("native_cpuid", *registers)
        return machine.ram.read(guest.gpa(Region.D, 0), 16)

    def read_clock() -> int | None:
        value = guest.call("rtc_cmos_read", RTC_REGISTER).value
        return None if value is None else value & 0xFF

    td.reflects = False
    in_place = (cpuid(0), cpuid(KVM_SIGNATURE_LEAF), read_clock())
    assert in_place[1][4:16] == b"KVMKVMKVM\0\0\0"
    clock = [port for port in ports if port[0] in {RTC_INDEX, RTC_DATA}]
    assert td.reflected == dict(booted)
    td.reflects = True
    ports.clear()
    assert (cpuid(0), cpuid(KVM_SIGNATURE_LEAF), read_clock()) == in_place
    assert [port for port in ports if port[0] in {RTC_INDEX, RTC_DATA}] == clock
    raised = Counter(td.reflected) - booted
    assert raised == {Vmcall.CPUID: 1, Vmcall.IO: len(ports)}
    guest.call("native_io_delay")
    halted = guest.call("native_halt")
    assert isinstance(halted.end, Halt) is halts
    assert any("HLT emulation with IRQs enabled" in line for line in halted.warnings) is not halts
    assert (td.calls.get(Vmcall.HLT, 0), td.reflected[Vmcall.HLT]) == (int(halts), 1)
    fetched = td.leaves[TdcallLeaf.VP_VEINFO_GET] - before[0]
    assert fetched == sum(td.calls.values()) - before[1] + (not halts)
    idle = guest.call("tdx_halt")  # what an idle CPU of a TD calls: no #VE, the call itself
    assert isinstance(idle.end, Halt)
    assert (td.calls[Vmcall.HLT], td.reflected[Vmcall.HLT]) == (int(halts) + 1, 1)
    guest.close()
