# SPDX-License-Identifier: GPL-2.0-or-later
"""The ways from source to destination: hosts that re-encrypt, or the firmware; handler_path.py has
migration handlers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from guestemu.abi.msrs import SEV_STATUS_SEV_ES
from guestemu.abi.sev_firmware import Policy
from guestemu.machine.machine import Machine, MachineConfig
from guestemu.migration.firmware_link import FirmwareReceiver, FirmwareSender
from guestemu.migration.links import Link, plain_link
from guestemu.migration.sweep.vmsa_link import VmsaLink, VmsaPacket

GUEST_AT: Final = 0x1_0000_0000
"""System-physical address of the guest's frame 0 at the destination; the source's is 0."""


class CarriesVmsas(Protocol):
    """A link for the save area of a SEV-ES guest's vCPU."""

    def send(self, machine: Machine) -> VmsaPacket:
        """A packet of the current vCPU of `machine`."""

    def receive(self, packet: VmsaPacket) -> None:
        """Stores the save area of `packet`. Comes before the pages of its migration."""

    def enter(self, machine: Machine) -> None:
        """The current vCPU of `machine` becomes what came last."""


def _nothing() -> None:
    """For connections that need no beginning or end."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A link for pages and, where the CPU crosses encrypted, one for save areas.

    Frames in `own` do not travel and are not compared; `begin` is called before the packets of each
    migration, `close` after the last.
    """

    link: Link
    vmsa: CarriesVmsas | None = None
    own: frozenset[int] = frozenset()
    begin: Callable[[], None] = _nothing
    close: Callable[[], None] = _nothing


def is_es(config: MachineConfig) -> bool:
    """Whether the machine's guest has SEV-ES."""
    return bool(config.sev_status & SEV_STATUS_SEV_ES)


def connect_plain(source: Machine, destination: Machine) -> Connection:
    """Hosts that can read and write through the guest's keys; the CPU crosses as it is."""
    return Connection(plain_link(source.ram, destination.ram))


def connect_firmware(source: Machine, destination: Machine) -> Connection:
    """KVM's ioctls on two platforms with an open session.

    It carries every packet of a sweep: the firmware neither counts nor orders them (E15). The CPU
    of a SEV-ES guest crosses by its VMSA.
    """
    policy = Policy.SEV | Policy.ES if is_es(source.config) else Policy.SEV
    sender = FirmwareSender(source.ram, source.config.key, policy)
    receiver = FirmwareReceiver(destination.ram, GUEST_AT, policy)
    receiver.open(sender.open(receiver.offer()))
    link = Link(sender, receiver)
    if not policy & Policy.ES:
        return Connection(link)
    return Connection(link, VmsaLink(sender.host, receiver.host))
