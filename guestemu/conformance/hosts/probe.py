# SPDX-License-Identifier: GPL-2.0-or-later
"""A handle on the host under check: speaks its ABI, knows nothing of its inside."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.hypercalls import (
    KVM_HC_MAP_GPA_RANGE,
    KVM_HC_PAGE_ENC_STATUS,
    KVM_HC_PAGE_ENC_STATUS_2019,
    MAP_GPA_RANGE_ENCRYPTED,
)
from guestemu.abi.msrs import KVM_MIGRATION_READY, MSR_KVM_MIGRATION_CONTROL
from guestemu.host.base import GuestFault, Host
from guestemu.host.standin import StandInVcpu

FRAMES: Final = 256
"""Frames of RAM of the VMs under check."""


class Abi(enum.Enum):
    """The hypercall a host answers: its number and how its third argument says private."""

    MAP_GPA_RANGE = "merged: number 12, attribute bit 4"
    PAGE_ENC_STATUS = "2020 and 2021 patch sets: number 12, enc"
    PAGE_ENC_STATUS_2019 = "2019 patch sets: number 11, enc"

    @property
    def number(self) -> int:
        """The hypercall number."""
        if self is Abi.MAP_GPA_RANGE:
            return KVM_HC_MAP_GPA_RANGE
        if self is Abi.PAGE_ENC_STATUS:
            return KVM_HC_PAGE_ENC_STATUS
        return KVM_HC_PAGE_ENC_STATUS_2019

    @property
    def private(self) -> int:
        """The third argument of a change to private; a change to shared has 0."""
        return MAP_GPA_RANGE_ENCRYPTED if self is Abi.MAP_GPA_RANGE else 1


class HostProbe:
    """One host, reset to a VM of `FRAMES` frames when made, and again by `reset`.

    `opt_in` does what a guest of the patch sets does before it converts anything (K1-m); where
    there is no opt-in MSR it does nothing. `asked` is called before every hypercall and reset.
    """

    def __init__(self, host: Host, abi: Abi, asked: Callable[[], None] | None = None) -> None:
        self.host = host
        self.abi = abi
        self._asked = asked
        host.reset(FRAMES)

    def reset(self) -> None:
        """A new VM whose guest has opted in."""
        if self._asked is not None:
            self._asked()
        self.host.reset(FRAMES)
        self.opt_in()

    def opt_in(self) -> None:
        """WRMSR of the opt-in MSR on an ABI of the patch sets."""
        if self.abi is not Abi.MAP_GPA_RANGE:
            self.wrmsr(MSR_KVM_MIGRATION_CONTROL, KVM_MIGRATION_READY)

    def call(
        self, nr: int, *args: int, cpl: int = 0, is_64bit: bool = True, vmcall: bool = False
    ) -> int:
        """A hypercall with raw arguments; RAX."""
        if self._asked is not None:
            self._asked()
        vcpu = StandInVcpu(cpl=cpl, is_64bit=is_64bit)
        return self.host.hypercall(vcpu.hypercall(nr, *args, vmcall=vmcall))

    def convert(self, gfn: int, pages: int, *, private: bool) -> int:
        """Tells the host that [gfn, gfn + pages) is now private or shared; RAX."""
        status = self.abi.private if private else 0
        return self.call(self.abi.number, gfn << PAGE_SHIFT, pages, status)

    def map(self) -> bitarray:
        """A copy of the host's record."""
        return self.host.private_map().copy()

    def shared(self) -> set[int]:
        """The shared gfns by the host's record."""
        return {gfn for gfn, private in enumerate(self.host.private_map()) if not private}

    def wrmsr(self, index: int, value: int, *, cpl: int = 0) -> bool:
        """WRMSR; whether it went through without #GP."""
        try:
            self.host.wrmsr(index, value, StandInVcpu(cpl=cpl))
        except GuestFault:
            return False
        return True

    def rdmsr(self, index: int, *, cpl: int = 0) -> int | None:
        """RDMSR; None for #GP."""
        try:
            return self.host.rdmsr(index, StandInVcpu(cpl=cpl))
        except GuestFault:
            return None
