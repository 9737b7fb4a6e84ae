# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of the SEV firmware interface: commands, error codes, guest states, policy bits, sizes.

Source: include/uapi/linux/psp-sev.h and arch/x86/include/uapi/asm/kvm.h (Linux 7.1) for codes and
ids; AMD's published firmware (Genoa, 1.55.25) for states, sizes and policy. Facts E.1, E.2, E.5,
E13, E16, E17.
"""

from __future__ import annotations

import enum
from typing import Final


class GuestState(enum.IntEnum):
    """Where a guest stands in the firmware's state machine, as GUEST_STATUS reports it (E.1)."""

    __hash__ = int.__hash__  # enum's own is Python code, ten times as slow

    INVALID = 0
    LUPDATE = 1
    LSECRET = 2
    RUNNING = 3
    SUPDATE = 4
    RUPDATE = 5
    SENT = 6


class PlatformState(enum.IntEnum):
    """The platform: uninitialised, initialised without a guest, with at least one guest (E3)."""

    __hash__ = int.__hash__

    UNINIT = 0
    INIT = 1
    WORKING = 2


class Command(enum.IntEnum):
    """Firmware command ids (E.2; the platform's own from psp-sev.h)."""

    __hash__ = int.__hash__

    INIT = 0x01
    SHUTDOWN = 0x02
    PLATFORM_STATUS = 0x04
    DF_FLUSH = 0x0A
    DECOMMISSION = 0x20
    ACTIVATE = 0x21
    DEACTIVATE = 0x22
    GUEST_STATUS = 0x23
    COPY = 0x24
    LAUNCH_START = 0x30
    LAUNCH_UPDATE_DATA = 0x31
    LAUNCH_UPDATE_VMSA = 0x32
    LAUNCH_MEASURE = 0x33
    LAUNCH_FINISH = 0x35
    SEND_START = 0x40
    SEND_UPDATE_DATA = 0x41
    SEND_UPDATE_VMSA = 0x42
    SEND_FINISH = 0x43
    SEND_CANCEL = 0x44
    RECEIVE_START = 0x50
    RECEIVE_UPDATE_DATA = 0x51
    RECEIVE_UPDATE_VMSA = 0x52
    RECEIVE_FINISH = 0x53
    DBG_DECRYPT = 0x60
    DBG_ENCRYPT = 0x61


class KvmSevCommand(enum.IntEnum):
    """`kvm_sev_cmd.id` of KVM_MEMORY_ENCRYPT_OP, enum sev_cmd_id (E.2)."""

    __hash__ = int.__hash__

    INIT = 0
    ES_INIT = 1
    LAUNCH_START = 2
    LAUNCH_UPDATE_DATA = 3
    LAUNCH_UPDATE_VMSA = 4
    LAUNCH_SECRET = 5
    LAUNCH_MEASURE = 6
    LAUNCH_FINISH = 7
    SEND_START = 8
    SEND_UPDATE_DATA = 9
    SEND_UPDATE_VMSA = 10
    SEND_FINISH = 11
    RECEIVE_START = 12
    RECEIVE_UPDATE_DATA = 13
    RECEIVE_UPDATE_VMSA = 14
    RECEIVE_FINISH = 15
    GUEST_STATUS = 16
    DBG_DECRYPT = 17
    DBG_ENCRYPT = 18
    CERT_EXPORT = 19
    GET_ATTESTATION_REPORT = 20
    SEND_CANCEL = 21
    INIT2 = 22


KVM_SEV_SNP_FIRST: Final = 100
"""The first id of the SNP commands; a SNP VM may issue no lower one (E20)."""


class Status(enum.IntEnum):
    """What a firmware command returns (E.5)."""

    __hash__ = int.__hash__

    NO_FW_CALL = -1
    SUCCESS = 0x00
    INVALID_PLATFORM_STATE = 0x01
    INVALID_GUEST_STATE = 0x02
    INVALID_CONFIG = 0x03
    INVALID_LEN = 0x04
    ALREADY_OWNED = 0x05
    INVALID_CERTIFICATE = 0x06
    POLICY_FAILURE = 0x07
    INACTIVE = 0x08
    INVALID_ADDRESS = 0x09
    BAD_SIGNATURE = 0x0A
    BAD_MEASUREMENT = 0x0B
    ASID_OWNED = 0x0C
    INVALID_ASID = 0x0D
    WBINVD_REQUIRED = 0x0E
    DFFLUSH_REQUIRED = 0x0F
    INVALID_GUEST = 0x10
    INVALID_COMMAND = 0x11
    ACTIVE = 0x12
    HWSEV_RET_PLATFORM = 0x13
    HWSEV_RET_UNSAFE = 0x14
    UNSUPPORTED = 0x15
    INVALID_PARAM = 0x16
    RESOURCE_LIMIT = 0x17
    SECURE_DATA_INVALID = 0x18


class Policy(enum.IntFlag):
    """Bits of the guest policy (E17); the API version stands above them."""

    NODBG = 1 << 0
    NOKS = 1 << 1
    ES = 1 << 2
    NOSEND = 1 << 3
    DOMAIN = 1 << 4
    SEV = 1 << 5


POLICY_RESERVED: Final = 0xFFC0
POLICY_MAJOR_SHIFT: Final = 16
POLICY_MINOR_SHIFT: Final = 24

GUESTS_MAX: Final = 1024
"""Guests at a time; handles run from 1 (E8)."""

SCRATCH_SIZE: Final = 0x5000
"""Bytes of the firmware's scratch buffer: the most that one packet carries (E6)."""

HEADER_SIZE: Final = 52
"""Bytes of a packet header (E13)."""

SESSION_SIZE: Final = 128
"""Bytes of a session blob (E16)."""

VMSA_SIZE: Final = 4096
MEASUREMENT_SIZE: Final = 48
"""Bytes that LAUNCH_MEASURE writes: HMAC-SHA-256 and a nonce of 16 bytes."""

PACKET_COMPRESSED: Final = 1 << 0
"""Bit 0 of a packet header's flags: never produced, refused on arrival (E9, E13)."""

FW_BLOB_MAX: Final = 0x4000
"""SEV_FW_BLOB_MAX_SIZE: the most that KVM copies in for one certificate or packet (E22, E25)."""


class ChannelContext(enum.IntEnum):
    """First byte under a packet's MAC (E14)."""

    SECRET = 1
    DATA = 2
    VMSA = 3
    MEASURE = 4


def policy_version(policy: int) -> tuple[int, int]:
    """The least API version, (major, minor), that `policy` asks for (E17)."""
    return policy >> POLICY_MAJOR_SHIFT & 0xFF, policy >> POLICY_MINOR_SHIFT & 0xFF
