# SPDX-License-Identifier: GPL-2.0-or-later
"""A host under which the CPU emulator crashes: libunicorn gets an engine that is none."""

from __future__ import annotations

import ctypes

from unicorn import unicorn_py3

from guestemu.abi.hypercalls import KVM_HC_SEND_IPI
from guestemu.host.base import Hypercall
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost

DEADLY_PAGES = 0x1234


class Crashing(MapGpaRangeHost):
    """Crashes on one hypercall."""

    def hypercall(self, call: Hypercall) -> int:
        if call.nr == KVM_HC_SEND_IPI and call.a1 == DEADLY_PAGES:
            library = ctypes.CDLL(unicorn_py3.unicorn.uclib._name)
            library.uc_reg_read(ctypes.c_void_p(8), 35, ctypes.c_void_p(8))
        return super().hypercall(call)
