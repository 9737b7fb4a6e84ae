# SPDX-License-Identifier: GPL-2.0-or-later
"""What a hypervisor does to a running guest, before an instruction that is named by its number.

On hardware the host's kernel gets the CPU between any two instructions of its guest (a timer, a
physical interrupt), and may then change the nested tables or inject an event. Here the instructions
that begin are counted, from the first order on; at the number ordered the CPU stops before the
instruction, the order is carried out, and the guest is entered again. Repetitions of a string
instruction count one by one, and the instruction before which the CPU stopped counts again.

An order may also count from an event of the machine's log: what matters to a conversion happens
between two of them, in a few of the tens of thousands of instructions that it has.

A machine without orders pays nothing. The counter is a hook of every instruction: it is put in by
the first order and stays. It takes the hooks of single instructions in, which a kernel has hundreds
of (`Engine.take_sites`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from guestemu.events.log import EventLog
from guestemu.machine.callbacks import CodeHook, SiteHook
from guestemu.machine.engine import HOOK_CODE, Engine
from guestemu.machine.exits import Exit
from guestemu.machine.native import HostCode

if TYPE_CHECKING:
    from guestemu.machine.hooks import CpuHooks
    from guestemu.machine.vcpu import Vcpu

Order = Callable[["Vcpu"], Exit | None]
"""What is done while the CPU stands: an exit to end the run with, or None to enter the guest."""

_NEVER: Final = 0
_HASHES: Final = 1 << 16


class _InstructionWatch(ctypes.Structure):
    """The record that the native hook works on; layout as in native/hooks.c."""

    _fields_ = (
        ("count", ctypes.c_uint64),
        ("at", ctypes.c_uint64),
        ("reached", ctypes.c_void_p),
        ("sites", ctypes.c_void_p),
        ("at_site", ctypes.c_void_p),
    )


def _hash(address: int) -> int:
    """Place of an instruction in the table of sites; as in native/hooks.c."""
    return (address ^ address >> 16) & _HASHES - 1


class Intervention(msgspec.Struct, frozen=True):
    """Orders that are due before the instruction where the CPU stands, in the order given."""

    orders: tuple[Order, ...]

    def carry_out(self, vcpu: Vcpu) -> Exit | None:
        """Carries them out; the first exit ends it."""
        for order in self.orders:
            ended = order(vcpu)
            if ended is not None:
                return ended
        return None


class _Held(msgspec.Struct):
    """An order that waits for so many events more."""

    events: int
    after: int
    order: Order


class Interventions:
    """The orders of one machine. A `Device`: a rollback forgets them."""

    def __init__(self, engine: Engine, hooks: CpuHooks, code: HostCode, log: EventLog) -> None:
        self._engine = engine
        self._hooks = hooks
        self._log = log
        self._due: list[tuple[int, Order]] = []
        self._held: list[_Held] = []
        self._events = 0
        self._watch = _InstructionWatch()
        self._reached_hook = CodeHook(self._on_reached)
        self._watch.reached = ctypes.cast(self._reached_hook, ctypes.c_void_p)
        self._sites: dict[int, tuple[Callable[..., object], ...]] = {}
        self._site_hook = SiteHook(self._on_site)
        self._watch.at_site = ctypes.cast(self._site_hook, ctypes.c_void_p)
        self._site_bits = (ctypes.c_uint64 * (_HASHES // 64))()
        self._watch.sites = ctypes.addressof(self._site_bits)
        if code.available:
            self._sites = engine.take_sites()
            for rip in self._sites:
                place = _hash(rip)
                self._site_bits[place // 64] |= 1 << place % 64
            engine.add_native_hook(HOOK_CODE, code.instruction_hook, self._watch)
        else:
            engine.add_hook(HOOK_CODE, CodeHook(self._on_instruction))
        engine.flush_blocks()

    @property
    def begun(self) -> int:
        """Instructions that began since the first order."""
        return int(self._watch.count)

    def wait(self, events: int) -> None:
        """The next order counts its instructions from the `events`th event of the log from then on,
        0 for at once."""
        self._events = events

    def after(self, instructions: int, order: Order) -> None:
        """Orders `order` for when the guest has begun `instructions` more."""
        events, self._events = self._events, 0
        if events:
            self._held.append(_Held(events, instructions, order))
            self._log.counter = self._on_event
        else:
            self._count(instructions, order)

    def _count(self, instructions: int, order: Order) -> None:
        self._due.append((self._watch.count + instructions + 1, order))
        self._watch.at = min(at for at, _order in self._due)

    def _on_event(self) -> None:
        for held in self._held:
            held.events -= 1
        ready = [held for held in self._held if not held.events]
        self._held = [held for held in self._held if held.events]
        if not self._held:
            self._log.counter = None
        for held in ready:
            self._count(held.after, held.order)

    def checkpoint(self) -> None:
        """See `Device`; orders do not outlive a rollback."""

    def rollback(self) -> None:
        """See `Device`."""
        self._due.clear()
        self._held.clear()
        self._events = 0
        self._log.counter = None
        self._watch.at = _NEVER

    def _on_instruction(self, uc: object, address: int, size: int, user: object) -> None:
        self._watch.count += 1
        if self._watch.count == self._watch.at:
            self._on_reached(uc, address, size, user)

    def _on_site(self, uc: object, address: int, size: int, user: object) -> bool:
        """The hooks of one instruction; whether one of them stops the CPU before it begins."""
        stops = self._engine.stops
        for body in self._sites.get(address, ()):
            body(uc, address, size, user)
            if self._engine.stops != stops:
                return True
        return False

    def _on_reached(self, _uc: object, _address: int, _size: int, _user: object) -> None:
        try:
            now = self._watch.count
            orders = tuple(order for at, order in self._due if at <= now)
            self._due = [(at, order) for at, order in self._due if at > now]
            self._watch.at = min((at for at, _order in self._due), default=_NEVER)
            self._hooks.pending = Intervention(orders)
        except BaseException as error:
            self._hooks.errors.append(error)
        self._engine.stop()
