# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration as one stream of bytes each way, between two processes.

A message is a length (be32) and that many bytes of MessagePack. The destination offers its
certificates or asks for plain packets; the source answers with what opens a session, then come the
pages and the handover. What crosses is exactly this: nothing of a source is read otherwise.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, Final, TypeAlias

import msgspec

from guestemu.abi.errors import InputError
from guestemu.guest.base import Guest
from guestemu.host.base import Host
from guestemu.migration.endpoints import (
    DESTINATION_BASE,
    Destination,
    Handover,
    Source,
    used_frames,
)
from guestemu.migration.firmware_link import FirmwareReceiver, FirmwareSender, Offer, Opening
from guestemu.migration.links import Packet, PlainSender

MAX_MESSAGE: Final = 16 << 20
"""Bytes of the longest message that is read."""

_LENGTH: Final = struct.Struct(">I")


class PlainRequest(msgspec.Struct, frozen=True, tag="plain"):
    """The destination's host can write through the guest's key: private content comes as it is."""


Message: TypeAlias = PlainRequest | Offer | Opening | Packet | Handover


class MessageChannel:
    """Messages over two byte streams, one in each direction."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._decoder = msgspec.msgpack.Decoder(Message)
        self.bytes_sent = 0

    def put(self, message: Message) -> None:
        """Sends a message."""
        data = msgspec.msgpack.encode(message)
        self._outgoing.write(_LENGTH.pack(len(data)) + data)
        self.bytes_sent += _LENGTH.size + len(data)

    def flush(self) -> None:
        """Sends what is buffered."""
        self._outgoing.flush()

    def get(self) -> Message:
        """The next message. Raises `InputError` where the stream ends or holds something else."""
        (size,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if size > MAX_MESSAGE:
            raise InputError(f"migration stream: a message of {size} bytes; {_REMEDY}")
        try:
            message: Message = self._decoder.decode(self._read(size))
        except msgspec.MsgspecError as error:
            raise InputError(f"migration stream: {error}; {_REMEDY}") from None
        return message

    def _read(self, size: int) -> bytes:
        data = self._incoming.read(size)
        if len(data) < size:
            raise InputError(f"migration stream: it ends inside a message; {_REMEDY}")
        return data


_REMEDY: Final = "connect it to the other end of this version"


def offer_guest(channel: MessageChannel, guest: Guest, host: Host) -> Source:
    """The source's side up to the first page: waits for the destination's wish and opens the link.

    The steps of the source that is returned are over all frames that the guest uses; its
    `finish` gives the handover, which is for the caller to put. Raises `InputError` for a stream
    that says something else, `SevIoctlError` where the firmware refuses the destination.
    """
    wish = channel.get()
    machine = guest.machine
    frames = used_frames(guest.machine.ram)
    if isinstance(wish, PlainRequest):
        return Source(guest, host, PlainSender(machine.ram), frames, channel.put)
    if not isinstance(wish, Offer):
        raise InputError(f"migration stream: {type(wish).__name__} came first; {_REMEDY}")
    sender = FirmwareSender(machine.ram, machine.config.key, policy=0)
    channel.put(sender.open(wish))
    return Source(guest, host, sender, frames, channel.put)


def accept_guest(channel: MessageChannel, guest: Guest, host: Host, firmware: bool) -> Destination:
    """The destination's side, to the end: `guest`, booted with the source's configuration and then
    wiped, becomes the guest that came. Raises `InputError`, `SevIoctlError`."""
    destination = Destination(guest, host)
    destination.reset()
    destination.wipe()
    if firmware:
        receiver = FirmwareReceiver(guest.machine.ram, DESTINATION_BASE)
        channel.put(receiver.offer())
        channel.flush()
        opening = channel.get()
        if not isinstance(opening, Opening):
            raise InputError(f"migration stream: {type(opening).__name__} came first; {_REMEDY}")
        destination.use(receiver, receiver.open(opening))
    else:
        channel.put(PlainRequest())
        channel.flush()
    while True:
        message = channel.get()
        if isinstance(message, Packet) and message.gfn < guest.machine.config.frames:
            destination.deliver(message)
        elif isinstance(message, Handover):
            destination.resume(message)
            return destination
        else:
            raise InputError(f"migration stream: {type(message).__name__} among pages; {_REMEDY}")
