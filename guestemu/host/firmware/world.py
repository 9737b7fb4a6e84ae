# SPDX-License-Identifier: GPL-2.0-or-later
"""A host with three VMs on one security processor, for programs that drive KVM's SEV ioctls.

VM 0 runs, launched with policy 0; VM 1 has SEV and no guest in the firmware yet; VM 2 mirrors VM 0.
User space has prepared every structure: certificates of a peer, a session and one packet that the
peer sent, plaintext. A program chooses only what defects depend on: the command, the VM, offsets
and lengths. Guest memory of VM 0 is known plaintext; VM 1 receives into untouched pages.
"""

from __future__ import annotations

import functools
import hashlib
import random
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, U32_MASK
from guestemu.abi.errno import EIO, ENOMEM
from guestemu.abi.sev_firmware import KvmSevCommand
from guestemu.host.firmware.identity import (
    Authority,
    Identity,
    generate_authority,
    generate_identity,
    generate_owner,
)
from guestemu.host.firmware.kvm import (
    memory_encrypt_op,
    mirror_of,
    register_region,
    unregister_region,
)
from guestemu.host.firmware.kvm_memory import FrameAllocator, KernelHeap, UserMemory
from guestemu.host.firmware.kvm_params import (
    BlobParams,
    DebugParams,
    GuestStatusParams,
    KvmStruct,
    SendStartParams,
    SevCmd,
    StartParams,
    UpdateParams,
)
from guestemu.host.firmware.kvm_vm import KvmConfig, KvmSevHost, KvmSevVm, SevDefect
from guestemu.host.firmware.memory import HostMemory
from guestemu.host.firmware.platform import API_VERSION, Platform
from guestemu.program.ops import OpKind

SEV_FD: Final = 3
CMD: Final = 0x10000
DATA: Final = 0x11000
PDH: Final = 0x20000
CHAIN: Final = 0x22000
AMD: Final = 0x26000
SESSION: Final = 0x2A000
OFFER_SESSION: Final = 0x2B000
OFFER_PDH: Final = 0x2C000
HEADER: Final = 0x30000
OFFER_HEADER: Final = 0x31000
PACKET: Final = 0x40000
OFFER_PACKET: Final = 0x50000
PLAIN: Final = 0x60000
OUTPUT: Final = 0x70000
GUESTS: Final = (0x100000, 0x200000, 0x100000)
"""Host virtual addresses of the VMs' memory; that of VM 1 is anonymous and untouched."""
GUEST_PAGES: Final = 8
OUTPUT_LIMIT: Final = 0x8000
"""`size2`, the length of a transport buffer, and lengths of DBG are taken modulo this."""
REGION_OFFSETS: Final = 0xFFFF
"""The bits of a region's offset that count."""

_BUFFERS: Final = (CMD, 0x100_0000, 0x80)
_GUEST_AT: Final = 0x800_0000
_MEMORY: Final = 1 << 30
_CERTIFICATE: Final = 2084
_HEADER_LENGTH: Final = 52
_SESSION_LENGTH: Final = 128
_LAST_SHIFT: Final = 24
"""Above bit 31 of the host's state: see `Feedback`."""

_ID = KvmSevCommand


class FirmwareOffer(msgspec.Struct, frozen=True):
    """What a peer sent: its certificate, a session and a packet of one page."""

    pdh: bytes
    session: bytes
    header: bytes
    packet: bytes


@functools.cache
def known_bytes(size: int, seed: int) -> bytes:
    """`size` bytes that are always the same and look random."""
    return random.Random(seed).randbytes(size)


@functools.cache
def _identity(name: str) -> Identity:
    source = random.Random(hashlib.sha256(name.encode()).digest()).randbytes
    owner = generate_owner(source, API_VERSION)
    return generate_identity(_authority(), owner, source, API_VERSION)


@functools.cache
def _authority() -> Authority:
    return generate_authority()


def plain_arguments(kind: OpKind, arguments: tuple[int, ...]) -> tuple[int, ...]:
    """Those that `SevWorld` does the same for (see `Host.plain`)."""
    if kind is OpKind.SEV_REGION:
        vm, offset, *rest = arguments
        return vm % len(GUESTS), offset & REGION_OFFSETS, *rest
    vm, command, size, offset, size2 = arguments
    other = size2 % OUTPUT_LIMIT
    match command:
        case _ID.LAUNCH_UPDATE_DATA:
            other = 0
        case _ID.LAUNCH_MEASURE:
            size = offset = 0
        case _ID.SEND_START:
            size, offset, other = 0, 0, int(bool(other))
        case _ID.SEND_UPDATE_DATA | _ID.RECEIVE_UPDATE_DATA:
            pass
        case _ID.DBG_DECRYPT | _ID.DBG_ENCRYPT:
            size, other = size % OUTPUT_LIMIT, 0
        case _:
            size = offset = other = 0
    return vm % len(GUESTS), command, size, offset, other


