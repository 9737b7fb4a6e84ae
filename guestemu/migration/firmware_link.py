# SPDX-License-Identifier: GPL-2.0-or-later
"""The link through the SEV firmware: private pages as SEND_UPDATE_DATA packets (E6, E7, E13, E23).

Before the first page the two hosts exchange what the firmware asks for: the destination's
certificates go to the source (`Offer`), the session blob and the source's own go back (`Opening`).
A plain send copies DRAM bytes, as a VMM does with memory that it can read.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, Gfn
from guestemu.abi.sev_firmware import HEADER_SIZE, SESSION_SIZE, KvmSevCommand, Policy
from guestemu.host.firmware.certificates import CERTIFICATE_SIZE
from guestemu.host.firmware.kvm_params import (
    BlobParams,
    SendStartParams,
    StartParams,
    UpdateParams,
)
from guestemu.machine.memory import GuestRam
from guestemu.migration.links import Link, Packet
from guestemu.migration.sev_host import (
    AMD_CHAIN,
    CHAIN,
    HEADER,
    PDH,
    SESSION,
    TRANSPORT,
    SevHost,
)

_MEASUREMENT: Final = 48


class Offer(msgspec.Struct, frozen=True, tag="offer"):
    """The receiving platform's certificates: PDH; PEK, OCA and CEK; ASK and ARK."""

    pdh: bytes
    platform: bytes
    amd: bytes


class Opening(msgspec.Struct, frozen=True, tag="opening"):
    """What RECEIVE_START needs: the guest's policy, the session blob, the sender's PDH."""

    policy: int
    session: bytes
    pdh: bytes


class FirmwareSender:
    """The source: `ram` is that of a running guest whose memory key is `key`.

    `policy` is the guest's (E17): with `Policy.SEV` the firmware checks the receiver's certificates
    up to the vendor's root, which both platforms must share.
    """

    def __init__(self, ram: GuestRam, key: bytes, policy: int = Policy.SEV) -> None:
        self._host = SevHost("source", ram, 0)
        host, platform = self._host, self._host.platform
        host.ioctl(_init(policy))
        draw = platform.random
        platform.random = lambda _size: key  # the key that the running guest has
        host.ioctl(KvmSevCommand.LAUNCH_START, StartParams(policy=policy))
        platform.random = draw
        host.attach()
        host.ioctl(KvmSevCommand.LAUNCH_MEASURE, BlobParams(TRANSPORT, _MEASUREMENT))
        host.ioctl(KvmSevCommand.LAUNCH_FINISH)
        self._policy = policy

    @property
    def host(self) -> SevHost:
        """The host of this end."""
        return self._host

    def open(self, offer: Offer) -> Opening:
        """SEND_START towards the platform of `offer`. Raises `SevIoctlError`."""
        host = self._host
        for at, blob in ((PDH, offer.pdh), (CHAIN, offer.platform), (AMD_CHAIN, offer.amd)):
            host.user.write(at, blob)
        params = SendStartParams(
            pdh_cert_uaddr=PDH,
            pdh_cert_len=len(offer.pdh),
            plat_certs_uaddr=CHAIN,
            plat_certs_len=len(offer.platform),
            amd_certs_uaddr=AMD_CHAIN,
            amd_certs_len=len(offer.amd),
            session_uaddr=SESSION,
            session_len=SESSION_SIZE,
        )
        host.ioctl(KvmSevCommand.SEND_START, params)
        session = host.user.read(SESSION, SESSION_SIZE)
        return Opening(self._policy, session, host.platform.identity.pdh.pack())

    def send(self, gfn: Gfn, as_private: bool) -> Packet:
        """See `Sender`."""
        user = self._host.user
        at = self._host.page(gfn)
        if not as_private:
            return Packet(gfn, False, user.read(at, PAGE_SIZE))
        params = UpdateParams(HEADER, HEADER_SIZE, 0, at, PAGE_SIZE, 0, TRANSPORT, PAGE_SIZE)
        self._host.ioctl(KvmSevCommand.SEND_UPDATE_DATA, params)
        return Packet(gfn, True, user.read(TRANSPORT, PAGE_SIZE), user.read(HEADER, HEADER_SIZE))

    def finish(self) -> None:
        """SEND_FINISH."""
        self._host.ioctl(KvmSevCommand.SEND_FINISH)


class FirmwareReceiver:
    """The destination, whose `ram` lies at the system-physical address `base`; of the guest's
    `policy` only `Policy.ES` matters before it comes."""

    def __init__(self, ram: GuestRam, base: int, policy: int = 0) -> None:
        self._host = SevHost("destination", ram, base)
        self._host.ioctl(_init(policy))

    @property
    def host(self) -> SevHost:
        """The host of this end."""
        return self._host

    def offer(self) -> Offer:
        """The certificates of this platform."""
        identity = self._host.platform.identity
        return Offer(identity.pdh.pack(), identity.platform_chain(), identity.authority.chain())

    def open(self, opening: Opening) -> bytes:
        """RECEIVE_START: the guest's new memory key, under which `ram` is from now on. Raises
        `SevIoctlError`."""
        host = self._host
        host.user.write(PDH, opening.pdh)
        host.user.write(SESSION, opening.session)
        params = StartParams(
            policy=opening.policy,
            dh_uaddr=PDH,
            dh_len=CERTIFICATE_SIZE,
            session_uaddr=SESSION,
            session_len=len(opening.session),
        )
        host.ioctl(KvmSevCommand.RECEIVE_START, params)
        return host.attach()

    def deliver(self, packet: Packet) -> None:
        """See `Receiver`. Raises `SevIoctlError` for a packet that was changed on its way."""
        user = self._host.user
        at = self._host.page(Gfn(packet.gfn))
        if not packet.is_private:
            user.write(at, packet.data)
            return
        user.write(HEADER, packet.header)
        user.write(TRANSPORT, packet.data)
        size = len(packet.data)
        params = UpdateParams(HEADER, len(packet.header), 0, at, size, 0, TRANSPORT, size)
        self._host.ioctl(KvmSevCommand.RECEIVE_UPDATE_DATA, params)

    def finish(self) -> None:
        """RECEIVE_FINISH."""
        self._host.ioctl(KvmSevCommand.RECEIVE_FINISH)


def _init(policy: int) -> KvmSevCommand:
    """The ioctl that makes a VM one for guests of `policy`."""
    return KvmSevCommand.ES_INIT if policy & Policy.ES else KvmSevCommand.INIT


def firmware_link(
    source: GuestRam, key: bytes, destination: GuestRam, base: int, policy: int = Policy.SEV
) -> Link:
    """A link with an open session: the source's guest has `key`, the destination's RAM lies at
    `base` and has the key that its firmware drew."""
    sender = FirmwareSender(source, key, policy)
    receiver = FirmwareReceiver(destination, base, policy)
    receiver.open(sender.open(receiver.offer()))
    return Link(sender, receiver)
