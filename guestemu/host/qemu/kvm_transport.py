# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's calls to KVM's SEV ioctls, for one VM: the real implementation of the interfaces.

The page at ram_addr_t x is at the host virtual address `ram_hva + x` of the process. Source: E22 to
E26; target/i386/sev.c of the patch sets.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, RamAddr
from guestemu.abi.errno import EFAULT, EINVAL
from guestemu.abi.errors import InputError
from guestemu.abi.sev_firmware import FW_BLOB_MAX, HEADER_SIZE, SESSION_SIZE, KvmSevCommand
from guestemu.host.firmware.kvm import memory_encrypt_op
from guestemu.host.firmware.kvm_memory import UserFault, UserMemory
from guestemu.host.firmware.kvm_params import (
    KvmStruct,
    SendStartParams,
    SevCmd,
    StartParams,
    UpdateParams,
)
from guestemu.host.firmware.kvm_vm import KvmSevVm
from guestemu.host.qemu.interfaces import SendStart, SevPacket, TransportError

COMMAND: Final = 0x0000
PARAMETERS: Final = 0x1000
BLOBS: Final = (0x2000, 0x6000, 0xA000)
"""Places for blobs of up to 16 KiB each."""
BUFFER_PAGES: Final = 14
"""Pages that a process maps at `buffers` for the calls."""

_Struct = TypeVar("_Struct", bound=KvmStruct)


class PeerCertificates(msgspec.Struct, frozen=True):
    """What the source gets of the destination: its PDH; PEK, OCA and CEK; ASK and ARK."""

    pdh: bytes
    platform: bytes
    amd: bytes


class KvmTransport:
    """`SevSource`, `SevDestination` and `GuestPages` of a process `user` with the VM `vm`.

    `buffers` is the host virtual address of `BUFFER_PAGES` mapped pages; `own_pdh` the platform's
    PDH certificate, which goes to the destination; `peer` is needed by a source.
    """

    def __init__(
        self,
        vm: KvmSevVm,
        user: UserMemory,
        *,
        buffers: int,
        ram_hva: int,
        own_pdh: bytes,
        peer: PeerCertificates | None = None,
    ) -> None:
        self._vm = vm
        self._user = user
        self._buffers = buffers
        self._ram_hva = ram_hva
        self._own_pdh = own_pdh
        self._peer = peer

    def call(self, command: KvmSevCommand, params: _Struct | None = None) -> _Struct | None:
        """KVM_MEMORY_ENCRYPT_OP; `params` as KVM left them, or `TransportError`."""
        at, place = self._buffers + COMMAND, self._buffers + PARAMETERS
        user = self._user
        if params is not None:
            user.write(place, params.pack())
        fd = self._vm.host.config.sev_fd
        user.write(at, SevCmd(command, 0, place, 0, fd).pack())
        result = memory_encrypt_op(self._vm, at)
        if result:
            error = SevCmd.unpack(user.read(at, SevCmd.layout.size)).error
            raise TransportError(command.name, result, error)
        if params is None:
            return None
        return type(params).unpack(user.read(place, params.layout.size))

    def _blob(self, index: int, data: bytes, operation: KvmSevCommand) -> int:
        """Puts `data` into a buffer. One that is too large fails as QEMU's own test does, with
        -EINVAL and without the firmware."""
        if not 0 < len(data) <= FW_BLOB_MAX:
            raise TransportError(operation.name, -EINVAL)
        address = self._buffers + BLOBS[index]
        self._user.write(address, data)
        return address

    def send_start(self) -> SendStart:
        """See `SevSource`. `InputError` without the peer's certificates."""
        command = KvmSevCommand.SEND_START
        if self._peer is None:
            raise InputError("SEND_START: no certificates of the destination; give `peer`")
        peer = self._peer
        session = self._buffers + PARAMETERS + PAGE_SIZE // 2
        params = SendStartParams(
            pdh_cert_uaddr=self._blob(0, peer.pdh, command),
            pdh_cert_len=len(peer.pdh),
            plat_certs_uaddr=self._blob(1, peer.platform, command),
            plat_certs_len=len(peer.platform),
            amd_certs_uaddr=self._blob(2, peer.amd, command),
            amd_certs_len=len(peer.amd),
            session_uaddr=session,
            session_len=SESSION_SIZE,
        )
        done = self.call(command, params)
        policy = done.policy if done is not None else 0
        return SendStart(policy, self._own_pdh, self._user.read(session, SESSION_SIZE))

    def send_update_data(self, address: RamAddr) -> SevPacket:
        """See `SevSource`."""
        header, data = self._buffers + BLOBS[0], self._buffers + BLOBS[1]
        page = self._ram_hva + address
        params = UpdateParams(header, HEADER_SIZE, 0, page, PAGE_SIZE, 0, data, PAGE_SIZE)
        self.call(KvmSevCommand.SEND_UPDATE_DATA, params)
        return SevPacket(self._user.read(header, HEADER_SIZE), self._user.read(data, PAGE_SIZE))

    def send_finish(self) -> None:
        """See `SevSource`."""
        self.call(KvmSevCommand.SEND_FINISH)

    def send_cancel(self) -> None:
        """See `SevSource`."""
        self.call(KvmSevCommand.SEND_CANCEL)

    def receive_start(self, start: SendStart) -> None:
        """See `SevDestination`."""
        command = KvmSevCommand.RECEIVE_START
        params = StartParams(
            policy=start.policy,
            dh_uaddr=self._blob(0, start.pdh, command),
            dh_len=len(start.pdh),
            session_uaddr=self._blob(1, start.session, command),
            session_len=len(start.session),
        )
        self.call(command, params)

    def receive_update_data(self, packet: SevPacket, address: RamAddr) -> None:
        """See `SevDestination`."""
        command = KvmSevCommand.RECEIVE_UPDATE_DATA
        size = len(packet.data)
        params = UpdateParams(
            self._blob(0, packet.header, command),
            len(packet.header),
            0,
            self._ram_hva + address,
            size,
            0,
            self._blob(1, packet.data, command),
            size,
        )
        self.call(command, params)

    def receive_finish(self) -> None:
        """See `SevDestination`."""
        self.call(KvmSevCommand.RECEIVE_FINISH)

    def read(self, address: RamAddr) -> bytes:
        """See `GuestPages`. `TransportError` if QEMU has no such page."""
        try:
            return self._user.read(self._ram_hva + address, PAGE_SIZE)
        except UserFault:
            raise TransportError("read of guest memory", -EFAULT) from None

    def write(self, address: RamAddr, data: bytes) -> None:
        """See `GuestPages`. `TransportError` if QEMU has no such page."""
        try:
            self._user.write(self._ram_hva + address, data)
        except UserFault:
            raise TransportError("write of guest memory", -EFAULT) from None
