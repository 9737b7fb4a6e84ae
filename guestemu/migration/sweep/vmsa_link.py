# SPDX-License-Identifier: GPL-2.0-or-later
"""How a SEV-ES vCPU crosses: its save area through SEND_UPDATE_VMSA and RECEIVE_UPDATE_VMSA.

The firmware has both commands (E6, E9). KVM has neither ioctl: ids 10 and 14 are -EINVAL (E.2), so
a real host cannot do this today. Here the commands are given to the firmware directly.
"""

from __future__ import annotations

import zlib
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.errno import EINVAL, EPERM
from guestemu.abi.errors import EngineError
from guestemu.abi.sev_firmware import HEADER_SIZE, Command, KvmSevCommand, Status
from guestemu.host.firmware.buffers import UpdateBuffer
from guestemu.host.firmware.dispatch import execute
from guestemu.host.firmware.kvm import memory_encrypt_op
from guestemu.host.firmware.kvm_params import SevCmd
from guestemu.machine.machine import Machine
from guestemu.machine.vmsa import load_vmsa, save_vmsa
from guestemu.migration.sev_host import COMMAND, PARAMETERS, SevHost

VMSA_COMMANDS: Final = (KvmSevCommand.SEND_UPDATE_VMSA, KvmSevCommand.RECEIVE_UPDATE_VMSA)
LEGACY_COMMANDS: Final = (
    KvmSevCommand.SEND_START,
    KvmSevCommand.SEND_UPDATE_DATA,
    KvmSevCommand.RECEIVE_START,
    KvmSevCommand.RECEIVE_UPDATE_DATA,
)
"""What a migration of a SEV guest begins with; an SNP VM may issue none of them (E20)."""

_ERRNO: Final = {-EINVAL: "-EINVAL", -EPERM: "-EPERM"}


class VmsaPacket(msgspec.Struct, frozen=True, tag="vmsa"):
    """A save area under the transport key, with its header."""

    header: bytes
    data: bytes


class _End:
    """One host's page for the save area, and buffers for a packet."""

    def __init__(self, host: SevHost) -> None:
        self.platform = host.platform
        self.handle = host.vm.handle
        heap = host.vm.host.heap
        places = [heap.allocate(PAGE_SIZE) for _ in range(3)]
        if None in places:
            raise EngineError("the host has no memory for a save area")
        self.vmsa, self.header, self.transport = (place or 0 for place in places)

    def execute(self, command: Command) -> None:
        """Gives the firmware `command` for this save area."""
        buffer = UpdateBuffer(
            handle=self.handle,
            header_address=self.header,
            header_length=HEADER_SIZE,
            guest_address=self.vmsa | self.platform.config.cbit_mask,
            guest_length=PAGE_SIZE,
            transport_address=self.transport,
            transport_length=PAGE_SIZE,
        )
        status = execute(self.platform, command, buffer)
        if status is not Status.SUCCESS:
            raise EngineError(f"{command.name}: firmware status {status.name}")


class VmsaLink:
    """Both ends of an open session of a SEV-ES guest."""

    def __init__(self, source: SevHost, destination: SevHost) -> None:
        self._source = _End(source)
        self._destination = _End(destination)

    def send(self, machine: Machine) -> VmsaPacket:
        """The current vCPU of `machine`: the processor stores it at a VMEXIT, SEND_UPDATE_VMSA
        makes the packet. The firmware takes only what the processor or itself wrote."""
        end = self._source
        page = save_vmsa(machine)
        guest = end.platform.guest(end.handle)
        end.platform.write_guest(guest, end.vmsa, page)
        guest.vmsas = {zlib.crc32(page)}
        end.execute(Command.SEND_UPDATE_VMSA)
        read = end.platform.read
        return VmsaPacket(read(end.header, HEADER_SIZE), read(end.transport, PAGE_SIZE))

    def receive(self, packet: VmsaPacket) -> None:
        """RECEIVE_UPDATE_VMSA."""
        end = self._destination
        end.platform.write(end.header, packet.header)
        end.platform.write(end.transport, packet.data)
        end.execute(Command.RECEIVE_UPDATE_VMSA)

    def enter(self, machine: Machine) -> None:
        """A VMRUN of what came: the current vCPU of `machine` becomes it."""
        end = self._destination
        guest = end.platform.guest(end.handle)
        load_vmsa(machine, end.platform.read_guest(guest, end.vmsa, PAGE_SIZE))


def kvm_answers(host: SevHost, commands: tuple[KvmSevCommand, ...]) -> dict[str, str]:
    """What KVM_MEMORY_ENCRYPT_OP returns for each of `commands`, by name: an errno, or a number."""
    answers = {}
    for command in commands:
        host.user.write(COMMAND, SevCmd(command, 0, PARAMETERS, 0, 0).pack())
        result = memory_encrypt_op(host.vm, COMMAND)
        answers[command.name] = _ERRNO.get(result, str(result))
    return answers
