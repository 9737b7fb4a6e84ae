# SPDX-License-Identifier: GPL-2.0-or-later
"""Which model stands for a recorded kernel."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.host.kvm.kernels import KERNELS, KvmKernel

_VERSION: Final = re.compile(r"(\d{1,2})\.(\d{1,3})(?!\d)(?:\.(\d{1,4})(?!\d))?")
_CPUID_FIRST: Final = ("6.12", 117)
"""From this stable release on KVM_SET_SREGS into long mode fails before KVM_SET_CPUID2: 6.12.117
and 6.12.118 do so, 6.12.95 did not; the releases between were not looked at."""
_RELEASES_PER_MAJOR: Final = 20
"""5.x and 6.x each ended with .19, so distance in releases runs on across them."""


class KernelChoice(msgspec.Struct, frozen=True):
    """A model for a kernel; `is_exact` is False where it is only the nearest there is, `name` what
    to call it."""

    kernel: KvmKernel
    is_exact: bool
    is_repaired: bool = False

    @property
    def name(self) -> str:
        """The kernel's version, and whether its defects were taken out."""
        return f"{self.kernel.name} repaired" if self.is_repaired else self.kernel.name


def choose_kernel(release: str, place: str) -> KernelChoice:
    """The model for `release` ("6.12", "6.1.0-56-cloud-amd64"): its own or the nearest version's.

    Of two models as near as each other the older one: a change is not assumed before it is known.
    `place` names where the release was read, for the `InputError` of one that has no version.
    """
    found = _VERSION.match(release)
    if found is None:
        raise InputError(
            f"{place}: {release!r} has no kernel version; name one, as in --kernel 6.1 "
            f"(models: {', '.join(KERNELS)})"
        )
    wanted = _position(int(found[1]), int(found[2]))
    nearest = min(KERNELS, key=lambda name: abs(_position_of(name) - wanted))
    kernel = KERNELS[nearest]
    if (nearest, _position_of(nearest)) == (_CPUID_FIRST[0], wanted):
        needs = int(found[3] or 0) >= _CPUID_FIRST[1]
        kernel = msgspec.structs.replace(kernel, sregs_need_cpuid=needs)
    return KernelChoice(kernel, _position_of(nearest) == wanted)


def without_defects(choice: KernelChoice) -> KernelChoice:
    """The same kernel without what its maintainers repaired as a defect: the exit that Linux 6.10
    to 6.13 lose outside 64-bit code when RAX has bits above 31 (K3-i)."""
    kernel = msgspec.structs.replace(choice.kernel, compares_untruncated_nr=False)
    return KernelChoice(kernel, choice.is_exact, is_repaired=True)


def _position(major: int, minor: int) -> int:
    return major * _RELEASES_PER_MAJOR + minor


def _position_of(name: str) -> int:
    major, minor = name.split(".")
    return _position(int(major), int(minor))
