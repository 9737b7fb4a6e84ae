# SPDX-License-Identifier: GPL-2.0-or-later
"""The link through a migration handler: private pages leave and enter the guest by code of its own
in a mirror VM, under a transport key that only the two handlers have (F5 to F13).

Both machines' firmware brings the same handler in pages that the guest does not use, so these do
not travel (F9). A page is named by its frame number times 4096, GPA and RAM address at once: guests
here have one block of RAM (`guestemu.study.mirror` has the others). The packet that opens a session
makes the receiver's VMM issue INIT.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gfn, RamAddr, gpa_of
from guestemu.abi.errors import InputError
from guestemu.host.firmware.memory import GuestDram
from guestemu.host.mirror.context import HandlerConfig
from guestemu.host.mirror.driver import MailboxHandler
from guestemu.host.mirror.mailbox import PageForm, PageHeader, Ret
from guestemu.host.mirror.placement import Placement, place_identity
from guestemu.host.mirror.vm import SharedRamMirror
from guestemu.machine.machine import Machine
from guestemu.machine.memory import GuestRam
from guestemu.migration.links import Link, LinkRefusal, Packet

FIRMWARE_PAGES: Final = (0xF0, 0xF1, 0xF3, 0xF4, 0xF6, 0xF7, 0xF9)
"""Frames of the handler's private pages, in the BIOS area: no guest takes it for RAM. They are not
contiguous, as the prototype's (F9)."""

FIRMWARE_MAILBOX: Final = 0xFC
"""The mailbox's first frame."""

TRANSPORT_KEY: Final = bytes(range(0xA0, 0xB0))
"""The key that the guest's owner provides to both handlers."""

SOURCE_NAME: Final = 1
DESTINATION_NAME: Final = 2
"""How the handlers name themselves in headers."""

_COUNT: Final = 0xFFFF_FFFF


class HandlerRefusal(LinkRefusal):
    """A handler answered a command of a migration with an error: `function` and `address` of the
    command, `ret` as in `mailbox.Ret`. QEMU's migration gives up with -EIO (F13)."""

    def __init__(self, function: str, address: int, ret: int) -> None:
        names = {int(known): known.name.lower() for known in Ret}
        super().__init__(
            f"migration handler, {function} of {address:#x}: answered {ret}"
            f" ({names.get(ret, 'unknown')})"
        )
        self.function = function
        self.address = address
        self.ret = ret


def firmware_placement() -> Placement:
    """Where a guest's firmware has the handler."""
    return place_identity(
        (RamAddr(frame << PAGE_SHIFT) for frame in FIRMWARE_PAGES),
        RamAddr(FIRMWARE_MAILBOX << PAGE_SHIFT),
    )


def handler_frames(placement: Placement) -> frozenset[int]:
    """The frames of RAM that belong to the handler."""
    return frozenset(page.ram_addr >> PAGE_SHIFT for page in placement.pages)


def source_config(form: PageForm = PageForm.BOUND) -> HandlerConfig:
    """The configuration of the handler that a guest leaves by."""
    return HandlerConfig(TRANSPORT_KEY, SOURCE_NAME, DESTINATION_NAME, form)


def destination_config(form: PageForm = PageForm.BOUND) -> HandlerConfig:
    """The configuration of the handler that a guest comes in by."""
    return HandlerConfig(TRANSPORT_KEY, DESTINATION_NAME, SOURCE_NAME, form)


def machine_handler(
    machine: Machine, config: HandlerConfig, placement: Placement | None = None
) -> MailboxHandler:
    """A mirror of `machine`'s VM with a handler in it, whose pages are written.

    Raises `InputError` for a machine without memory encryption, with a cache model, or too small.
    """
    place = placement or firmware_placement()
    cbit = machine.config.cbit
    if cbit is None or machine.cache is not None:
        raise InputError(
            "migration handler: it needs a machine with a C-bit and without a cache model; "
            "migrate by another link"
        )
    if max(page.ram_addr for page in place.pages) >> PAGE_SHIFT >= machine.ram.frames:
        raise InputError(f"migration handler: RAM of {machine.ram.frames} frames; give it 1 MiB")
    handler = MailboxHandler(SharedRamMirror(machine.ram), place, config, cbit, machine.code)
    handler.install()
    return handler


