# SPDX-License-Identifier: GPL-2.0-or-later
"""The structures that user space hands to KVM_MEMORY_ENCRYPT_OP, with their layouts (E26).

Source: arch/x86/include/uapi/asm/kvm.h (Linux 7.1). `*_uaddr` are host virtual addresses, `*_len`
bytes. The padding words are kept as they are.
"""

from __future__ import annotations

import struct
from typing import ClassVar, Self

import msgspec


class KvmStruct(msgspec.Struct):
    """A structure of user space: fields in the order of `layout`."""

    layout: ClassVar[struct.Struct]

    def pack(self) -> bytes:
        """Its bytes in memory."""
        return self.layout.pack(*msgspec.structs.astuple(self))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From `layout.size` bytes."""
        return cls(*cls.layout.unpack(data))


class SevCmd(KvmStruct):
    """struct kvm_sev_cmd; `error` gets the firmware's status."""

    layout = struct.Struct("<IIQII")
    id: int = 0
    pad0: int = 0
    data: int = 0
    error: int = 0
    sev_fd: int = 0


class StartParams(KvmStruct):
    """struct kvm_sev_launch_start and kvm_sev_receive_start; `dh_*` is the peer's certificate."""

    layout = struct.Struct("<IIQIIQII")
    handle: int = 0
    policy: int = 0
    dh_uaddr: int = 0
    dh_len: int = 0
    pad0: int = 0
    session_uaddr: int = 0
    session_len: int = 0
    pad1: int = 0


class BlobParams(KvmStruct):
    """struct kvm_sev_launch_update_data and kvm_sev_launch_measure."""

    layout = struct.Struct("<QII")
    uaddr: int = 0
    len: int = 0
    pad0: int = 0


class SendStartParams(KvmStruct):
    """struct kvm_sev_send_start."""

    layout = struct.Struct("<IIQIIQIIQIIQII")
    policy: int = 0
    pad0: int = 0
    pdh_cert_uaddr: int = 0
    pdh_cert_len: int = 0
    pad1: int = 0
    plat_certs_uaddr: int = 0
    plat_certs_len: int = 0
    pad2: int = 0
    amd_certs_uaddr: int = 0
    amd_certs_len: int = 0
    pad3: int = 0
    session_uaddr: int = 0
    session_len: int = 0
    pad4: int = 0


class UpdateParams(KvmStruct):
    """struct kvm_sev_send_update_data and kvm_sev_receive_update_data."""

    layout = struct.Struct("<QIIQIIQII")
    hdr_uaddr: int = 0
    hdr_len: int = 0
    pad0: int = 0
    guest_uaddr: int = 0
    guest_len: int = 0
    pad1: int = 0
    trans_uaddr: int = 0
    trans_len: int = 0
    pad2: int = 0


class GuestStatusParams(KvmStruct):
    """struct kvm_sev_guest_status."""

    layout = struct.Struct("<III")
    handle: int = 0
    policy: int = 0
    state: int = 0


class DebugParams(KvmStruct):
    """struct kvm_sev_dbg."""

    layout = struct.Struct("<QQII")
    src_uaddr: int = 0
    dst_uaddr: int = 0
    len: int = 0
    pad0: int = 0
