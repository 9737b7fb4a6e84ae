# SPDX-License-Identifier: GPL-2.0-or-later
"""The SEV ioctls: answers and states as the reference has them, and nothing leaks or is lost.

After each operation on a host with a firmware: answer and guest state equal `sev_reference` (E.1 to
E.6); a packet is followed by zeros (M15); the shared zero page is zero (M16); the firmware holds as
many guests as VMs have (M14); DBG_DECRYPT gives the guest's bytes (M26); user space triggers no
WARN (M25).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.errno import EINVAL, ENOMEM
from guestemu.abi.sev_firmware import KvmSevCommand
from guestemu.checks.base import OpView, Oracle, Violation
from guestemu.checks.sev_reference import (
    BUFFER_LIMIT,
    GUEST_BYTES,
    REGION_OFFSETS,
    RUNNING,
    Call,
    sev_answer,
)
from guestemu.host.base import Host
from guestemu.host.firmware.operations import HasSevWorld
from guestemu.program.ops import OpKind

if TYPE_CHECKING:
    from guestemu.host.firmware.world import SevWorld

_VMS: Final = 3
_ZEROS: Final = bytes(PAGE_SIZE)
_ID = KvmSevCommand


class SevFirmwareCheck(Oracle):
    """See the module's docstring. Follows a program's guests from operation to operation; after a
    violation the firmware's own states are believed."""

    name = "sev-firmware"
    kinds: frozenset[OpKind] | None = None

    demands: ClassVar[Mapping[str, str]] = {
        "sev-firmware": (
            "KVM's SEV ioctls answer as the reference does, and leave the guest in the state "
            "that it says."
        ),
    }
    explanations: ClassVar[Mapping[str, str]] = {
        "sev-firmware": (
            "User space of the host reaches a state, or memory, that the ABI keeps from it."
        ),
    }

    @classmethod
    def applies(cls, host: Host) -> bool:
        """Hosts with the firmware."""
        return isinstance(host, HasSevWorld)

    def __init__(self) -> None:
        self._states = [RUNNING, 0]
        self._regions: list[tuple[int, int, int]] = []
        self._host: Host | None = None
        self._firmware: HasSevWorld | None = None

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        if view.index == 0:
            self._states = [RUNNING, 0]
            self._regions = []
        kind = view.op.kind
        if kind not in {OpKind.SEV_IOCTL, OpKind.SEV_REGION}:
            return ()
        if view.host is not self._host:
            self._host = view.host
            self._firmware = view.host if isinstance(view.host, HasSevWorld) else None
        host = self._firmware
        if host is None:
            return ()
        judge = self._ioctl if kind is OpKind.SEV_IOCTL else self._region
        return [
            Violation(self.name, view.index, message, fact)
            for message, fact in judge(view, host.sev_world())
        ]

    def _ioctl(self, view: OpView, world: SevWorld) -> Iterator[tuple[str, str]]:
        number, command, size, offset, size2 = view.op.arguments
        vm = number % _VMS
        owner = vm % 2
        call = Call(self._states[owner], size, offset, size2)
        wanted, state = sev_answer(vm, command, call)
        value = view.outcome.value
        name = next((known.name for known in KvmSevCommand if known == command), f"{command:#x}")
        if value != wanted:
            yield (
                f"{name} in state {call.state} was answered {value}, expected {wanted}",
                "E.3, E.6",
            )
        for index in (0, 1):
            expected = state if index == owner else self._states[index]
            found = world.guest_state(index)
            if found != expected:
                yield f"{name}: the guest of VM {index} is in state {found}, not {expected}", "E.1"
            self._states[index] = found
        if value == 0:
            yield from self._effects(world, vm, command, call)
        if command == _ID.GUEST_STATUS and value == 0 and world.reported_state() != state:
            yield f"GUEST_STATUS reports state {world.reported_state()}, not {state}", "E4"
        guests = sum(1 for known in self._states if known)
        if len(world.platform.guests) != guests:
            text = (
                f"{name}: the firmware holds {len(world.platform.guests)} guests for {guests} VMs"
            )
            yield text, "E24, M14"
        if world.platform.memory.read(world.user.zero_page, PAGE_SIZE) != _ZEROS:
            yield f"{name} wrote to the zero page that all processes share", "E25, M16"

    def _effects(
        self, world: SevWorld, vm: int, command: int, call: Call
    ) -> Iterator[tuple[str, str]]:
        from guestemu.host.firmware.world import OUTPUT, PACKET

        if command == _ID.SEND_UPDATE_DATA:
            tail = world.user.read(PACKET + call.length, call.other - call.length)
            if any(tail):
                yield f"{sum(map(bool, tail))} bytes of kernel memory behind the packet", "E23, M15"
        if command == _ID.DBG_DECRYPT and vm != 1:
            length = call.size % BUFFER_LIMIT
            found = world.user.read(OUTPUT, length)
            if found != world.plain[call.offset : call.offset + length]:
                yield f"DBG_DECRYPT of {length} bytes gave other bytes than the guest's", "M26"

    def _region(self, view: OpView, world: SevWorld) -> Iterator[tuple[str, str]]:
        number, offset, size, unregister = view.op.arguments
        vm = number % _VMS
        value = view.outcome.value
        known = (vm, offset & REGION_OFFSETS, size)
        if vm == _VMS - 1:
            wanted = -EINVAL
        elif unregister:
            wanted = 0 if known in self._regions else -EINVAL
        else:
            wanted = self._registered(vm, offset & REGION_OFFSETS, size)
        if value != wanted:
            word = "UNREG_REGION" if unregister else "REG_REGION"
            yield f"{word} of {size:#x} bytes at {offset:#x} gave {value}, expected {wanted}", "E28"
        if value == 0 and unregister and known in self._regions:
            self._regions.remove(known)
        elif value == 0 and not unregister:
            self._regions.append(known)
        if world.warnings:
            yield f"user space triggered a WARN: {world.warnings[0]}", "M25"

    def _registered(self, vm: int, offset: int, size: int) -> int:
        """The answer to a registration: empty or more than INT_MAX pages (as each that wraps)
        -EINVAL, not all mapped -ENOMEM (E28)."""
        from guestemu.host.firmware.world import GUESTS

        start = GUESTS[vm] + offset
        pages = (start + size - 1 >> 12) - (start >> 12) + 1
        if not size or pages > 0x7FFF_FFFF:
            return -EINVAL
        return 0 if offset + size <= GUEST_BYTES else -ENOMEM
