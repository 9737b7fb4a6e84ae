# SPDX-License-Identifier: GPL-2.0-or-later
"""The two ends of a migration: a running guest that leaves, and a machine that takes it in.

The destination is a guest of the same configuration under another key, at another place in another
host's memory. It knows of the source only what packets, the handover and the bulk say: `Source`
and `Destination` can be in two processes (stream.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa
from guestemu.guest.base import Guest
from guestemu.host.base import Host
from guestemu.host.firmware.memory import GuestDram, placed_cipher
from guestemu.machine.memory import GuestRam
from guestemu.migration.host_record import HostRecord, capture_host, restore_host
from guestemu.migration.links import Packet, PlainReceiver, Receiver, Sender
from guestemu.migration.steps import PassSteps
from guestemu.migration.transfer import MachineState, capture_state, restore_state

DESTINATION_BASE: Final = 0x4_0000_0000
"""Where the destination's host keeps the guest's frame 0; the source's is at 0."""

_VMCALL: Final = b"\x0f\x01\xc1"
_VMMCALL: Final = b"\x0f\x01\xd9"
_NOTHING: Final = bytes(PAGE_SIZE)


class Handover(msgspec.Struct, frozen=True, tag="handover"):
    """What crosses when the guest stops, behind its last page.

    `patched` are the addresses of hypercall instructions that the source's KVM has rewritten (the
    bytes themselves are in the pages).
    """

    machine: MachineState
    host: HostRecord
    patched: tuple[int, ...]


def bulk_packets(guest: Guest) -> Iterable[Packet]:
    """What `guest` held at its checkpoint, where every run begins; as a plain link sends it."""
    for gfn, is_private, content in guest.machine.ram.base_pages():
        yield Packet(gfn, is_private, content)


def used_frames(ram: GuestRam) -> frozenset[int]:
    """The frames of `ram` that hold anything: had content at the checkpoint or were written since.
    All others read as zeros in the private view, at both ends."""
    if ram.has_crossing:
        ram.find_unseen_writes()
    return frozenset(gfn for gfn, _, _ in ram.base_pages()) | ram.dirty_frames()


class Source:
    """A running guest on its way out. `steps` are the host's over `frames`; `deliver` takes the
    packets. Frames in `own` (a migration handler's) do not travel."""

    def __init__(
        self,
        guest: Guest,
        host: Host,
        sender: Sender,
        frames: Iterable[int],
        deliver: Callable[[Packet], None],
        own: frozenset[int] = frozenset(),
    ) -> None:
        self._own = own
        self._guest = guest
        self._host = host
        self._sender = sender
        self._frames = frozenset(frames)
        self._deliver = deliver
        self.steps = PassSteps(guest.machine.ram, host, sender, self._frames, deliver)

    def finish(self, arrived: Callable[[], None] | None = None) -> Handover:
        """With the guest stopped: sends every other frame that was written since the checkpoint by
        the host's record, and gives the rest of the state. `arrived` is called behind the last
        packet: nothing may be on its way when the receiver ends."""
        machine = self._guest.machine
        ram = machine.ram
        if ram.has_crossing:
            ram.find_unseen_writes()
        status = self._host.private_map()
        for gfn in sorted(ram.dirty_frames() - self._frames - self._own):
            self._deliver(self._sender.send(Gfn(gfn), bool(status[gfn])))
        if arrived is not None:
            arrived()
        self._sender.finish()
        patched = tuple(rip for rip in machine.hooks.patched if rip >= 0)
        return Handover(capture_state(machine), capture_host(self._host), patched)


class Destination:
    """A guest and a host that wait for another guest's packets, the guest's RAM at
    `DESTINATION_BASE` in the host's memory."""

    def __init__(self, guest: Guest, host: Host) -> None:
        self.guest = guest
        self.host = host
        self._frames = guest.machine.config.frames
        self._dram = GuestDram(guest.machine.ram)
        self._receiver: Receiver = PlainReceiver(guest.machine.ram)
        self._place(guest.machine.config.key)

    def _place(self, key: bytes) -> None:
        self.guest.machine.ram.cipher = placed_cipher(key, DESTINATION_BASE >> PAGE_SHIFT)
        self._key = key

    def use(self, receiver: Receiver, key: bytes) -> None:
        """After `reset`: packets come by `receiver`, and the memory controller has `key`."""
        self._receiver = receiver
        self._place(key)

    def take_bulk(self, packets: Iterable[Packet]) -> None:
        """Replaces all that the guest's own boot left in RAM by `packets`, and makes that the state
        to which `reset` returns. Page tables must be those of this guest's own boot."""
        self.wipe()
        machine = self.guest.machine
        receiver = PlainReceiver(machine.ram)
        for packet in packets:
            receiver.deliver(packet)
        machine.hooks.forget_code()
        machine.engine.flush_tlb()
        machine.checkpoint()

    def reset(self) -> None:
        """Back to where the next migration can begin, by a plain link."""
        self.guest.reset()
        self.host.restore(self._frames)
        self._receiver = PlainReceiver(self.guest.machine.ram)
        if self._key != self.guest.machine.config.key:
            self._place(self.guest.machine.config.key)

    def wipe(self) -> None:
        """Forgets all that the guest's own boot left in RAM."""
        self.discard(gfn for gfn, _, _ in list(self.guest.machine.ram.base_pages()))

    def discard(self, frames: Iterable[int]) -> None:
        """Forgets the content of `frames`: they have not arrived yet."""
        for gfn in frames:
            self._dram.write(gfn << PAGE_SHIFT, _NOTHING)

    def deliver(self, packet: Packet) -> None:
        """Stores a page, and lets the map of leaves follow where it is a page table."""
        gfn = packet.gfn
        leaf_map = self.guest.leaf_map
        if not leaf_map.is_table(gfn):
            self._receiver.deliver(packet)
            return
        start = gfn << PAGE_SHIFT
        ram = self.guest.machine.ram
        before = bytes(ram.private[start : start + PAGE_SIZE])
        self._receiver.deliver(packet)
        ram.read(Gpa(start), 1)  # the map looks at the private buffer: make it current
        leaf_map.replace_table(gfn, before)

    def resume(self, handover: Handover) -> None:
        """Takes CPUs and host record over: the guest can go on here."""
        self._receiver.finish()
        machine = self.guest.machine
        restore_state(machine, handover.machine)
        for rip in handover.patched:
            machine.hooks.note_patch(rip, _VMCALL, _VMMCALL)
        restore_host(self.host, handover.host, machine.current)
