# SPDX-License-Identifier: GPL-2.0-or-later
"""kexec: one kernel leaves shared pages behind, the next boots over the same memory and host.

The old kernel converts pages, then runs its own shutdown code, which writes MIGRATION_CONTROL = 0
(A43). The jump itself, relocate_kernel(), is the loader's work here: the new kernel's segments and
boot_params are put in place, all other memory stays, and the host is not told (A45). The new kernel
is an ordinary boot; its kvm_init_platform() tells the host about the e820 map's RAM (A40, A41), and
an entry that does not start at a page boundary is refused by KVM and skipped (A46).

An SNP guest or a TD also leaves page states behind: RMP and Secure EPT outlive the jump. Kernels
that know of it make every shared page private before (enc_kexec_begin() and enc_kexec_finish(),
6.16 on for SNP; N25, T24). The new kernel then finds pages that are validated, or it ends itself.

A kernel with one CPU stands at the end of its boot, and the last functions of its shutdown are
called one by one (`OneCpu`); one with several leaves by itself (kexec_several.py). The new kernel
has one CPU. The other CPUs of an SNP guest began from VMSAs, pages of the old kernel's memory
(N26): what of them is left is a page state, too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Final, Protocol

import msgspec
from bitarray import bitarray

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Gpa, to_signed
from guestemu.abi.errors import InputError
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.abi.msrs import MSR_KVM_MIGRATION_CONTROL
from guestemu.abi.regions import Region
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
from guestemu.guest.linux.snp import Snp
from guestemu.host.base import Host, Hypercall, MapGpaRange, VcpuAccess
from guestemu.machine.exits import Trap
from guestemu.machine.machine import Machine, MachineConfig
from guestemu.machine.rmp import VALIDATED
from guestemu.machine.sept import ACCEPTED, SecureEpt
from guestemu.runner.told import tell_exits

LEFT_PAGES: Final = 256
"""Pages of region L that the old kernel's drivers leave shared."""

_SYS_RESTART: Final = 1
_FREES_UNUSED: Final = "mem_encrypt_free_decrypted_mem"
"""What the end of the boot, behind rest_init, does: the unused part of .bss..decrypted is made
private. Kernels that unshare leave it out for that reason."""
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


class VmsaLeft(msgspec.Struct, frozen=True):
    """Frame `gfn` has the VMSA bit when the old kernel is gone; `is_in_use`: a vCPU is in the guest
    with it, so that each access to it is an #NPF that nothing resolves (N58)."""

    gfn: int
    is_in_use: bool


class KexecReport(msgspec.Struct, frozen=True):
    """What the host knew and when. `at_jump` is when the old kernel is gone, `before_reset` when
    the new kernel's first hypercall arrives, `after` when it reached `rest_init`.

    `stale` are the pages, as [first frame, pages], that the host then still has as shared and the
    new kernel maps private everywhere; `missing` the opposite. `refused` are hypercalls of the new
    kernel that the host refused, `msr` what both kernels wrote to MIGRATION_CONTROL.

    `unshared`: the old kernel made its memory private before the jump. `unusable` are pages that
    the new kernel maps private and that are not validated (a TD: not accepted): the first access
    ends it. `end` says how far the new kernel got; where it ended itself, `stale`, `missing` and
    `unusable` are empty. `cpus` are those of the old kernel, `vmsas` what is left of an SNP guest's
    at the jump.
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
    unshared: bool = False
    unusable: tuple[tuple[int, int], ...] = ()
    end: str = ""
    cpus: int = 1
    vmsas: tuple[VmsaLeft, ...] = ()

    @property
    def has_booted(self) -> bool:
        """Whether the new kernel reached its end."""
        return self.end.startswith("reached ")

    @property
    def stale_pages(self) -> int:
        """Number of pages in `stale`."""
        return sum(pages for _first, pages in self.stale)


class KexecWatch:
    """An `ExitHandler` over the host that notes what matters here."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.refused: list[KexecRefused] = []
        self.msr: list[int] = []
        self.hypercalls = 0
        self.first: KexecMoment | None = None

    def moment(self) -> KexecMoment:
        """What the host believes now."""
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


class OldKernel(Protocol):
    """The kernel that runs first, and how it leaves."""

    @property
    def kernel(self) -> Kernel:
        """What it is."""

    @property
    def machine(self) -> Machine:
        """What it runs on."""

    def begin(self, watch: KexecWatch) -> None:
        """Guest and host as after its boot; then its exits go to `watch`."""

    def share(self) -> None:
        """Its drivers leave `LEFT_PAGES` pages shared. Raises `InputError`."""

    def leave(self, crash: bool) -> None:
        """Its shutdown up to the jump. Raises `InputError` where it does not get there."""

    def reset(self) -> None:
        """Back to the state after its boot."""


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
    """`kexec_from` a booted guest of one CPU."""
    return kexec_from(OneCpu(old), new, old.machine.config, host, hole, crash)


