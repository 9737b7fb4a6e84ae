# SPDX-License-Identifier: GPL-2.0-or-later
"""Links: how one page gets from a source's RAM to a destination's.

A sender makes a packet of a page, a receiver stores it; nothing but packets goes between the two.
The sender says whether the page is private. A wrong statement is not noticed: a private send
decrypts what was never encrypted, a plain send moves ciphertext that no other key reads (G.2, C15,
E31).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, Gfn, gpa_of
from guestemu.abi.errors import GuestemuError
from guestemu.host.firmware.memory import GuestDram
from guestemu.machine.memory import GuestRam


class LinkRefusal(GuestemuError):
    """An end of a link refuses what it is given: the firmware by an ioctl's error, a migration
    handler by its answer. QEMU's migration gives up with -EIO."""


class Packet(msgspec.Struct, frozen=True, tag="page"):
    """One page on its way: frame number, how it was sent, 4096 bytes.

    `data` are DRAM bytes for a plain send; for a private one the content (plain link) or what the
    firmware encrypted under the transport key, with its 52-byte `header` (firmware link).
    """

    gfn: int
    is_private: bool
    data: bytes
    header: bytes = b""


class Sender(Protocol):
    """The source's end."""

    def send(self, gfn: Gfn, as_private: bool) -> Packet:
        """The packet of frame `gfn` as it is now."""

    def finish(self) -> None:
        """After the last packet."""


class Receiver(Protocol):
    """The destination's end."""

    def deliver(self, packet: Packet) -> None:
        """Stores the page of `packet`."""

    def finish(self) -> None:
        """After the last packet: the guest may run."""


@dataclass(frozen=True, slots=True)
class Link:
    """Both ends, where source and destination are in one process."""

    sender: Sender
    receiver: Receiver

    def send(self, gfn: Gfn, as_private: bool) -> Packet:
        """See `Sender`."""
        return self.sender.send(gfn, as_private)

    def deliver(self, packet: Packet) -> None:
        """See `Receiver`."""
        self.receiver.deliver(packet)


class PlainSender:
    """A host that can read through the guest's key: a private page leaves as Dec(Ks, DRAM)."""

    def __init__(self, ram: GuestRam) -> None:
        self._ram = ram
        self._dram = GuestDram(ram)

    def send(self, gfn: Gfn, as_private: bool) -> Packet:
        """See `Sender`."""
        if as_private:
            data = self._ram.read(gpa_of(gfn), PAGE_SIZE)
        else:
            data = self._dram.read(gpa_of(gfn), PAGE_SIZE)
        return Packet(gfn, as_private, data)

    def finish(self) -> None:
        """Nothing is left to do."""


class PlainReceiver:
    """The other such host: private content is stored as Enc(Kd, content), DRAM bytes as they are.

    Mirrored low frames count as private memory (`GuestDram`).
    """

    def __init__(self, ram: GuestRam) -> None:
        self._ram = ram
        self._dram = GuestDram(ram)

    def deliver(self, packet: Packet) -> None:
        """See `Receiver`."""
        gpa = gpa_of(Gfn(packet.gfn))
        if packet.is_private:
            self._ram.write(gpa, packet.data)
        else:
            self._dram.write(gpa, packet.data)

    def finish(self) -> None:
        """Nothing is left to do."""


def plain_link(source: GuestRam, destination: GuestRam) -> Link:
    """A link of hosts that re-encrypt: Dec(Ks) -> Enc(Kd) for private pages."""
    return Link(PlainSender(source), PlainReceiver(destination))
