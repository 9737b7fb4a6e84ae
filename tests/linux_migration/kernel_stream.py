# SPDX-License-Identifier: GPL-2.0-or-later
"""One whole migration of a kernel through the firmware, as two streams of bytes.

The destination begins with its certificates, the source answers with an open session; then come all
pages, SEND_FINISH, and the rest of the state. Nothing else crosses: source and destination may be
two processes that agree on the kernel's image and the machine's configuration (except for its key).
"""

from __future__ import annotations

from collections.abc import Iterable

from guestemu.abi.addresses import Gfn
from guestemu.abi.errors import InputError
from guestemu.migration.endpoints import Handover
from guestemu.migration.firmware_link import FirmwareReceiver, FirmwareSender, Offer, Opening
from guestemu.migration.host_record import HostRecord
from guestemu.migration.links import Packet
from guestemu.migration.stream import MessageChannel
from guestemu.migration.sweep.connection import GUEST_AT
from guestemu.migration.sweep.station import Station

_NO_RECORD = HostRecord((), True)
"""The status of frames is a part of the machine's state here (`StatusHost`)."""


def send_guest(channel: MessageChannel, station: Station, frames: Iterable[int]) -> int:
    """Sends the stopped guest of `station` with the content of `frames`; the number of frames.

    Raises `InputError` for a destination that says something else, `SevIoctlError` for one that
    the firmware refuses.
    """
    offer = channel.get()
    if not isinstance(offer, Offer):
        raise InputError(f"migration stream: {type(offer).__name__} came first, not an offer")
    machine = station.machine
    state = station.capture()
    sender = FirmwareSender(machine.ram, machine.config.key, policy=0)
    channel.put(sender.open(offer))
    count = 0
    for gfn in frames:
        channel.put(sender.send(Gfn(gfn), not station.host.shared[gfn]))
        count += 1
    sender.finish()
    channel.put(Handover(state, _NO_RECORD, ()))
    channel.flush()
    return count


def receive_guest(channel: MessageChannel, station: Station) -> None:
    """Makes the empty `station` the guest that comes. Raises `InputError` for a stream that says
    something else, `SevIoctlError` for a packet that was changed on its way."""
    receiver = FirmwareReceiver(station.machine.ram, GUEST_AT)
    channel.put(receiver.offer())
    channel.flush()
    message = channel.get()
    if not isinstance(message, Opening):
        raise InputError(f"migration stream: {type(message).__name__} came, not an opening")
    receiver.open(message)
    while isinstance(message := channel.get(), Packet):
        station.receive(receiver, (message,))
    if not isinstance(message, Handover):
        raise InputError(f"migration stream: {type(message).__name__} came behind the pages")
    receiver.finish()
    station.take_over(message.machine)
