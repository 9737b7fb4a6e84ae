# SPDX-License-Identifier: GPL-2.0-or-later
"""A host with user space and VMs, driven through ioctls alone."""

from __future__ import annotations

from firmware_world import content, identity, source_of

from guestemu.abi.sev_firmware import KvmSevCommand as Id
from guestemu.host.firmware.identity import Identity
from guestemu.host.firmware.kvm import memory_encrypt_op
from guestemu.host.firmware.kvm_memory import FrameAllocator, KernelHeap, UserMemory
from guestemu.host.firmware.kvm_params import (
    BlobParams,
    KvmStruct,
    SendStartParams,
    SevCmd,
    StartParams,
    UpdateParams,
)
from guestemu.host.firmware.kvm_vm import KvmConfig, KvmSevHost, KvmSevVm, SevDefect
from guestemu.host.firmware.memory import HostMemory
from guestemu.host.firmware.platform import Platform

SEV_FD = 3
CMD, DATA = 0x10000, 0x11000
PDH, CHAIN, AMD, SESSION = 0x20000, 0x22000, 0x26000, 0x2A000
HEADER, PACKET = 0x30000, 0x40000
GUEST, LAZY, READ_ONLY, HOLE = 0x100000, 0x200000, 0x300000, 0x900000
GUEST_PAGES = 8
GUEST_AT = 0x800_0000


class Host:
    """Buffers from CMD to 0x80000 and guest memory at GUEST are mapped, LAZY is anonymous and
    untouched, READ_ONLY is not writable, nothing is at HOLE."""

    def __init__(self, name: str = "target", *defects: SevDefect, **settings: object) -> None:
        memory = HostMemory(1 << 30)
        self.platform = Platform(memory, identity(name), source_of(f"{name} kvm"))
        frames = FrameAllocator(0x10000, 0x30000)
        self.user = UserMemory(memory, frames)
        self.user.map(CMD, 0x100_0000, 0x70)
        self.user.map(GUEST, GUEST_AT, GUEST_PAGES)
        self.user.map(READ_ONLY, 0x900_0000, 1, writable=False)
        self.user.map_anonymous(LAZY, 4)
        config = KvmConfig(sev_fd=SEV_FD, defects=frozenset(defects), **settings)
        self.kvm = KvmSevHost(self.platform, self.user, KernelHeap(memory, frames), config)
        self.vm = KvmSevVm(self.kvm)
        self.error = 0

    def op(self, command: int, params: KvmStruct | None = None, vm: KvmSevVm | None = None) -> int:
        """One ioctl; the firmware's status lands in `error`, `params` in DATA."""
        if params is not None:
            self.user.write(DATA, params.pack())
        return self.raw(SevCmd(command, 0, DATA, 0, SEV_FD), vm)

    def raw(self, cmd: SevCmd, vm: KvmSevVm | None = None) -> int:
        self.user.write(CMD, cmd.pack())
        result = memory_encrypt_op(vm or self.vm, CMD)
        self.error = SevCmd.unpack(self.user.read(CMD, SevCmd.layout.size)).error
        return result

    def params(self, kind: type[KvmStruct]) -> KvmStruct:
        return kind.unpack(self.user.read(DATA, kind.layout.size))

    def launched(self, policy: int = 0) -> None:
        """self.vm runs; its private memory at GUEST has known content."""
        assert self.op(Id.INIT) == 0
        assert self.op(Id.LAUNCH_START, StartParams(policy=policy)) == 0
        self.user.write(GUEST, content(GUEST_PAGES * 4096))
        assert self.op(Id.LAUNCH_UPDATE_DATA, BlobParams(GUEST, GUEST_PAGES * 4096)) == 0
        assert self.op(Id.LAUNCH_MEASURE, BlobParams(PACKET, 48)) == 0
        assert self.op(Id.LAUNCH_FINISH) == 0

    def send_start_params(self, peer: Identity) -> SendStartParams:
        amd = peer.authority.chain()
        self.user.write(PDH, peer.pdh.pack())
        self.user.write(CHAIN, peer.platform_chain())
        self.user.write(AMD, amd)
        return SendStartParams(
            pdh_cert_uaddr=PDH,
            pdh_cert_len=2084,
            plat_certs_uaddr=CHAIN,
            plat_certs_len=3 * 2084,
            amd_certs_uaddr=AMD,
            amd_certs_len=len(amd),
            session_uaddr=SESSION,
            session_len=128,
        )

    def sending(self, policy: int = 0, peer: str = "other") -> None:
        self.launched(policy)
        assert self.op(Id.SEND_START, self.send_start_params(identity(peer))) == 0

    def receive_params(self, source: Host, policy: int = 0) -> StartParams:
        self.user.write(SESSION, source.user.read(SESSION, 128))
        self.user.write(PDH, source.platform.identity.pdh.pack())
        return StartParams(
            policy=policy, dh_uaddr=PDH, dh_len=2084, session_uaddr=SESSION, session_len=128
        )


def update(guest: int = GUEST, size: int = 4096, **changes: int) -> UpdateParams:
    params = UpdateParams(HEADER, 52, 0, guest, size, 0, PACKET, size)
    for name, value in changes.items():
        setattr(params, name, value)
    return params


def pair(*defects: SevDefect) -> tuple[Host, Host]:
    """A source that sends to a target that receives."""
    source, target = Host("source"), Host("target", *defects)
    source.sending(peer="target")
    assert target.op(Id.INIT) == 0
    assert target.op(Id.RECEIVE_START, target.receive_params(source)) == 0
    return source, target


def carry(source: Host, target: Host, page: int) -> None:
    """One packet from the source's guest memory to the target's buffers."""
    assert source.op(Id.SEND_UPDATE_DATA, update(GUEST + page * 4096)) == 0
    for at, size in ((HEADER, 52), (PACKET, 4096)):
        target.user.write(at, source.user.read(at, size))
