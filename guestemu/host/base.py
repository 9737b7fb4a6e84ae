# SPDX-License-Identifier: GPL-2.0-or-later
"""The `Host` interface: whatever answers a guest's exits.

A host is driven by the testbed: `reset` before each program, then one call per exit. It may raise
only `GuestFault` (the guest gets that exception); anything else is reported as a defect of the host
and ends the run. It keeps its own record of which frames are private and gives it out through
`private_map`, which the checks compare with the guest's page tables.

A user's own host is a class with this interface in a file, loaded by `--host FILE.py:CLASS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, U64_MASK
from guestemu.abi.errno import EEXIST, EINVAL, ENOTTY
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.machine.exits import GuestFault, Hypercall, MapGpaRange, VcpuAccess
from guestemu.program.ops import Op, OpKind

if TYPE_CHECKING:
    from guestemu.host.kvm.guest_memory import Slot

_NO_RAM = U64_MASK >> PAGE_SHIFT
"""A gfn behind all RAM."""

__all__ = ["GuestFault", "Host", "Hypercall", "MapGpaRange", "VcpuAccess"]


class Host(ABC):
    """Answers one guest. See the module's docstring for the rules."""

    name: ClassVar[str]
    """The name in `--host` and in program headers."""

    summary: ClassVar[str]
    """One line for `guestemu hosts`."""

    switches: ClassVar[tuple[str, ...]] = ()
    """Names of the historic defects this host can have repaired (`Header.switches`)."""

    contract: ClassVar[str] = "map-gpa-range"
    """Which reference its answers are held to: "map-gpa-range" (facts K3-c), "page-enc-status" or
    "page-enc-status-2019" (K1, K2; the number differs), or "" for none."""

    contract_state: ClassVar[bool] = False
    """Whether its record of frames and MIGRATION_CONTROL are held to that reference, too (K3-a,
    K5): so for the reference user space and users' own hosts, not for historic ones."""

    serves_migration_control: bool = True
    """Whether its user space has a handler for MSR_KVM_MIGRATION_CONTROL; without one an access is
    #GP and the host is never ready."""

    records_conversions: ClassVar[bool] = True
    """Whether its record is what the guest asked for after a conversion that succeeded. Not so
    under a hypervisor that lies."""

    psc_kernel: str = ""
    """The kernel whose KVM changes page states; empty for that of the host."""

    repaired: frozenset[str] = frozenset()
    """The switches that were chosen."""

    lie: str = ""
    """What the hypervisor does to an SNP guest that asks for a page-state change, a name of
    `psc_lies.LIES`; empty for an honest one."""

    memory_slots: tuple[Slot, ...] = ()
    """The VM's memory slots, as passed to `describe_vm`; empty for one over all of RAM."""

    open_frames: tuple[tuple[int, int], ...] = ()
    """Start and end in gfns of what is no RAM with guest_memfd by the VM's slots: user space
    decides about a range that meets it (K3-f)."""

    pluggable: tuple[Slot, ...] = ()
    """Slots that the VM does not have at first and that can be plugged."""

    plugged: tuple[Slot, ...] = ()
    """Those that are, since the last reset."""

    vcpu_count: int = 1
    """The VM's number of vCPUs."""

    def describe_vm(self, slots: tuple[Slot, ...], vcpus: int) -> None:
        """What the VM is like, said before `reset`."""
        self.memory_slots = slots
        self.open_frames = tuple(_open_frames(slots))
        self.vcpu_count = vcpus

    def plug(self, gfn: int, pages: int) -> int:
        """Plugs the slot of `pluggable` that a range meets: 0, -EINVAL where it meets none, -EEXIST
        for one that is plugged, otherwise what `take_slot` says."""
        for slot in self.pluggable:
            if slot.cut(gfn << PAGE_SHIFT, pages << PAGE_SHIFT)[1]:
                if slot in self.plugged:
                    return -EEXIST
                result = self.take_slot(slot)
                if not result:
                    self._have((*self.plugged, slot))
                return result
        return -EINVAL

    def take_slot(self, slot: Slot) -> int:
        """User space hot-plugs memory: 0, and all of it is private, or a negative errno. The reset
        that comes next takes it back. Here: -ENOTTY, without hot-plug."""
        return -ENOTTY

    def unplug(self, gfn: int, pages: int) -> int:
        """Unplugs the plugged slot that a range meets: 0, -EINVAL where it meets none, otherwise
        what `give_slot` says."""
        for slot in self.plugged:
            if slot.cut(gfn << PAGE_SHIFT, pages << PAGE_SHIFT)[1]:
                result = self.give_slot(slot)
                if not result:
                    self._have(tuple(one for one in self.plugged if one is not slot))
                return result
        return -EINVAL

    def give_slot(self, slot: Slot) -> int:
        """User space hot-unplugs memory that was plugged: 0, and there is none, or a negative
        errno. Here: -ENOTTY, without hot-unplug."""
        return -ENOTTY

    def take_back(self) -> None:
        """No slot is plugged any more; called before `reset` and `restore`."""
        if self.plugged:
            self._have(())

    def _have(self, plugged: tuple[Slot, ...]) -> None:
        self.plugged = plugged
        self.open_frames = tuple(_open_frames((*self.memory_slots, *plugged)))

    @abstractmethod
    def reset(self, frames: int) -> None:
        """Forgets everything: a new VM with `frames` 4 KiB frames of RAM from GPA 0 on."""

    def restore(self, frames: int) -> None:
        """As `reset`, called before every program; a host may do it faster by undoing."""
        self.reset(frames)

    @abstractmethod
    def hypercall(self, call: Hypercall) -> int:
        """Answers a hypercall; returns the 64-bit value that RAX gets."""

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """Answers a page-state change of an SNP guest or a TD's MapGPA; returns the 64-bit value
        that user space writes to `hypercall.ret`.

        Here: as the hypercall of the same range, so that a host needs one handler for both.
        """
        return self.hypercall(
            Hypercall(
                nr=KVM_HC_MAP_GPA_RANGE,
                a0=call.gpa,
                a1=call.pages,
                a2=call.attributes,
                a3=0,
                cpl=0,
                is_64bit=True,
                vcpu=call.vcpu,
            )
        )

    @abstractmethod
    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        """The 64-bit value of MSR `index`, or `GuestFault`."""

    @abstractmethod
    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """Writes MSR `index`, or `GuestFault`."""

    @abstractmethod
    def private_map(self) -> bitarray:
        """One bit per frame of RAM (little-endian bitarray), 1 = private. The host's own record;
        callers do not change it and copy what they keep."""

    @property
    @abstractmethod
    def migration_ready(self) -> bool:
        """Whether the guest has allowed its migration (MIGRATION_CONTROL bit 0)."""

    @property
    def state(self) -> int:
        """A small non-negative integer for coverage feedback: the path the last exit took."""
        return 0

    def plain(self, op: Op) -> Op:
        """An op that does on this host what `op` does, in whatever state it is, and the same one
        for all that do: numbers that it takes modulo another are reduced, those that it ignores are
        0. A campaign runs one of them.
        """
        return op

    def operations(self) -> Mapping[OpKind, Callable[..., int]]:
        """What this host does for operations of programs that the host carries out
        (`OpSpec.by_host`), by kind: functions of the op's arguments that return a result or a
        negative errno. The ioctls of `host.ioctls` are found by their methods and are not here; a
        kind that is nowhere answers -ENOTTY."""
        return {}

    def numbers(self) -> tuple[int, ...]:
        """Numbers that the host's own code compares with, the likeliest first: a campaign tries
        them as arguments. Here: none."""
        return ()

    def borders(self) -> tuple[int, ...]:
        """Frames at which a memory slot begins or ends, besides the ends of RAM."""
        slots = (*self.memory_slots, *self.pluggable)
        ends = {place >> PAGE_SHIFT for slot in slots for place in (slot.gpa, slot.end)}
        return tuple(sorted(ends)[1:-1])

    @property
    def has_failing_kernel(self) -> bool:
        """Whether a call of user space into its kernel has failed as the program ordered: then user
        space may refuse what it would otherwise do."""
        return False

    def inject_answer(self, value: int, count: int) -> None:
        """User space answers the next `count` hypercall exits with `value` and records nothing."""
        raise NotImplementedError(f"host {self.name} has no answer injection")

    def inject_msr_error(self, count: int) -> None:
        """User space answers the next `count` MSR exits with an error."""
        raise NotImplementedError(f"host {self.name} has no MSR error injection")


def _open_frames(slots: tuple[Slot, ...]) -> Iterator[tuple[int, int]]:
    place = 0
    for slot in sorted(slots, key=lambda slot: slot.gpa):
        first, end = slot.gpa >> PAGE_SHIFT, slot.end >> PAGE_SHIFT
        if first > place:
            yield place, first
        if slot.is_read_only or not slot.has_guest_memfd:
            yield first, end
        place = end
    if slots:
        yield place, _NO_RAM
