# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's own MSRs 0x4b564d00 to 0x4b564d07, the neighbours of MIGRATION_CONTROL.

KVM implements these and nothing above: 0x4b564d08 (MIGRATION_CONTROL) and the rest of the range
are unknown to it (K5-a). One set is kept for the VM, as for a VM with one vCPU.

An address that is tested when it is written lies in a slot that is not read-only, as
kvm_gfn_to_hva_cache_init() looks for one that KVM can write to.

Source: kvm_set_msr_common(), kvm_get_msr_common(), kvm_pv_enable_async_pf(),
kvm_pv_enable_async_pf_int(), kvm_lapic_set_pv_eoi() (arch/x86/kvm, Linux 6.1); recorded.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from guestemu.abi.cpuid import (
    KVM_FEATURE_ASYNC_PF,
    KVM_FEATURE_ASYNC_PF_INT,
    KVM_FEATURE_ASYNC_PF_VMEXIT,
    KVM_FEATURE_CLOCKSOURCE2,
    KVM_FEATURE_POLL_CONTROL,
    KVM_FEATURE_PV_EOI,
    KVM_FEATURE_STEAL_TIME,
)
from guestemu.abi.msrs import MSR_KVM_CUSTOM_FIRST
from guestemu.host.kvm.settings import VmSettings

MSR_KVM_WALL_CLOCK_NEW: Final = MSR_KVM_CUSTOM_FIRST
MSR_KVM_SYSTEM_TIME_NEW: Final = MSR_KVM_CUSTOM_FIRST + 1
MSR_KVM_ASYNC_PF_EN: Final = MSR_KVM_CUSTOM_FIRST + 2
MSR_KVM_STEAL_TIME: Final = MSR_KVM_CUSTOM_FIRST + 3
MSR_KVM_PV_EOI_EN: Final = MSR_KVM_CUSTOM_FIRST + 4
MSR_KVM_POLL_CONTROL: Final = MSR_KVM_CUSTOM_FIRST + 5
MSR_KVM_ASYNC_PF_INT: Final = MSR_KVM_CUSTOM_FIRST + 6
MSR_KVM_ASYNC_PF_ACK: Final = MSR_KVM_CUSTOM_FIRST + 7

_FEATURE: Final[Mapping[int, int]] = {
    MSR_KVM_WALL_CLOCK_NEW: KVM_FEATURE_CLOCKSOURCE2,
    MSR_KVM_SYSTEM_TIME_NEW: KVM_FEATURE_CLOCKSOURCE2,
    MSR_KVM_ASYNC_PF_EN: KVM_FEATURE_ASYNC_PF,
    MSR_KVM_STEAL_TIME: KVM_FEATURE_STEAL_TIME,
    MSR_KVM_PV_EOI_EN: KVM_FEATURE_PV_EOI,
    MSR_KVM_POLL_CONTROL: KVM_FEATURE_POLL_CONTROL,
    MSR_KVM_ASYNC_PF_INT: KVM_FEATURE_ASYNC_PF_INT,
    MSR_KVM_ASYNC_PF_ACK: KVM_FEATURE_ASYNC_PF_INT,
}

_ASYNC_PF_RESERVED: Final = 0x30
_STEAL_TIME_RESERVED: Final = 0x3E
_ENABLED: Final = 1
_AS_PF_VMEXIT: Final = 1 << 2
_AS_INTERRUPT: Final = 1 << 3


class MsrResult(enum.IntEnum):
    """How an MSR access inside KVM ends."""

    DONE = 0
    INVALID = 1
    UNKNOWN = 2


class PvMsrs:
    """The values of KVM's own MSRs and the rules for writing them."""

    __slots__ = ("_settings", "_values")

    def __init__(self, settings: VmSettings) -> None:
        self._settings = settings
        self._values: dict[int, int] = {MSR_KVM_POLL_CONTROL: 1}

    def restore(self) -> None:
        """Every MSR as at the creation of the vCPU."""
        if len(self._values) > 1 or self._values[MSR_KVM_POLL_CONTROL] != 1:
            self._values = {MSR_KVM_POLL_CONTROL: 1}

    @property
    def wall_clock(self) -> int:
        """MSR_KVM_WALL_CLOCK_NEW, which the vCPUs of a VM share."""
        return self._values.get(MSR_KVM_WALL_CLOCK_NEW, 0)

    @wall_clock.setter
    def wall_clock(self, value: int) -> None:
        self._values[MSR_KVM_WALL_CLOCK_NEW] = value

    def find(self, index: int) -> MsrResult:
        """Whether MSR `index` exists for this guest: DONE, UNKNOWN, or INVALID where the kernel
        treats an MSR whose feature bit is enforced away as a bad access."""
        feature = _FEATURE.get(index)
        if feature is None:
            return MsrResult.UNKNOWN
        if self._settings.has_pv_feature(feature):
            return MsrResult.DONE
        if self._settings.kernel.enforced_msr_is_unknown:
            return MsrResult.UNKNOWN
        return MsrResult.INVALID

    def is_listed(self, index: int) -> bool:
        """Whether KVM_GET_MSR_INDEX_LIST names `index`."""
        return index in _FEATURE

    def read(self, index: int) -> int:
        """The value of an MSR that `find` accepted; ASYNC_PF_ACK always reads 0."""
        return self._values.get(index, 0)

    def write(self, index: int, value: int) -> MsrResult:
        """Writes an MSR that `find` accepted; INVALID for values with refused bits."""
        if index == MSR_KVM_ASYNC_PF_EN:
            return self._write_async_pf(value)
        if not self._accepts(index, value):
            return MsrResult.INVALID
        if index != MSR_KVM_ASYNC_PF_ACK:
            self._values[index] = value
        return MsrResult.DONE

    def _accepts(self, index: int, value: int) -> bool:
        if index == MSR_KVM_STEAL_TIME:
            return not value & _STEAL_TIME_RESERVED
        if index == MSR_KVM_PV_EOI_EN:
            address = value & ~_ENABLED
            is_writable = self._settings.is_writable
            return address % 4 == 0 and (not value & _ENABLED or is_writable(address, 1))
        if index == MSR_KVM_POLL_CONTROL:
            return value <= 1
        if index == MSR_KVM_ASYNC_PF_INT:
            return self._settings.in_kernel_irqchip and value <= 0xFF
        return True

    def _write_async_pf(self, value: int) -> MsrResult:
        """kvm_pv_enable_async_pf(): where KVM cannot write to the address, the write fails; before
        7.3 the value stays all the same (`KvmKernel.keeps_refused_async_pf`)."""
        has = self._settings.has_pv_feature
        if (
            value & _ASYNC_PF_RESERVED
            or (value & _AS_PF_VMEXIT and not has(KVM_FEATURE_ASYNC_PF_VMEXIT))
            or (value & _AS_INTERRUPT and not has(KVM_FEATURE_ASYNC_PF_INT))
        ):
            return MsrResult.INVALID
        if not self._settings.in_kernel_irqchip:
            return MsrResult.INVALID if value else MsrResult.DONE
        is_used = value & (_ENABLED | _AS_INTERRUPT) == _ENABLED | _AS_INTERRUPT
        is_refused = is_used and not self._settings.is_writable(value & ~0x3F, 8)
        if not is_refused or self._settings.kernel.keeps_refused_async_pf:
            self._values[MSR_KVM_ASYNC_PF_EN] = value
        return MsrResult.INVALID if is_refused else MsrResult.DONE