def kexec_from(
    old: OldKernel,
    new: Kernel,
    config: MachineConfig,
    host: Host,
    hole: int = 0,
    crash: bool = False,
) -> KexecReport:
    """From `old` to `new` on a machine of `config`, over the same memory and the same `host`.

    `hole` is an address where the e820 map that the new kernel gets is cut (0: nowhere); `crash`
    leaves by machine_crash_shutdown() instead of the reboot notifier. The old kernel is reset.
    Raises `InputError` where a kernel does not get there.
    """
    size = config.frames << PAGE_SHIFT
    memory_map = memory_with_hole(size, hole) if hole else None
    watch = KexecWatch(host)
    old.begin(watch)
    old.share()
    running = watch.moment()
    old.leave(crash)
    at_jump = watch.moment()
    pages, states = _contents(old.machine), _states(old.machine)
    vmsas = _vmsas(old.machine)
    watch.begin()
    booted = boot_kernel(
        new,
        config,
        watch,
        memory=MemoryBefore(memory_map, pages),
        watch=functools.partial(_load_states, states=states, vmsas=vmsas),
    )
    old.reset()
    after, hypercalls = watch.moment(), watch.hypercalls
    has_booted = isinstance(booted.end, Trap)
    if not has_booted and not states:
        raise InputError(f"{new.name}: {describe_end(booted)} in the second kernel")
    is_shared = bitarray(config.frames, endian="little")
    is_shared.setall(0)
    is_private = host.private_map().copy()
    for gfn in prepare(booted, []).shared_frames if has_booted else ():
        is_shared[gfn] = 1
    is_usable = _usable(booted.machine)
    version, end = new.version, describe_end(booted)
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
        stale=_runs(~is_private & ~is_shared) if has_booted else (),
        missing=_runs(is_private & is_shared) if has_booted else (),
        unshared=at_jump.shared < running.shared,
        unusable=_runs(~is_usable & ~is_shared) if has_booted else (),
        end=end,
        cpus=old.machine.config.vcpus,
        vmsas=vmsas,
    )


class OneCpu:
    """An `OldKernel` of one CPU, booted to `rest_init`."""

    def __init__(self, guest: LinuxGuest) -> None:
        self._guest = guest

    @property
    def kernel(self) -> Kernel:
        """See `OldKernel`."""
        return self._guest.kernel

    @property
    def machine(self) -> Machine:
        """See `OldKernel`."""
        return self._guest.machine

    def begin(self, watch: KexecWatch) -> None:
        """See `OldKernel`."""
        guest = self._guest
        guest.reset()
        watch.host.reset(guest.machine.config.frames)
        tell_exits(watch.host, guest.boot_exits, guest.machine.current)
        guest.machine.hooks.handler = watch

    def share(self) -> None:
        """See `OldKernel`."""
        guest = self._guest
        if guest.rmp is not None and _FREES_UNUSED in guest.kernel.symbols:
            guest.call(_FREES_UNUSED)
        outcome = guest.set_memory_decrypted(guest.gva(Region.L, 0), LEFT_PAGES)
        if outcome.value != 0:
            raise InputError(f"{guest.kernel.name}: set_memory_decrypted failed: {outcome}")

    def leave(self, crash: bool) -> None:
        """The old kernel's last calls. The crash path makes memory private by itself, where the
        kernel can: native_machine_crash_shutdown() has the calls between the stop of the interrupt
        controllers and crash_save_cpu(). It ends in an oops there, as an initcall behind rest_init
        allocates the notes, or before, as there is no local APIC; the MSR is written first."""
        guest = self._guest
        if crash:
            registers = guest.calls.must(("__get_free_pages", "get_free_pages_noprof"), 0xDC0, 0)
            guest.call("machine_crash_shutdown", registers)
            return
        block = guest.kernel.address("kvm_pv_reboot_nb")
        guest.call("kvm_pv_reboot_notify", block, _SYS_RESTART, 0)
        vendor = "snp" if guest.rmp is not None else "tdx" if guest.td is not None else ""
        if f"{vendor}_kexec_finish" not in guest.kernel.symbols:
            return
        for name in (f"{vendor}_kexec_begin", f"{vendor}_kexec_finish"):
            outcome = guest.call(name)
            if outcome.value is None:
                raise InputError(f"{guest.kernel.name}: {name}() did not return: {outcome.end}")

    def reset(self) -> None:
        """See `OldKernel`."""
        self._guest.reset()


def _devices(machine: Machine) -> Iterator[Snp | SecureEpt]:
    """What holds the page states of an SNP guest or a TD."""
    return (device for device in machine.devices if isinstance(device, Snp | SecureEpt))


def _states(machine: Machine) -> bytes:
    """Page states for `_load_states`, empty where there are none."""
    for device in _devices(machine):
        return device.rmp.dump() if isinstance(device, Snp) else device.dump()
    return b""


def _load_states(machine: Machine, states: bytes, vmsas: tuple[VmsaLeft, ...]) -> None:
    for device in _devices(machine):
        device.load(states)
        if isinstance(device, Snp):
            for left in vmsas:
                if left.is_in_use:
                    device.rmp.enter(left.gfn)
            device.enforce()


def _vmsas(machine: Machine) -> tuple[VmsaLeft, ...]:
    """Pages that are VMSAs now."""
    return tuple(
        VmsaLeft(gfn, device.rmp.is_in_use(gfn))
        for device in _devices(machine)
        if isinstance(device, Snp)
        for gfn in device.rmp.vmsa_frames()
    )


def _usable(machine: Machine) -> bitarray:
    """Frames that an access with C=1 (a TD: by the private alias) reaches."""
    usable = bitarray(machine.config.frames, endian="little")
    usable.setall(1)
    for device in _devices(machine):
        for gfn in range(len(usable)):
            if isinstance(device, Snp):
                usable[gfn] = device.rmp.state(gfn) == VALIDATED
            else:
                usable[gfn] = device.state(gfn) == ACCEPTED
    return usable


def _contents(machine: Machine) -> dict[int, bytes]:
    """What an access with C=1 reads in every page that is not zero."""
    ram = machine.ram
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
