# SPDX-License-Identifier: GPL-2.0-or-later
"""The way through migration handlers, for a booted kernel.

The handlers' pages lie in the BIOS area, which the kernel's e820 map does not give it as RAM. Every
migration of a sweep is a session of its own. A SEV-ES guest's save area is a page like others to a
handler, although no page table of the guest maps it (F16): KVM is not asked for the ioctls that it
does not have.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa
from guestemu.host.firmware.memory import PlacedCipher
from guestemu.host.mirror.mailbox import PageForm
from guestemu.machine.machine import Machine
from guestemu.machine.vmsa import load_vmsa, save_vmsa
from guestemu.migration.handler_link import HandlerLink, handler_link
from guestemu.migration.links import Packet
from guestemu.migration.sweep.connection import GUEST_AT, Connection, is_es
from guestemu.migration.sweep.vmsa_link import VmsaPacket

VMSA_FRAME: Final = 0xFF
"""The frame of the save area, outside of what the guest takes for RAM."""


class HandlerVmsaLink:
    """Save areas by SAVE and RESTORE of their page."""

    def __init__(self, handlers: HandlerLink) -> None:
        self._handlers = handlers

    def send(self, machine: Machine) -> VmsaPacket:
        """The processor stores the current vCPU at a VMEXIT, the handler exports the page."""
        machine.ram.write(Gpa(VMSA_FRAME << PAGE_SHIFT), save_vmsa(machine))
        packet = self._handlers.sender.send(Gfn(VMSA_FRAME), True)
        return VmsaPacket(packet.header, packet.data)

    def receive(self, packet: VmsaPacket) -> None:
        """The handler imports the page."""
        page = Packet(VMSA_FRAME, True, packet.data, packet.header)
        self._handlers.receiver.deliver(page)

    def enter(self, machine: Machine) -> None:
        """A VMRUN of what the page holds."""
        load_vmsa(machine, machine.ram.read(Gpa(VMSA_FRAME << PAGE_SHIFT), PAGE_SIZE))


def connect_handler(
    source: Machine, destination: Machine, form: PageForm = PageForm.BOUND
) -> Connection:
    """Handlers in both machines; the destination's RAM is elsewhere in its host's memory. Raises
    what `handler_link` raises."""
    destination.ram.cipher = PlacedCipher(destination.config.key, GUEST_AT >> PAGE_SHIFT)
    handlers = handler_link(source, destination, form)
    vmsa = HandlerVmsaLink(handlers) if is_es(source.config) else None
    own = handlers.frames | {VMSA_FRAME}
    return Connection(handlers.link, vmsa, own, handlers.sender.begin, handlers.close)


def connect_unbound(source: Machine, destination: Machine) -> Connection:
    """The same with packets that fit any page at any time, for experiments that use each packet
    many times: handlers that bind them refuse that."""
    return connect_handler(source, destination, PageForm.UNBOUND)
