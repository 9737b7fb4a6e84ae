# SPDX-License-Identifier: GPL-2.0-or-later
"""Sources and destinations for the QEMU tests: with real firmware, and with tokens."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable, Sequence

from bitarray import bitarray

from guestemu.abi.addresses import Gfn, RamAddr
from guestemu.abi.errors import InputError
from guestemu.abi.sev_firmware import KvmSevCommand as Id
from guestemu.host.firmware.identity import (
    Authority,
    Identity,
    generate_authority,
    generate_identity,
    generate_owner,
)
from guestemu.host.firmware.kvm_memory import FrameAllocator, KernelHeap, UserMemory
from guestemu.host.firmware.kvm_params import BlobParams, StartParams
from guestemu.host.firmware.kvm_vm import KvmConfig, KvmSevHost, KvmSevVm
from guestemu.host.firmware.memory import HostMemory
from guestemu.host.firmware.platform import API_VERSION, Platform
from guestemu.host.qemu.incoming import Incoming
from guestemu.host.qemu.interfaces import ChannelError, Region, SendStart, SevPacket, TransportError
from guestemu.host.qemu.kvm_transport import BUFFER_PAGES, KvmTransport, PeerCertificates
from guestemu.host.qemu.memory_map import MemoryMap

PAGE = 4096
BUFFERS = 0x10000
RAM_HVA = 0x100_0000
RAM_AT = 0x800_0000


def seeded(name: str) -> Callable[[int], bytes]:
    return random.Random(hashlib.sha256(name.encode()).digest()).randbytes


@functools.cache
def authority() -> Authority:
    return generate_authority()


@functools.cache
def identity(name: str) -> Identity:
    owner = generate_owner(seeded("owner"), API_VERSION)
    return generate_identity(authority(), owner, seeded(name), API_VERSION)


class SevMachine:
    """A host with firmware and a VM whose ram_addr_t space is `pages` pages."""

    def __init__(self, name: str, pages: int, peer: str = "") -> None:
        memory = HostMemory(1 << 30)
        self.platform = Platform(memory, identity(name), seeded(f"{name} keys"))
        frames = FrameAllocator(0x10000, 0x30000)
        self.user = UserMemory(memory, frames)
        self.user.map(BUFFERS, 0x100_0000, BUFFER_PAGES)
        self.user.map(RAM_HVA, RAM_AT, pages)
        heap = KernelHeap(memory, frames)
        self.vm = KvmSevVm(KvmSevHost(self.platform, self.user, heap, KvmConfig()))
        other = identity(peer) if peer else None
        certificates = other and PeerCertificates(
            other.pdh.pack(), other.platform_chain(), other.authority.chain()
        )
        self.transport = KvmTransport(
            self.vm,
            self.user,
            buffers=BUFFERS,
            ram_hva=RAM_HVA,
            own_pdh=self.platform.identity.pdh.pack(),
            peer=certificates,
        )
        self.transport.call(Id.INIT)

    def launch(self) -> None:
        call = self.transport.call
        call(Id.LAUNCH_START, StartParams())
        call(Id.LAUNCH_MEASURE, BlobParams(RAM_HVA, 48))
        call(Id.LAUNCH_FINISH)
        self.user.write(RAM_HVA, bytes(48))

    def write_private(self, page: int, data: bytes) -> None:
        self.platform.keys.write(self.vm.asid, RAM_AT + page * PAGE, data)

    def read_private(self, page: int) -> bytes:
        return self.platform.keys.read(self.vm.asid, RAM_AT + page * PAGE, PAGE)

    def write_shared(self, page: int, data: bytes) -> None:
        self.user.write(RAM_HVA + page * PAGE, data)

    def read_shared(self, page: int) -> bytes:
        return self.user.read(RAM_HVA + page * PAGE, PAGE)

    def firmware_state(self) -> str:
        return self.platform.guests[self.vm.handle].state.name


def page_of(tag: int) -> bytes:
    return random.Random(tag).randbytes(PAGE)


class Record:
    """The host's status record by gfn: both sources and the sink in one."""

    def __init__(self, gfns: int) -> None:
        self.private = bitarray([True], endian="little") * gfns
        self.resets = 0
        self.list: list[Region] | None = None

    def get_page_enc_bitmap(self, start: Gfn, pages: int) -> bytes:
        bits = bitarray(self.private[start : start + pages], endian="little")
        bits.extend([True] * ((pages + 63) // 64 * 64 - len(bits)))
        return bits.tobytes()

    def set_page_enc_bitmap(self, start: Gfn, pages: int, bitmap: bytes | None) -> None:
        if bitmap is None:
            self.private.setall(True)
            self.resets += 1
            return
        if pages > len(bitmap) * 8:
            raise InputError("bitmap too small")
        bits = bitarray(endian="little")
        bits.frombytes(bitmap)
        self.private[start : start + pages] = bits[:pages]

    def set_shared_regions(self, regions: Sequence[Region]) -> None:
        self.list = list(regions)
        self.private.setall(True)
        for start, end in regions:
            self.private[start : min(end, len(self.private))] = False

    @property
    def regions(self) -> list[Region]:
        if self.list is not None:
            return self.list
        return [(gfn, gfn + 1) for gfn in self.private.search(0)]


class Token:
    """`SevSource`, `SevDestination` and `GuestPages` with pages as small tokens: ("E", n) is
    content n under the machine's key, n plain. A page on the wire is its repr, padded."""

    def __init__(self, name: str, pages: int) -> None:
        self.name = name
        self.pages: list[object] = [(name, 0)] * pages
        self.commands: list[str] = []
        self.fails: dict[str, int] = {}

    def _note(self, command: str) -> None:
        self.commands.append(command)
        if command in self.fails:
            self.fails[command] -= 1
            if self.fails[command] < 0:
                raise TransportError(command, -5, 0x1)

    def content(self, page: int, *, private: bool) -> object:
        """What the guest reads: a value, or garbage."""
        cell = self.pages[page]
        if private:
            return cell[1] if isinstance(cell, tuple) and cell[0] == self.name else ("?", cell)
        return ("?", cell) if isinstance(cell, tuple) else cell

    def put(self, page: int, value: int, *, private: bool) -> None:
        self.pages[page] = (self.name, value) if private else value

    def read(self, address: RamAddr) -> bytes:
        return repr(self.pages[address // PAGE]).encode().ljust(PAGE)

    def write(self, address: RamAddr, data: bytes) -> None:
        self.pages[address // PAGE] = eval(data.decode()) if any(data) else 0

    def send_start(self) -> SendStart:
        self._note("SEND_START")
        return SendStart(0, b"pdh", b"session")

    def send_update_data(self, address: RamAddr) -> SevPacket:
        self._note("SEND_UPDATE_DATA")
        value = self.content(address // PAGE, private=True)
        return SevPacket(b"h", repr(value).encode())

    def send_finish(self) -> None:
        self._note("SEND_FINISH")

    def send_cancel(self) -> None:
        self._note("SEND_CANCEL")

    def receive_start(self, start: SendStart) -> None:
        self._note("RECEIVE_START")

    def receive_update_data(self, packet: SevPacket, address: RamAddr) -> None:
        self._note("RECEIVE_UPDATE_DATA")
        self.pages[address // PAGE] = (self.name, eval(packet.data.decode()))

    def receive_finish(self) -> None:
        self._note("RECEIVE_FINISH")


class Wire:
    """A channel straight into a destination; breaks after `limit` writes."""

    def __init__(self, incoming: Incoming | None = None, limit: int = 1 << 60) -> None:
        self.incoming = incoming
        self.limit = limit
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        if not self.limit:
            raise ChannelError("connection lost")
        self.limit -= 1
        self.data += data
        if self.incoming is not None:
            self.incoming.load(data)


def small_machine(pages: int) -> MemoryMap:
    machine = MemoryMap()
    machine.add_block("pc.ram", pages * PAGE)
    machine.map("pc.ram", 0)
    return machine
