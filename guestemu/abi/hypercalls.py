# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM hypercall numbers, attributes and return codes.

Source: include/uapi/linux/kvm_para.h and Documentation/virt/kvm/x86/hypercalls.rst (Linux 7.1);
KVM_HC_PAGE_ENC_STATUS from the never-merged "SEV Live Migration Patchset" (2019: 11, 2020 on: 12).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

KVM_HC_VAPIC_POLL_IRQ: Final = 1
KVM_HC_KICK_CPU: Final = 5
KVM_HC_CLOCK_PAIRING: Final = 9
KVM_HC_SEND_IPI: Final = 10
KVM_HC_SCHED_YIELD: Final = 11
KVM_HC_MAP_GPA_RANGE: Final = 12
KVM_HC_PAGE_ENC_STATUS_2019: Final = 11
KVM_HC_PAGE_ENC_STATUS: Final = 12

MAP_GPA_RANGE_PAGE_SZ_4K: Final = 0
MAP_GPA_RANGE_PAGE_SZ_2M: Final = 1
MAP_GPA_RANGE_PAGE_SZ_1G: Final = 2
MAP_GPA_RANGE_ENCRYPTED: Final = 1 << 4
MAP_GPA_RANGE_DECRYPTED: Final = 0

KVM_EPERM: Final = 1
KVM_E2BIG: Final = 7
KVM_EFAULT: Final = 14
KVM_EINVAL: Final = 22
KVM_EOPNOTSUPP: Final = 95
KVM_ENOSYS: Final = 1000

_NAMES: Final = {
    KVM_HC_VAPIC_POLL_IRQ: "KVM_HC_VAPIC_POLL_IRQ",
    KVM_HC_KICK_CPU: "KVM_HC_KICK_CPU",
    KVM_HC_CLOCK_PAIRING: "KVM_HC_CLOCK_PAIRING",
    KVM_HC_SEND_IPI: "KVM_HC_SEND_IPI",
    KVM_HC_SCHED_YIELD: "KVM_HC_SCHED_YIELD",
    KVM_HC_MAP_GPA_RANGE: "KVM_HC_MAP_GPA_RANGE",
}
_SIZES: Final = {
    MAP_GPA_RANGE_PAGE_SZ_4K: "4K",
    MAP_GPA_RANGE_PAGE_SZ_2M: "2M",
    MAP_GPA_RANGE_PAGE_SZ_1G: "1G",
}
_ERRORS: Final = {
    KVM_EPERM: "EPERM",
    KVM_E2BIG: "E2BIG",
    KVM_EFAULT: "EFAULT",
    KVM_EINVAL: "EINVAL",
    KVM_EOPNOTSUPP: "EOPNOTSUPP",
    KVM_ENOSYS: "ENOSYS",
}


def attributes_text(attributes: int) -> str:
    """The attributes of KVM_HC_MAP_GPA_RANGE: "shared,4K", or the number with unknown bits."""
    status = "private" if attributes & MAP_GPA_RANGE_ENCRYPTED else "shared"
    size = _SIZES.get(attributes & 0xF)
    if attributes & ~0x1F or size is None:
        return f"attributes={attributes:#x}"
    return f"{status},{size}"


def hypercall_text(number: int, arguments: Sequence[int], place: str = "") -> str:
    """A hypercall for a reader: its name and what its arguments mean.

    `place` names the page of a KVM_HC_MAP_GPA_RANGE.
    """
    if number == KVM_HC_MAP_GPA_RANGE and len(arguments) >= 3:
        gpa, pages, attributes = arguments[:3]
        where = f" ({place})" if place else ""
        what = attributes_text(attributes)
        return f"KVM_HC_MAP_GPA_RANGE gpa={gpa:#x}{where} pages={pages} {what}"
    name = _NAMES.get(number, f"hypercall {number}")
    return " ".join([name, *map(hex, arguments)])


def page_enc_text(number: int, arguments: Sequence[int], place: str = "") -> str:
    """A KVM_HC_PAGE_ENC_STATUS (`number` 11 or 12) of the never-merged patch sets."""
    gpa, pages, enc = arguments[:3]
    where = f" ({place})" if place else ""
    return f"KVM_HC_PAGE_ENC_STATUS({number}) gpa={gpa:#x}{where} pages={pages} enc={enc:#x}"


def answer_text(answer: int) -> str:
    """What a guest got in RAX, as a signed number: "0", "-22 (-KVM_EINVAL)"."""
    name = _ERRORS.get(-answer)
    if name is not None:
        return f"{answer} (-KVM_{name})"
    return f"{answer:#x}" if answer > 0xFFFF else f"{answer}"
