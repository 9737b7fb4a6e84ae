# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine that a kernel can be migrated to, and what it needs to take one over.

A station shares nothing with any other: its machine is fresh, made from the kernel's image (for the
addresses of its RDMSR, WRMSR and RDTSC) and a key of its own. Its RAM is empty until pages come.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa
from guestemu.guest.linux.boot import build_machine
from guestemu.guest.linux.es import EsState
from guestemu.guest.linux.kernel import Kernel
from guestemu.guest.linux.platform import Console, GuestPlatform
from guestemu.machine.callbacks import CodeHook
from guestemu.machine.engine import HOOK_CODE
from guestemu.machine.exits import Exit
from guestemu.machine.machine import Machine, MachineConfig
from guestemu.machine.resident import resident_pages
from guestemu.migration.links import Packet, Receiver, Sender
from guestemu.migration.sweep.host import StatusHost
from guestemu.migration.transfer import MachineState, StatePart, capture_state, restore_state

BUDGET: Final = 500_000
"""Basic blocks that a migrated guest may execute to the end of its program; it takes 60 000."""

_CLOCK: Final = struct.Struct("<Q")
_ZERO_PAGE: Final = bytes(PAGE_SIZE)


class ClockPart:
    """The platform's TSC, a `StatePart`."""

    def __init__(self, platform: GuestPlatform) -> None:
        self._platform = platform

    def capture(self) -> bytes:
        """See `StatePart`."""
        return _CLOCK.pack(self._platform.tsc)

    def restore(self, data: bytes) -> None:
        """See `StatePart`."""
        (self._platform.tsc,) = _CLOCK.unpack(data)


class SevPart:
    """What KVM keeps for a SEV-ES guest: the registered GHCB; a `StatePart`."""

    def __init__(self, platform: GuestPlatform) -> None:
        self._sev = platform.sev

    def capture(self) -> bytes:
        """See `StatePart`."""
        return b"" if self._sev is None else msgspec.msgpack.encode(self._sev.save())

    def restore(self, data: bytes) -> None:
        """See `StatePart`."""
        if self._sev is not None and data:
            self._sev.load(msgspec.msgpack.decode(data, type=EsState))


class SeptPart:
    """A TD's page states, a `StatePart`: the Secure EPT is the truth about a page (fact T34)."""

    def __init__(self, platform: GuestPlatform) -> None:
        self._td = platform.td

    def capture(self) -> bytes:
        """See `StatePart`."""
        return b"" if self._td is None else self._td.sept.dump()

    def restore(self, data: bytes) -> None:
        """See `StatePart`."""
        if self._td is not None and data:
            self._td.sept.load(data)


class Station:
    """One machine with its host. `machine.ram` is empty at first and belongs to the caller until
    `settle`, which makes its content what `reset` returns to."""

    def __init__(self, kernel: Kernel, config: MachineConfig) -> None:
        self.kernel = kernel
        self.machine, self.platform = build_machine(kernel, config, Console(), load=False)
        self.machine.watch_memory(())
        if self.platform.td is not None:
            self.platform.td.watch()
        self.host = StatusHost(config.frames)
        self.machine.hooks.handler = self.host
        self.parts = state_parts(self.platform, self.host)

    def stop_at(self, address: int) -> None:
        """Ends a run at the instruction at `address`. Before code runs."""
        self.platform.hook_stop(address)

    def watch(self, address: int, see: Callable[[], None]) -> None:
        """Calls `see` whenever the instruction at `address` is about to execute."""

        def on_code(_uc: object, _rip: int, _size: int, _user: object) -> None:
            see()

        engine = self.machine.engine
        engine.add_hook(HOOK_CODE, CodeHook(on_code), begin=address, end=address)

    def receive(self, receiver: Receiver, packets: Iterable[Packet]) -> None:
        """Stores pages. Private ones are made current in the private view: the emulated CPU's page
        walk and its instruction fetch would not (memory.py)."""
        ram = self.machine.ram
        for packet in packets:
            receiver.deliver(packet)
            if packet.is_private:
                ram.read(Gpa(packet.gfn << PAGE_SHIFT), 1)

    def take_over(self, state: MachineState, code_moved: bool = False) -> None:
        """Becomes the guest whose pages have come."""
        restore_state(self.machine, state, self.parts, code_moved)

    def settle(self) -> None:
        """Makes the present content and state what `reset` returns to."""
        self.machine.checkpoint()

    def reset(self) -> None:
        """RAM as at `settle`; the CPU's state is whatever it was (`take_over` sets it)."""
        self.machine.rollback()

    def go_on(self) -> Exit:
        """Runs the guest from where it stands to its next exit."""
        vcpu = self.machine.current
        return vcpu.run(vcpu.read_register("rip"), BUDGET)

    def capture(self) -> MachineState:
        """The state of the guest, without its pages."""
        return capture_state(self.machine, self.parts)

    def close(self) -> None:
        """Frees the CPU."""
        self.machine.close()


def state_parts(platform: GuestPlatform, host: StatusHost) -> dict[str, StatePart]:
    """What travels beside CPU, MSRs and pages."""
    return {
        "clock": ClockPart(platform),
        "sev": SevPart(platform),
        "sept": SeptPart(platform),
        "status": host,
    }


def touched_frames(machine: Machine) -> list[int]:
    """Frames of which either view was ever written; all others read zero."""
    ram = machine.ram
    found: set[int] = set()
    for view in (ram.private, ram.shared):
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        found.update(resident_pages(address, ram.frames))
    return sorted(found)


def send_frames(sender: Sender, frames: Iterable[int], shared: bytes | bytearray) -> list[Packet]:
    """A packet of each frame, sent by its status."""
    return [sender.send(Gfn(gfn), not shared[gfn]) for gfn in frames]
