# SPDX-License-Identifier: GPL-2.0-or-later
"""A vCPU without a machine: registers, mode and a few bytes of code, for calling hosts directly."""

from __future__ import annotations

from typing import Final

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.x86 import VECTOR_PF
from guestemu.host.base import GuestFault, Hypercall

PF_WRITE_PRESENT: Final = 3
"""#PF error code of a supervisor write to a present, read-only page."""


class StandInVcpu:
    """Has the `VcpuAccess` interface. `code` is what lies at RIP; `cr2` is set by a #PF.

    Registers that were never set read 0.
    """

    __slots__ = ("code", "cpl", "cr2", "index", "is_64bit", "is_code_writable", "registers")

    def __init__(
        self,
        *,
        cpl: int = 0,
        is_64bit: bool = True,
        code: bytes = b"\x0f\x01\xd9",
        is_code_writable: bool = True,
        index: int = 0,
    ) -> None:
        self.index = index
        self.registers: dict[str, int] = {}
        self.cpl = cpl
        self.is_64bit = is_64bit
        self.code = bytearray(code)
        self.is_code_writable = is_code_writable
        self.cr2: int | None = None

    def read_register(self, name: str) -> int:
        """The 64-bit register `name`."""
        return self.registers.get(name, 0)

    def write_register(self, name: str, value: int) -> None:
        """Sets the 64-bit register `name`."""
        self.registers[name] = value & U64_MASK

    def read_code(self, size: int) -> bytes:
        """The first `size` bytes of `code`."""
        return bytes(self.code[:size])

    def patch_code(self, code: bytes) -> None:
        """Overwrites the start of `code`; `GuestFault` (#PF) where it is not writable."""
        if not self.is_code_writable:
            self.cr2 = self.read_register("rip")
            raise GuestFault(VECTOR_PF, PF_WRITE_PRESENT)
        self.code[: len(code)] = code

    def hypercall(
        self, nr: int, a0: int = 0, a1: int = 0, a2: int = 0, a3: int = 0, *, vmcall: bool = False
    ) -> Hypercall:
        """The exit of a VMMCALL (or VMCALL) by this vCPU; sets its registers accordingly."""
        for name, value in zip(
            ("rax", "rbx", "rcx", "rdx", "rsi"), (nr, a0, a1, a2, a3), strict=True
        ):
            self.registers[name] = value
        return Hypercall(nr, a0, a1, a2, a3, self.cpl, self.is_64bit, self, vmcall)
