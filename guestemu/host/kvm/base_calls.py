# SPDX-License-Identifier: GPL-2.0-or-later
"""The hypercalls that KVM answers by itself, without user space.

Source: kvm_emulate_hypercall(), kvm_pv_clock_pairing(), kvm_pv_send_ipi() (arch/x86/kvm/x86.c and
lapic.c, Linux 6.1); every result recorded from real kernels. The vCPU's LAPIC is software-disabled,
as in the recordings, so no interrupt is delivered. Clocks are paired where the host's clock is its
TSC (`VmSettings.pairs_clock`).
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
    KVM_EFAULT,
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
RAX_EFAULT: Final = -KVM_EFAULT & U64_MASK
RAX_ENOSYS: Final = -KVM_ENOSYS & U64_MASK
RAX_EOPNOTSUPP: Final = -KVM_EOPNOTSUPP & U64_MASK

_ICR_REFUSED: Final = 0x800 | 0xC0000
_WALL_CLOCK: Final = 0
_CLOCK_PAIRING_BYTES: Final = 64


def answer_base_call(settings: VmSettings, nr: int, arguments: tuple[int, int, int]) -> int:
    """RAX for a hypercall that is not the generation's own; `arguments` are RBX, RCX and RSI.

    Unknown numbers, and known ones whose enforced feature bit is clear, give -KVM_ENOSYS.
    """
    if nr == KVM_HC_VAPIC_POLL_IRQ:
        return 0
    if nr == KVM_HC_KICK_CPU:
        return 0 if settings.has_pv_feature(KVM_FEATURE_PV_UNHALT) else RAX_ENOSYS
    if nr == KVM_HC_CLOCK_PAIRING:
        return _pair_clocks(settings, arguments[0], arguments[1])
    if nr == KVM_HC_SEND_IPI:
        if not settings.has_pv_feature(KVM_FEATURE_PV_SEND_IPI):
            return RAX_ENOSYS
        if arguments[2] & _ICR_REFUSED:
            return RAX_EINVAL
        return 0 if settings.in_kernel_irqchip else RAX_EOPNOTSUPP
    if nr == KVM_HC_SCHED_YIELD:
        return 0 if settings.has_pv_feature(KVM_FEATURE_PV_SCHED_YIELD) else RAX_ENOSYS
    return RAX_ENOSYS


def _pair_clocks(settings: VmSettings, gpa: int, clock_type: int) -> int:
    """kvm_pv_clock_pairing(): writes a struct kvm_clock_pairing at `gpa`."""
    if clock_type != _WALL_CLOCK or not settings.pairs_clock:
        return RAX_EOPNOTSUPP
    return 0 if settings.is_writable(gpa, _CLOCK_PAIRING_BYTES) else RAX_EFAULT
