# SPDX-License-Identifier: GPL-2.0-or-later
"""Recording and decoding the instructions of a run.

A code hook calls Python for every instruction, a hundred times slower than the guest: for telling
one program, never for a campaign.
"""

from __future__ import annotations

import enum
from array import array
from typing import Final

import capstone
import msgspec

from guestemu.abi.addresses import Gva
from guestemu.guest.base import Guest
from guestemu.host.base import Hypercall, MapGpaRange, VcpuAccess
from guestemu.machine.callbacks import CodeHook
from guestemu.machine.engine import HOOK_CODE
from guestemu.machine.exits import ExitHandler

LIMIT: Final = 1 << 20
"""Instructions of one operation that are kept; more are only counted."""
_LONGEST: Final = 15


class InstructionRecorder:
    """Addresses of the instructions that ran since `begin`, up to `LIMIT`; `count` of all.

    It stands between `guest` and the `handler` of its exits: RDMSR and WRMSR end the run before the
    code hook would see them, so the exit is where they are noted.
    """

    def __init__(self, guest: Guest, handler: ExitHandler) -> None:
        self.addresses = array("Q")
        self.count = 0
        self._handler = handler
        engine = guest.machine.engine
        engine.add_hook(HOOK_CODE, CodeHook(self._on_instruction))
        engine.flush_blocks()
        guest.machine.hooks.handler = self

    def begin(self) -> None:
        """Forgets what was recorded."""
        self.addresses = array("Q")
        self.count = 0

    def hypercall(self, call: Hypercall) -> int:
        """See `ExitHandler`."""
        return self._handler.hypercall(call)

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """See `ExitHandler`."""
        return self._handler.map_gpa_range(call)

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        """See `ExitHandler`."""
        self._note(vcpu.read_register("rip"))
        return self._handler.rdmsr(index, vcpu)

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """See `ExitHandler`."""
        self._note(vcpu.read_register("rip"))
        self._handler.wrmsr(index, value, vcpu)

    def _on_instruction(self, _uc: object, address: int, _size: int, _user: object) -> None:
        # As `_note`, without a call: what interrupts the hook itself is raised when the CPU stops.
        self.count += 1
        if self.count <= LIMIT:
            self.addresses.append(address)

    def _note(self, address: int) -> None:
        self.count += 1
        if self.count <= LIMIT:
            self.addresses.append(address)


class ControlFlow(enum.Enum):
    """Where an instruction leads."""

    NEXT = "next"
    CALL = "call"
    RETURN = "return"


class TracedInstruction(msgspec.Struct, frozen=True):
    """One decoded instruction."""

    address: int
    text: str
    flow: ControlFlow


class Decoder:
    """Decodes a guest's code as it is mapped now; each address once."""

    def __init__(self, guest: Guest) -> None:
        self._vcpu = guest.machine.current
        self._capstone = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._known: dict[int, TracedInstruction] = {}

    def at(self, address: int) -> TracedInstruction:
        """The instruction at `address`."""
        known = self._known.get(address)
        if known is None:
            known = self._known[address] = self._decode(address)
        return known

    def _decode(self, address: int) -> TracedInstruction:
        code = self._vcpu.read_memory(Gva(address), _LONGEST) or b""
        for _, _, mnemonic, operands in self._capstone.disasm_lite(code, address, 1):
            flow = ControlFlow.NEXT
            if mnemonic == "call":
                flow = ControlFlow.CALL
            elif mnemonic in {"ret", "iretq"}:
                flow = ControlFlow.RETURN
            return TracedInstruction(address, f"{mnemonic} {operands}".strip(), flow)
        return TracedInstruction(
            address, f".byte {code[0]:#04x}" if code else "?", ControlFlow.NEXT
        )
