# SPDX-License-Identifier: GPL-2.0-or-later
"""Which part of a kernel asked for a page conversion, from its stack at the exit.

Return addresses are searched for on the stack, not unwound; a purpose is named by the innermost
function of a short list. Conversions that no driver asked for have purposes of their own: the
atomic pools at boot, and their growth in the background (fact U18).
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from typing import Final

from guestemu.abi.addresses import Gva
from guestemu.guest.linux.kernel import Kernel
from guestemu.machine.machine import Machine

OTHER: Final = "other"
PURPOSES: Final[dict[str, str]] = {
    "atomic_pool_expand": "atomic pool, in the background",
    "dma_direct_alloc": "coherent allocation",
    "dma_direct_free": "coherent free",
    "swiotlb_update_mem_attributes": "bounce pool",
    "swiotlb_init_late": "bounce pool",
    "mem_encrypt_free_decrypted_mem": "unused .bss..decrypted",
    "kvm_init_platform": "start of the guest",
    "kvmclock_init": "kvmclock",
    "kvm_setup_vsyscall_timeinfo": "kvmclock",
    "sev_es_init_vc_handling": "GHCB pages",
}
"""Functions by what a conversion below them is for."""

BY_DRIVERS: Final = ("coherent allocation", "coherent free")
"""Purposes of conversions that a driver's own calls make."""

_AT_BOOT: Final = ("dma_atomic_pool_init", "__dma_atomic_pool_init")
_POOL_AT_BOOT: Final = "atomic pool, at boot"
_POOL: Final = PURPOSES["atomic_pool_expand"]
"""Growth has no function of its own on the stack: atomic_pool_work_fn() ends in a tail call."""

_BYTES: Final = 4096
_PAGE: Final = 4096


class Callers:
    """`pages` counts converted pages by purpose."""

    def __init__(self, kernel: Kernel, machine: Machine) -> None:
        self.pages: dict[str, int] = {}
        self._machine = machine
        self._kernel = kernel
        self._text = range(
            kernel.symbols.get("_text", 0), kernel.symbols.get("_einittext", 0) or (1 << 64)
        )

    def purpose(self) -> str:
        """What the innermost known function on the stack is for."""
        vcpu = self._machine.current
        stack = vcpu.read_register("rsp")
        size = min(_BYTES, 4 * _PAGE - stack % (4 * _PAGE))
        data = vcpu.read_memory(Gva(stack), size) or b""
        best = OTHER
        for at in range(0, len(data) - 7, 8):
            address = int.from_bytes(data[at : at + 8], "little")
            if address not in self._text:
                continue
            name = self._name(address)
            if best == OTHER:
                best = PURPOSES.get(name, OTHER)
                if best not in {OTHER, _POOL}:
                    return best
            elif name in _AT_BOOT:
                return _POOL_AT_BOOT
        return best

    @functools.cached_property
    def _functions(self) -> tuple[list[int], dict[int, str]]:
        """Where functions start, sorted, and the names of those that this module knows; found out
        at the first conversion."""
        symbols = self._kernel.symbols
        known = {symbols[name]: name for name in (*PURPOSES, *_AT_BOOT) if name in symbols}
        return sorted(symbols.values()), known

    def _name(self, address: int) -> str:
        """The function that holds `address`, "" for one that this module does not know."""
        starts, known = self._functions
        index = bisect_right(starts, address) - 1
        return known.get(starts[index], "") if index >= 0 else ""

    def count(self, pages: int) -> None:
        """`pages` are converted now."""
        purpose = self.purpose()
        self.pages[purpose] = self.pages.get(purpose, 0) + pages
