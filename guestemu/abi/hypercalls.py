# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM hypercall numbers, attributes and return codes.

Source: include/uapi/linux/kvm_para.h and Documentation/virt/kvm/x86/hypercalls.rst (Linux 7.1);
KVM_HC_PAGE_ENC_STATUS from the never-merged "SEV Live Migration Patchset" (2019: 11, 2020 on: 12).
"""

from __future__ import annotations

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
