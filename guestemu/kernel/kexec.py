# SPDX-License-Identifier: GPL-2.0-or-later
"""kexec: one kernel leaves shared pages behind, the next boots over the same memory and host.

The old kernel converts pages, then runs its own shutdown code, which writes MIGRATION_CONTROL = 0
(A43). The jump itself, relocate_kernel(), is the loader's work here: the new kernel's segments and
boot_params are put in place, all other memory stays, and the host is not told (A45). The new kernel
is an ordinary boot; its kvm_init_platform() tells the host about the e820 map's RAM (A40, A41), and
an entry that does not start at a page boundary is refused by KVM and skipped (A46).
"""

from __future__ import annotations

from typing import Final

import msgspec
from bitarray import bitarray

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Gpa, to_signed
from guestemu.abi.errors import InputError
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.abi.msrs import MSR_KVM_MIGRATION_CONTROL
from guestemu.abi.regions import Region
from guestemu.events.exits import HypercallExit
from guestemu.guest.linux.boot import (
    LOADER_END,
    MemoryBefore,
    boot_kernel,
    describe_end,
)
from guestemu.guest.linux.bootparams import E820_RESERVED, MemoryRange, pc_memory_map
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.kernel import Kernel
from guestemu.guest.linux.prepare import prepare
from guestemu.host.base import GuestFault, Host, Hypercall, MapGpaRange, VcpuAccess
from guestemu.machine.exits import Trap

LEFT_PAGES: Final = 256
"""Pages of region L that the old kernel's drivers leave shared."""

_SYS_RESTART: Final = 1
_HOLE: Final = 0x1000


class KexecRefused(msgspec.Struct, frozen=True):
    """A hypercall that the host answered with an error."""

    nr: int
    args: tuple[int, ...]
    ret: int


class KexecMoment(msgspec.Struct, frozen=True):
    """The host's record at one time: `shared` pages, and whether it may migrate."""

    shared: int
    migration_ready: bool


class KexecReport(msgspec.Struct, frozen=True):
    """What the host knew and when. `at_jump` is when the old kernel is gone, `before_reset` when
    the new kernel's first hypercall arrives, `after` when it reached `rest_init`.

    `stale` are the pages, as [first frame, pages], that the host then still has as shared and the
    new kernel maps private everywhere; `missing` the opposite. `refused` are hypercalls of the new
    kernel that the host refused, `msr` what both kernels wrote to MIGRATION_CONTROL.
    """

    old: str
    new: str
    host: str
    running: KexecMoment
    at_jump: KexecMoment
    before_reset: KexecMoment
    after: KexecMoment
    hypercalls: int
    refused: tuple[KexecRefused, ...]
    msr: tuple[int, ...]
    stale: tuple[tuple[int, int], ...]
    missing: tuple[tuple[int, int], ...]

    @property
    def stale_pages(self) -> int:
        """Number of pages in `stale`."""
        return sum(pages for _first, pages in self.stale)


