# SPDX-License-Identifier: GPL-2.0-or-later
"""The VMM's side of the mailbox: writes a command, lets the handler run, reads the answer.

Source: the prototype's migration/confidential-ram.c (F13): the fields, then a barrier, then `go`;
waits up to 100 ms for `done`. The mirror's vCPU runs here until it halts, so time is counted in
basic blocks.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from guestemu.abi.addresses import PAGE_SIZE, Gpa, RamAddr, to_signed
from guestemu.abi.errors import InputError
from guestemu.host.mirror.context import (
    HandlerConfig,
    handler_code,
    handler_image,
    install_handler,
    start_cr3,
)
from guestemu.host.mirror.interface import HandlerError, HandlerStop, MirrorSlot, Saved, StopCause
from guestemu.host.mirror.mailbox import (
    DONE_OFFSET,
    GO_OFFSET,
    HEADER_MAX,
    HEADER_OFFSET,
    PAGE_OFFSET,
    RET_OFFSET,
    Function,
    Ret,
    pack_command,
)
from guestemu.host.mirror.placement import Placement
from guestemu.host.mirror.vcpu import MirrorVcpu, StartState
from guestemu.host.mirror.vm import SharedRamMirror
from guestemu.machine.native import HostCode

TIMEOUT_BLOCKS: Final = 1 << 16
"""The time-out in basic blocks; a page takes some hundred."""

_U32: Final = struct.Struct("<I")


class MailboxHandler:
    """See `interface.Handler`: a handler of handler.S in the mirror `vm`.

    `cbit` is the bit number of the processor's C-bit. The handler's pages are written by `install`
    (or came with a migrated guest: then `restart` is enough).
    """

    def __init__(
        self,
        vm: SharedRamMirror,
        placement: Placement,
        config: HandlerConfig,
        cbit: int,
        code: HostCode | None = None,
    ) -> None:
        self.vm = vm
        self.placement = placement
        self.config = config
        self._cbit = cbit
        self.timeout_blocks = TIMEOUT_BLOCKS
        self.vcpu = MirrorVcpu(vm, 1 << cbit, code or HostCode())
        self._mailbox = placement.mailbox.ram_addr
        self._slots: tuple[MirrorSlot, ...] | None = None
        self._aliases: tuple[Gpa, ...] | None = None
        self._image: Mapping[RamAddr, bytes] = {}
        self.restart()

    def install(self) -> None:
        """Writes the handler's pages into the guest's memory and starts its vCPU anew."""
        if self._slots is not self.vm.slots:
            self._slots = self.vm.slots
            aliases = tuple(
                gpa
                for page in self.placement.pages
                for gpa in self.vm.mirror_gpas_of(page.ram_addr)
            )
            if aliases != self._aliases:
                self._image = handler_image(self.placement, self.config, self._cbit, aliases)
                self._aliases = aliases
        install_handler(self.vm.ram, self.placement, self._image)
        self.restart()

    def restart(self) -> None:
        """Puts the vCPU into its start state; sessions stay what the context page says."""
        place = self.placement
        entry = place.gva(place.code.mirror_gpa) + handler_code().symbols["handler_entry"]
        self.vcpu.watch_code(place.code.ram_addr)
        self.vcpu.start(
            StartState(
                rip=entry,
                rsp=place.gva(place.stack.mirror_gpa) + PAGE_SIZE,
                rdi=place.gva(place.context.mirror_gpa),
                cr3=start_cr3(place, self.config, self._cbit),
            )
        )

    # The mailbox, as the host reaches it ------------------------------------------------------

    def read_mailbox(self, offset: int, size: int) -> bytes:
        """`size` bytes of the mailbox's two pages."""
        return self.vm.ram.read(Gpa(self._mailbox + offset), size, private=False)

    def write_mailbox(self, offset: int, data: bytes) -> None:
        """Stores into the mailbox's two pages."""
        self.vm.ram.write(Gpa(self._mailbox + offset), data, private=False)

    def command(self, nr: int, address: int = 0) -> int:
        """Any command, `nr` and `address` as 64 bits; `ret` of the answer. `HandlerError` where
        there is none."""
        self.write_mailbox(0, pack_command(nr, address))
        self.write_mailbox(GO_OFFSET, _U32.pack(1))
        stop = self.vcpu.run(self.timeout_blocks)
        if stop is not None:
            raise HandlerError(HandlerStop(stop.cause, nr, address, stop.rip, stop.detail))
        if self.read_mailbox(DONE_OFFSET, 4) == _U32.pack(0):
            raise HandlerError(
                HandlerStop(StopCause.TIMEOUT, nr, address, self.vcpu.rip, self.vcpu.blocks_run)
            )
        return to_signed(_U32.unpack(self.read_mailbox(RET_OFFSET, 4))[0], 32)

    # The functions ----------------------------------------------------------------------------

    def init(self) -> int:
        """See `interface.Handler`."""
        return self.command(Function.INIT)

    def save(self, address: int) -> Saved:
        """See `interface.Handler`. A header longer than 1024 bytes is an answer without header, as
        QEMU refuses it; `ret` is then AUTHENTICATION."""
        ret = self.command(Function.SAVE, address)
        if ret != Ret.OK:
            return Saved(ret, b"", b"")
        (length,) = _U32.unpack(self.read_mailbox(HEADER_OFFSET, 4))
        if length > HEADER_MAX:
            return Saved(Ret.AUTHENTICATION, b"", b"")
        return Saved(
            ret,
            self.read_mailbox(HEADER_OFFSET + 4, length),
            self.read_mailbox(PAGE_OFFSET, PAGE_SIZE),
        )

    def restore(self, address: int, header: bytes, page: bytes) -> int:
        """See `interface.Handler`. `InputError` for a header or page of a wrong length."""
        if len(header) > HEADER_MAX or len(page) != PAGE_SIZE:
            raise InputError(
                f"packet of {len(header)} and {len(page)} bytes: give a header of at most "
                f"{HEADER_MAX} bytes and a page"
            )
        self.write_mailbox(HEADER_OFFSET, _U32.pack(len(header)) + header)
        self.write_mailbox(PAGE_OFFSET, page)
        return self.command(Function.RESTORE, address)

    def reset(self) -> int:
        """See `interface.Handler`."""
        return self.command(Function.RESET)

    def close(self) -> None:
        """Frees the mirror's CPU."""
        self.vcpu.close()
