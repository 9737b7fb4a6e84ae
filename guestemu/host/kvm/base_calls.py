# SPDX-License-Identifier: GPL-2.0-or-later
"""The hypercalls that KVM answers by itself, without user space.

Source: kvm_emulate_hypercall(), kvm_pv_clock_pairing(), kvm_pv_send_ipi() (arch/x86/kvm/x86.c and
lapic.c, Linux 6.1); every result recorded from real kernels. The host has no TSC master clock and
the vCPU's LAPIC is software-disabled, as in the recordings, so nothing is paired or delivered.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.cpuid import (
    KVM_FEATURE_PV_SCHED_YIELD,
    KVM_FEATURE_PV_SEND_IPI,
    KVM_FEATURE_PV_UNHALT,
)
from guestemu.abi.hypercalls import (
    KVM_EINVAL,
    KVM_ENOSYS,
    KVM_EOPNOTSUPP,
    KVM_EPERM,
    KVM_HC_CLOCK_PAIRING,
    KVM_HC_KICK_CPU,
    KVM_HC_SCHED_YIELD,
    KVM_HC_SEND_IPI,
    KVM_HC_VAPIC_POLL_IRQ,
)
from guestemu.host.kvm.settings import VmSettings

RAX_EPERM: Final = -KVM_EPERM & U64_MASK
RAX_EINVAL: Final = -KVM_EINVAL & U64_MASK
RAX_ENOSYS: Final = -KVM_ENOSYS & U64_MASK
RAX_EOPNOTSUPP: Final = -KVM_EOPNOTSUPP & U64_MASK

_ICR_REFUSED: Final = 0x800 | 0xC0000


def answer_base_call(settings: VmSettings, nr: int, a3: int) -> int:
    """RAX for a hypercall that is not the generation's own; `a3` is the fourth argument (RSI).

    Unknown numbers, and known ones whose enforced feature bit is clear, give -KVM_ENOSYS.
    """
    if nr == KVM_HC_VAPIC_POLL_IRQ:
        return 0
    if nr == KVM_HC_KICK_CPU:
        return 0 if settings.has_pv_feature(KVM_FEATURE_PV_UNHALT) else RAX_ENOSYS
    if nr == KVM_HC_CLOCK_PAIRING:
        return RAX_EOPNOTSUPP
    if nr == KVM_HC_SEND_IPI:
        if not settings.has_pv_feature(KVM_FEATURE_PV_SEND_IPI):
            return RAX_ENOSYS
        if a3 & _ICR_REFUSED:
            return RAX_EINVAL
        return 0 if settings.in_kernel_irqchip else RAX_EOPNOTSUPP
    if nr == KVM_HC_SCHED_YIELD:
        return 0 if settings.has_pv_feature(KVM_FEATURE_PV_SCHED_YIELD) else RAX_ENOSYS
    return RAX_ENOSYS