class _Watch:
    """An `ExitHandler` over the host that notes what matters here."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.refused: list[KexecRefused] = []
        self.msr: list[int] = []
        self.hypercalls = 0
        self.first: KexecMoment | None = None

    def moment(self) -> KexecMoment:
        return KexecMoment(self.host.private_map().count(0), self.host.migration_ready)

    def begin(self) -> None:
        """The new kernel starts."""
        self.refused = []
        self.hypercalls = 0
        self.first = None

    def hypercall(self, call: Hypercall) -> int:
        """See `ExitHandler`."""
        self._note_first()
        return self._note(call.nr, (call.a0, call.a1, call.a2, call.a3), self.host.hypercall(call))

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """See `ExitHandler`."""
        self._note_first()
        arguments = (call.gpa, call.pages, call.attributes, 0)
        return self._note(KVM_HC_MAP_GPA_RANGE, arguments, self.host.map_gpa_range(call))

    def _note_first(self) -> None:
        if self.first is None:
            self.first = self.moment()
        self.hypercalls += 1

    def _note(self, nr: int, arguments: tuple[int, int, int, int], answer: int) -> int:
        signed = to_signed(answer, 64)
        if signed:
            self.refused.append(KexecRefused(nr, arguments, signed))
        return answer

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        """See `ExitHandler`."""
        return self.host.rdmsr(index, vcpu)

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """See `ExitHandler`."""
        if index == MSR_KVM_MIGRATION_CONTROL:
            self.msr.append(value)
        self.host.wrmsr(index, value, vcpu)


def memory_with_hole(size: int, hole: int) -> tuple[MemoryRange, ...]:
    """The PC's e820 map of `size` bytes with RAM that ends and starts again at `hole`, an address
    that may lie inside a page: the rest of a page, or a whole one, is reserved in front of it.

    Raises `InputError` for a place that is not in the RAM above 1 MiB.
    """
    *low, high = pc_memory_map(size, LOADER_END)
    first = (hole - 1 & ~PAGE_MASK) if hole & PAGE_MASK else hole - _HOLE
    if not high.start < first < hole < size:
        raise InputError(f"hole {hole:#x}: it has to lie between {high.start:#x} and {size:#x}")
    return (
        *low,
        MemoryRange(high.start, first - high.start),
        MemoryRange(first, hole - first, E820_RESERVED),
        MemoryRange(hole, size - hole),
    )


def kexec(
    old: LinuxGuest, new: Kernel, host: Host, hole: int = 0, crash: bool = False
) -> KexecReport:
    """From `old`, a booted guest, to `new` over the same memory and the same `host`.

    `hole` is an address where the e820 map that the new kernel gets is cut (0: nowhere); `crash`
    leaves by machine_crash_shutdown() instead of the reboot notifier. The old guest is reset.
    Raises `InputError` where a kernel does not get there.
    """
    config = old.machine.config
    size = config.frames << PAGE_SHIFT
    memory_map = memory_with_hole(size, hole) if hole else None
    watch = _Watch(host)
    _start(old, host)
    old.machine.hooks.handler = watch
    outcome = old.set_memory_decrypted(old.gva(Region.L, 0), LEFT_PAGES)
    if outcome.value != 0:
        raise InputError(f"{old.kernel.name}: set_memory_decrypted failed: {outcome}")
    running = watch.moment()
    _leave(old, crash)
    at_jump = watch.moment()
    pages = _contents(old)
    watch.begin()
    booted = boot_kernel(new, config, watch, memory=MemoryBefore(memory_map, pages))
    old.reset()
    if not isinstance(booted.end, Trap):
        raise InputError(f"{new.name}: {describe_end(booted)} in the second kernel")
    after, hypercalls = watch.moment(), watch.hypercalls
    is_shared = bitarray(config.frames, endian="little")
    is_shared.setall(0)
    is_private = host.private_map().copy()
    for gfn in prepare(booted, []).shared_frames:
        is_shared[gfn] = 1
    version = new.version
    booted.machine.close()
    return KexecReport(
        old=old.kernel.version,
        new=version,
        host=host.name,
        running=running,
        at_jump=at_jump,
        before_reset=watch.first or after,
        after=after,
        hypercalls=hypercalls,
        refused=tuple(watch.refused),
        msr=tuple(watch.msr),
        stale=_runs(~is_private & ~is_shared),
        missing=_runs(is_private & is_shared),
    )


def _start(old: LinuxGuest, host: Host) -> None:
    """Guest and host as after the old kernel's boot."""
    old.reset()
    host.reset(old.machine.config.frames)
    vcpu = old.machine.current
    for told in old.boot_exits:
        try:
            if isinstance(told, HypercallExit):
                a0, a1, a2, a3 = told.args
                host.hypercall(Hypercall(told.nr, a0, a1, a2, a3, 0, True, vcpu))
            else:
                host.wrmsr(told.nr, told.args[0], vcpu)
        except GuestFault:
            continue  # a host without this MSR; the kernel's exception table goes on, too (A47)


def _leave(old: LinuxGuest, crash: bool) -> None:
    """The old kernel's last calls. A crash ends in its own panic, as there is no local APIC to
    stop; the MSR is written before."""
    if crash:
        registers = old.calls.must(("__get_free_pages", "get_free_pages_noprof"), 0xDC0, 0)
        old.call("machine_crash_shutdown", registers)
    else:
        block = old.kernel.address("kvm_pv_reboot_nb")
        old.call("kvm_pv_reboot_notify", block, _SYS_RESTART, 0)


def _contents(old: LinuxGuest) -> dict[int, bytes]:
    """What an access with C=1 reads in every page that is not zero."""
    ram = old.machine.ram
    zero = bytes(PAGE_SIZE)
    pages = {}
    for gfn in range(LOADER_END >> PAGE_SHIFT, ram.frames):
        content = ram.read(Gpa(gfn << PAGE_SHIFT), PAGE_SIZE)
        if content != zero:
            pages[gfn] = content
    return pages


def _runs(bits: bitarray) -> tuple[tuple[int, int], ...]:
    """Runs of ones, as (first, length)."""
    found = []
    start = bits.find(1)
    while start >= 0:
        end = bits.find(0, start)
        if end < 0:
            end = len(bits)
        found.append((start, end - start))
        start = bits.find(1, end)
    return tuple(found)