class SevWorld:
    """See the module's docstring. `name` distinguishes platforms, `defects` are KVM's historic
    ones.

    `plain` is what VM 0's memory holds as its guest would read it. `warnings` are WARNs of the
    kernel that user space triggered.
    """

    def __init__(
        self, name: str = "host", peer: str = "peer", defects: frozenset[SevDefect] = frozenset()
    ) -> None:
        memory = HostMemory(_MEMORY)
        source = random.Random(name).randbytes
        self.platform = Platform(memory, _identity(name), source)
        frames = FrameAllocator(0x10000, 0x30000)
        self.user = UserMemory(memory, frames)
        self.user.map(*_BUFFERS)
        self.user.map(GUESTS[0], _GUEST_AT, GUEST_PAGES)
        self.user.map_anonymous(GUESTS[1], GUEST_PAGES)
        heap = KernelHeap(memory, frames)
        self.kvm = KvmSevHost(self.platform, self.user, heap, KvmConfig(defects=defects))
        self.warnings: list[str] = []
        self.is_touched = False
        self._last = 0
        self.plain = bytearray(known_bytes(GUEST_PAGES * PAGE_SIZE, 1))
        running = KvmSevVm(self.kvm)
        empty = KvmSevVm(self.kvm)
        self._launch(running)
        self.call(empty, _ID.INIT)
        self.vms = (running, empty, mirror_of(running))
        self._prepare(_identity(peer))

    # Set-up -----------------------------------------------------------------------------------

    def _launch(self, vm: KvmSevVm) -> None:
        self.user.write(GUESTS[0], bytes(self.plain))
        for command, params in (
            (_ID.INIT, None),
            (_ID.LAUNCH_START, StartParams()),
            (_ID.LAUNCH_UPDATE_DATA, BlobParams(GUESTS[0], len(self.plain))),
            (_ID.LAUNCH_MEASURE, BlobParams(OUTPUT, 48)),
            (_ID.LAUNCH_FINISH, None),
        ):
            result = self.call(vm, command, params)
            if result:
                raise RuntimeError(f"the firmware's guest cannot be launched: {command!r} {result}")

    def _prepare(self, peer: Identity) -> None:
        write = self.user.write
        write(PDH, peer.pdh.pack())
        write(CHAIN, peer.platform_chain())
        write(AMD, peer.authority.chain())
        write(PLAIN, known_bytes(GUEST_PAGES * PAGE_SIZE, 2))

    def take_offer(self, offer: FirmwareOffer) -> None:
        """Puts what a peer sent into user space's buffers."""
        write = self.user.write
        write(OFFER_PDH, offer.pdh)
        write(OFFER_SESSION, offer.session)
        write(OFFER_HEADER, offer.header)
        write(OFFER_PACKET, offer.packet)

    # Ioctls -----------------------------------------------------------------------------------

    def call(self, vm: KvmSevVm, command: int, params: KvmStruct | None = None) -> int:
        """KVM_MEMORY_ENCRYPT_OP with `params` in DATA; the firmware's status instead of -EIO."""
        if params is not None:
            self.user.write(DATA, params.pack())
        self.user.write(CMD, SevCmd(command & U32_MASK, 0, DATA, 0, SEV_FD).pack())
        result = self.memory_encrypt_op(vm)
        if result != -EIO:
            return result
        return SevCmd.unpack(self.user.read(CMD, SevCmd.layout.size)).error

    def memory_encrypt_op(self, vm: KvmSevVm) -> int:
        """The ioctl with the structure at CMD; what a planted bug overrides."""
        return memory_encrypt_op(vm, CMD)

    def ioctl(self, vm: int, command: int, size: int, offset: int, size2: int) -> int:
        """One command on VM `vm` (modulo 3) with the lengths that a program chose."""
        self.is_touched = True
        number = vm % len(self.vms)
        params = self._params(number, command, size, offset, size2)
        before = self._states
        result = self.call(self.vms[number], command, params)
        self._last = (before << 2 | number) << 11 | (command & 0x1F) << 6 | result & 0x3F
        if command == _ID.DBG_ENCRYPT and result in (0, -ENOMEM) and number != 1:
            # Where memory ends inside the range, the pages before were encrypted.
            length = min(size % OUTPUT_LIMIT, len(self.plain) - offset)
            self.plain[offset : offset + length] = self.user.read(PLAIN, length)
        return result

    def _params(
        self, number: int, command: int, size: int, offset: int, size2: int
    ) -> KvmStruct | None:
        guest = GUESTS[number] + offset
        length = size & U32_MASK
        other = size2 % OUTPUT_LIMIT
        match command:
            case _ID.LAUNCH_START:
                return StartParams()
            case _ID.LAUNCH_UPDATE_DATA:
                return BlobParams(guest, length)
            case _ID.LAUNCH_MEASURE:
                return BlobParams(OUTPUT, other)
            case _ID.SEND_START:
                return self._send_start(bool(other))
            case _ID.SEND_UPDATE_DATA:
                header = _HEADER_LENGTH if other else 0
                return UpdateParams(HEADER, header, 0, guest, length, 0, PACKET, other)
            case _ID.RECEIVE_START:
                return StartParams(
                    dh_uaddr=OFFER_PDH,
                    dh_len=_CERTIFICATE,
                    session_uaddr=OFFER_SESSION,
                    session_len=_SESSION_LENGTH,
                )
            case _ID.RECEIVE_UPDATE_DATA:
                packet = (OFFER_PACKET, other)
                return UpdateParams(OFFER_HEADER, _HEADER_LENGTH, 0, guest, length, 0, *packet)
            case _ID.DBG_DECRYPT:
                return DebugParams(guest, OUTPUT, size % OUTPUT_LIMIT)
            case _ID.DBG_ENCRYPT:
                return DebugParams(PLAIN, guest, size % OUTPUT_LIMIT)
            case _:
                return None

    def _send_start(self, has_session: bool) -> SendStartParams:
        return SendStartParams(
            pdh_cert_uaddr=PDH,
            pdh_cert_len=_CERTIFICATE,
            plat_certs_uaddr=CHAIN,
            plat_certs_len=3 * _CERTIFICATE,
            amd_certs_uaddr=AMD,
            amd_certs_len=len(_authority().chain()),
            session_uaddr=SESSION,
            session_len=_SESSION_LENGTH if has_session else 0,
        )

    def region(self, vm: int, offset: int, size: int, unregister: bool) -> int:
        """Registers or unregisters `size` bytes at `offset` of the VM's memory (E28)."""
        self.is_touched = True
        number = vm % len(self.vms)
        at = GUESTS[number] + (offset & REGION_OFFSETS)
        if unregister:
            return unregister_region(self.vms[number], at, size)
        return self.register_region(self.vms[number], at, size)

    def register_region(self, vm: KvmSevVm, address: int, size: int) -> int:
        """KVM_MEMORY_ENCRYPT_REG_REGION; what a planted bug overrides."""
        return register_region(vm, address, size)

    # What a check may look at -----------------------------------------------------------------

    def guest_state(self, vm: int) -> int:
        """The state of the VM's guest in the firmware, 0 for none (E.1)."""
        guest = self.platform.guests.get(self.vms[vm].handle)
        return 0 if guest is None else int(guest.state)

    def reported_state(self) -> int:
        """What the last GUEST_STATUS copied out."""
        data = self.user.read(DATA, GuestStatusParams.layout.size)
        return GuestStatusParams.unpack(data).state

    @property
    def state(self) -> int:
        """The states of both guests, and behind bit `_LAST_SHIFT` the cell of the last ioctl in
        the state table: states before it, VM, command, answer. For coverage feedback."""
        return self._last << _LAST_SHIFT | self._states

    @property
    def _states(self) -> int:
        return self.guest_state(0) * 7 + self.guest_state(1)


@functools.cache
def make_offer(source: str = "peer", receiver: str = "host") -> FirmwareOffer:
    """The session and the packet that a host called `source` sends to the one called `receiver`."""
    world = SevWorld(source, receiver)
    for command in (_ID.SEND_START, _ID.SEND_UPDATE_DATA):
        result = world.ioctl(0, command, PAGE_SIZE, 0, PAGE_SIZE)
        if result:
            raise RuntimeError(f"the peer cannot send: {command!r} {result}")
    read = world.user.read
    return FirmwareOffer(
        world.platform.identity.pdh.pack(),
        read(SESSION, _SESSION_LENGTH),
        read(HEADER, _HEADER_LENGTH),
        read(PACKET, PAGE_SIZE),
    )
