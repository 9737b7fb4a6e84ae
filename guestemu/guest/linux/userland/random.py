# SPDX-License-Identifier: GPL-2.0-or-later
"""RDRAND of a kernel, with the same numbers in every run.

The emulator asks the computer for randomness. It has no hook for the instruction, so each site of
the kernel's text is hooked by address. A kernel that encrypts its memory insists on RDRAND
(arch/x86/coco/core.c, cc_random_init), so it cannot be hidden.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi.addresses import U64_MASK
from guestemu.machine.callbacks import CodeHook
from guestemu.machine.engine import HOOK_CODE, REGISTERS
from guestemu.machine.machine import Machine

_NAMES: Final = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
_REX: Final = 0x40
_REX_W: Final = 8
_REX_B: Final = 1
_CARRY: Final = 1
_STATUS_FLAGS: Final = 0x8D5
_STEP: Final = 0x9E37_79B9_7F4A_7C15


class RandomNumbers:
    """The source; `count` numbers were drawn."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.count = 0

    def draw(self) -> int:
        """The next 64 bits (SplitMix64)."""
        self.count += 1
        value = self.count * _STEP & U64_MASK
        value = (value ^ value >> 30) * 0xBF58_476D_1CE4_E5B9 & U64_MASK
        value = (value ^ value >> 27) * 0x94D0_49BB_1331_11EB & U64_MASK
        return value ^ value >> 31

    def hook(self, address: int) -> None:
        """Carries out the RDRAND at `address`: CF = 1, the other status flags 0. Before the code
        first runs."""
        engine = self._machine.engine

        def on_rdrand(_uc: object, rip: int, size: int, _user: object) -> None:
            code = self._machine.current.read_code(size)
            rex = code[0] if code[0] & 0xF0 == _REX else 0
            number = code[-1] & 7 | (rex & _REX_B) << 3
            value = self.draw() if rex & _REX_W else self.draw() & 0xFFFFFFFF
            flags = engine.read(REGISTERS["rflags"]) & ~_STATUS_FLAGS | _CARRY
            engine.write(REGISTERS[_NAMES[number]], value)
            engine.write(REGISTERS["rflags"], flags)
            engine.write(REGISTERS["rip"], rip + size)

        engine.add_hook(HOOK_CODE, CodeHook(on_rdrand), begin=address, end=address)