class HandlerSender:
    """The source: private pages by SAVE of `handler`, shared ones as their bytes in DRAM."""

    def __init__(self, handler: MailboxHandler) -> None:
        self.handler = handler
        self._dram = GuestDram(handler.vm.ram)

    def begin(self) -> None:
        """INIT: the next packet opens a session. Raises `HandlerError`, `HandlerRefusal`."""
        _must("init", 0, self.handler.init())

    def send(self, gfn: Gfn, as_private: bool) -> Packet:
        """See `Sender`. Raises `HandlerError`, `HandlerRefusal` (a page of the handler's own)."""
        gpa = gpa_of(gfn)
        if not as_private:
            return Packet(gfn, False, self._dram.read(gpa, PAGE_SIZE))
        saved = self.handler.save(gpa)
        _must("save", gpa, saved.ret)
        return Packet(gfn, True, saved.page, saved.header)

    def finish(self) -> None:
        """RESET: no more pages leave in this session."""
        _must("reset", 0, self.handler.reset())


class HandlerReceiver:
    """The destination: private pages by RESTORE of `handler`."""

    def __init__(self, handler: MailboxHandler) -> None:
        self.handler = handler
        self._ram: GuestRam = handler.vm.ram
        self._dram = GuestDram(self._ram)
        self._is_open = False

    def deliver(self, packet: Packet) -> None:
        """See `Receiver`. Raises `HandlerError`, and `HandlerRefusal` for a packet that is not the
        one that follows, or that was changed; then nothing of the page was stored."""
        gpa = gpa_of(Gfn(packet.gfn))
        if not packet.is_private:
            self._dram.write(gpa, packet.data)
            return
        header = PageHeader.unpack(packet.header)
        if not self._is_open or (header is not None and not header.sequence & _COUNT):
            _must("init", 0, self.handler.init())
            self._is_open = True
        ret = self.handler.restore(gpa, packet.header, packet.data)
        self._ram.table_writes()  # the guest did not make these stores
        _must("restore", gpa, ret)

    def finish(self) -> None:
        """RESET: no more pages enter."""
        self._is_open = False
        _must("reset", 0, self.handler.reset())


def _must(function: str, address: int, ret: int) -> None:
    if ret != Ret.OK:
        raise HandlerRefusal(function, address, ret)


class HandlerLink(msgspec.Struct, frozen=True):
    """A link between two machines through their handlers; `frames` do not travel."""

    sender: HandlerSender
    receiver: HandlerReceiver
    frames: frozenset[int]

    @property
    def link(self) -> Link:
        """As other links."""
        return Link(self.sender, self.receiver)

    def open(self) -> None:
        """Handlers as new in both machines, whose RAM may have been put back, and a session."""
        self.sender.handler.install()
        self.receiver.handler.install()
        self.receiver.finish()
        self.sender.begin()

    def close(self) -> None:
        """Frees the mirrors' CPUs."""
        self.sender.handler.close()
        self.receiver.handler.close()


def handler_link(
    source: Machine,
    destination: Machine,
    form: PageForm = PageForm.BOUND,
    placement: Placement | None = None,
) -> HandlerLink:
    """Handlers in both machines, with an open session. Raises `InputError`, `HandlerError`."""
    place = placement or firmware_placement()
    sender = HandlerSender(machine_handler(source, source_config(form), place))
    receiver = HandlerReceiver(machine_handler(destination, destination_config(form), place))
    sender.begin()
    return HandlerLink(sender, receiver, handler_frames(place))
