# SPDX-License-Identifier: GPL-2.0-or-later
"""A native exit handler in the shadow of the default host.

The default host answers in machine code; the exits that reach user space are logged, and the
handler's process gets several hundred of them in one message. Machine code (shadow.c) holds the
replies against the contract and the rules of guest memory. A program of which it is not sure runs
again in Python with the handler itself: only Python ever reports anything.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from bitarray import bitarray

from guestemu.abi.errors import HostFailedError
from guestemu.campaign.fastpath.records import (
    MAX_PROGRAMS,
    MAX_REQUESTS,
    FastRecord,
    ShadowRecord,
    SlotRecord,
)
from guestemu.host.base import Host
from guestemu.host.native import wire
from guestemu.host.native.host import NativeHost
from guestemu.host.native.process import HandlerProcess
from guestemu.runner.testbed import HOST_FAILED

if TYPE_CHECKING:
    from guestemu.campaign.fastpath.library import FastLibrary
    from guestemu.campaign.session import Session

_WRONG: Final = 1
_UNSURE: Final = 2


def why_no_shadow(host: NativeHost) -> str:
    """Why `host` cannot be asked in batches; empty if it can."""
    handler = host.user.handler
    if not isinstance(handler, HandlerProcess):
        return f"host {host.name} answers in this process"
    if handler.has_map:
        return f"host {host.name} exports a record of its own"
    if host.counts_blocks:
        return f"host {host.name} says at each exit which of its blocks ran"
    return ""


class Shadow:
    """The log of one session's fast path, `record`, for the handler behind `host`."""

    def __init__(
        self, session: Session, library: FastLibrary, record: FastRecord, host: NativeHost
    ) -> None:
        self.log = ShadowRecord()
        self._session = session
        self._library = library
        self._fast = record
        self._host = host
        self._deaths = ""
        """How the handler died in this batch, if it did."""
        memory = host.guest_memory
        slots = memory.slots[: wire.MAX_SLOTS]
        self._requests = ctypes.create_string_buffer(MAX_REQUESTS * wire.REQUEST.size)
        self._inputs = ctypes.create_string_buffer(MAX_PROGRAMS * session.executor.max_size)
        self._slots = (SlotRecord * len(slots))(
            *(
                SlotRecord(slot.gpa, slot.size, slot.memfd_offset, wire.slot_flags(slot))
                for slot in slots
            )
        )
        log = self.log
        log.requests = ctypes.addressof(self._requests)
        log.inputs = ctypes.addressof(self._inputs)
        log.slots = ctypes.addressof(self._slots)
        log.slot_count = len(slots)
        log.all.assign(_all(memory.frames))
        log.private_backing.assign(memory.private_backing)
        log.open.assign(_open(host, memory.frames))
        self._ask = self.ask
        log.ask = id(self._ask)
        record.shadow = ctypes.addressof(log)

    def ask(self) -> None:
        """Asks the handler about everything that is logged, and looks into what is not right."""
        log = self.log
        count = log.program_count
        if not count:
            return
        inputs = self._inputs.raw
        texts = [inputs[one.input : one.input + one.input_size] for one in log.programs[:count]]
        self._deaths = ""
        begin = 0
        while begin < count:
            begin = self._judge(begin, count)
        verdicts = [one.verdict for one in log.programs[:count]]
        log.count = log.begin = log.input_size = log.program_count = 0
        if any(verdicts):
            self._fast.is_foreign = True
            self._look_again(texts, verdicts)

    def _judge(self, start: int, end: int, is_safe: bool = False) -> int:
        """Has programs judged, up to the first on which the handler dies, which Python shall look
        into; the number of the one behind. `is_safe`: none of them should kill it."""
        programs, size = self.log.programs, wire.REQUEST.size
        first, last = programs[start].first, programs[end - 1]
        handler = self._host.user.handler
        assert isinstance(handler, HandlerProcess)
        try:
            requests = self._requests.raw[first * size : (last.first + last.count) * size]
            answered = handler.exchange(requests)
        except HostFailedError as error:
            self._deaths = str(error)
            answered = b"", 0
        if isinstance(answered, int):
            killer = start
            while first + answered >= programs[killer].first + programs[killer].count:
                killer += 1
            if killer > start and not is_safe:
                self._judge(start, killer, is_safe=True)
            else:
                self._doubt(start, killer)
            self._doubt(killer, killer + 1)
            self._deaths = self._deaths or "the native handler died once"
            return killer + 1
        if not self._library.judge(self._fast, *answered, start, end):
            self._doubt(start, end)
        return end

    def _doubt(self, start: int, end: int) -> None:
        for number in range(start, end):
            self.log.programs[number].verdict = _UNSURE

    def _look_again(self, inputs: Sequence[bytes], verdicts: Sequence[int]) -> None:
        """Runs what is not right with the handler itself."""
        session, before, is_found = self._session, b"", False
        for data, verdict in zip(inputs, verdicts, strict=True):
            if verdict:
                is_found |= session.look_again(data, before if verdict == _WRONG else None)
            before = data
        if self._deaths and not is_found:
            session.file_once(inputs[-1], HOST_FAILED, self._deaths)


def _all(frames: int) -> bitarray:
    bits = bitarray(frames, endian="little")
    bits.setall(True)
    return bits


def _open(host: Host, frames: int) -> bitarray:
    bits = bitarray(frames, endian="little")
    bits.setall(False)
    for first, end in host.open_frames:
        bits[first : min(end, frames)] = True
    return bits
