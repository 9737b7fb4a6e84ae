# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a kernel gives up: page_fault_oops(), die(), panic() (arch/x86/mm/fault.c, dumpstack.c).

A call stops at the entry of the first of them: what follows prints for a hundred thousand blocks
and ends in a dead machine, as the boot task cannot be killed.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi.addresses import Gva
from guestemu.abi.x86 import VECTOR_GP, VECTOR_PF
from guestemu.guest.base import GuestOops
from guestemu.guest.linux.kernel import Kernel
from guestemu.machine.vcpu import Vcpu

_VECTOR_UD: Final = 6
_VECTORS: Final = {
    "invalid opcode": _VECTOR_UD,
    "general protection fault": VECTOR_GP,
    "stack segment": 12,
    "divide error": 0,
    "int3": 3,
    "double fault": 8,
}
_NO_VECTOR: Final = 255
_SYMBOLS: Final = ("page_fault_oops", "die", "die_addr", "panic")


class OopsStops:
    """The addresses at which a call of `kernel` has failed, and what they mean."""

    def __init__(self, kernel: Kernel) -> None:
        self.addresses = {kernel.symbols[name]: name for name in _SYMBOLS if name in kernel.symbols}
        self._ip = kernel.btf.offset("pt_regs.ip")

    def read(self, vcpu: Vcpu, address: int) -> GuestOops:
        """The oops that the kernel at one of `addresses` is about to print.

        The vector is 255 for a panic without an exception; `rip` is then that of panic() itself.
        """
        name = self.addresses[address]
        if name == "panic":
            return GuestOops(_NO_VECTOR, 0, address, 0)
        first, second, third = (vcpu.read_register(name) for name in ("rdi", "rsi", "rdx"))
        if name == "page_fault_oops":
            return GuestOops(VECTOR_PF, second & 0xFFFF, self._saved_rip(vcpu, first), third)
        text = self._text(vcpu, first)
        vector = next((number for key, number in _VECTORS.items() if key in text), _NO_VECTOR)
        return GuestOops(vector, third & 0xFFFF, self._saved_rip(vcpu, second), 0)

    def _saved_rip(self, vcpu: Vcpu, registers: int) -> int:
        data = vcpu.read_memory(Gva(registers + self._ip), 8)
        return int.from_bytes(data or b"", "little")

    @staticmethod
    def _text(vcpu: Vcpu, address: int) -> str:
        data = vcpu.read_memory(Gva(address), 64) or b""
        return data.partition(b"\0")[0].decode("ascii", "replace")
