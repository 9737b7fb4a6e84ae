# SPDX-License-Identifier: GPL-2.0-or-later
"""What differs between kernels of the merged generation, as data.

Source: recordings of real kernels (6.1.192, 6.12.95; the 6.18.15 and 7.2.12 columns of the same
measurement) and K3-g, K3-h, K3-i. 5.15 was read, not run: its MSR behaviour is taken from 6.1.
7.3 is 7.2 with the one difference that a million random steps on 7.3.4 showed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from guestemu.abi.errors import InputError


class KvmKernel(msgspec.Struct, frozen=True, gc=False):
    """One kernel's answers where kernels differ.

    `zeroes_ret`: run->hypercall.ret is set to 0 at the exit (K3-g), else it keeps stale bytes.
    `writes_flags_word`: the exit writes the 64-bit flags, else only the 32-bit longmode (K3-h).
    `compares_untruncated_nr`: the 6.10-6.13 defect (K3-i): with junk above bit 31 of RAX outside
    64-bit code the exit is prepared but never taken and the guest reads success.
    `enforced_msr_is_unknown`: an MSR whose feature bit is enforced away counts as unknown
    (reason UNKNOWN, swallowed by ignore_msrs), else as an invalid access (reason INVAL).
    `host_zero_access`: host reads, and host writes of 0, of such an MSR succeed.
    `sregs_need_cpuid`: KVM_SET_SREGS into long mode fails with -EINVAL before KVM_SET_CPUID2.
    `quirks_stick`: a quirk that was disabled stays so, whatever the mask of a later call; else each
    call replaces the mask (6.1 and 6.12.118 were asked).
    `quirks`: the bits that KVM_CAP_DISABLE_QUIRKS2 takes; 0 means the capability is missing.
    `keeps_refused_async_pf`: a write of MSR_KVM_ASYNC_PF_EN that is refused because its address
    cannot be written to stays all the same (kvm_pv_enable_async_pf() stores before it looks).
    `is_measured`: the values were recorded from that kernel, else read in its source.
    """

    name: str
    zeroes_ret: bool
    writes_flags_word: bool
    compares_untruncated_nr: bool
    enforced_msr_is_unknown: bool
    host_zero_access: bool
    sregs_need_cpuid: bool
    quirks_stick: bool
    quirks: int
    keeps_refused_async_pf: bool
    is_measured: bool


_COLUMNS: Final = (
    #              ret=0  flags  nr     unknown host0  cpuid  stick  quirks kept  measured
    KvmKernel("5.15", False, False, False, True, False, False, False, 0x00, True, False),
    KvmKernel("6.1", False, False, False, True, False, False, False, 0x7F, True, True),
    KvmKernel("6.12", False, True, True, True, True, False, True, 0x7FF, True, True),
    KvmKernel("6.18", True, True, False, False, False, False, True, 0x7FF, True, True),
    KvmKernel("7.2", True, True, False, True, True, True, True, 0x7FF, True, True),
    KvmKernel("7.3", True, True, False, True, True, True, True, 0x7FF, False, True),
)

KERNELS: Final[Mapping[str, KvmKernel]] = {kernel.name: kernel for kernel in _COLUMNS}
DEFAULT_KERNEL: Final = "6.1"


def find_kernel(name: str) -> KvmKernel:
    """The kernel called `name` ("6.12").

    Raises `InputError` for a kernel without a model.
    """
    try:
        return KERNELS[name]
    except KeyError:
        known = ", ".join(KERNELS)
        raise InputError(f"kernel {name!r}: no KVM model of it; use one of {known}") from None
