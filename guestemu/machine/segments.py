# SPDX-License-Identifier: GPL-2.0-or-later
"""The change from CPL 3 to CPL 0 that an exception, an interrupt or SYSCALL makes (fact U2).

The emulator's library has no call for it: writing CS does not change the level. The level, CS and
SS are parts of the saved context, whose layout belongs to one build of the library; where they are
is found by comparing two contexts of the machine's own, at CPL 0 and at CPL 3.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from guestemu.abi.errors import EngineError
from guestemu.abi.x86 import Mode
from guestemu.machine import layout
from guestemu.machine.engine import Context, Engine
from guestemu.machine.modes import ModeTable

_SEGMENT: Final = 24
"""Bytes of one cached segment: selector, base, limit, flags; CS and SS are neighbours."""

_LEVEL: Final = 3
_LONG_MODE: Final = 1 << 14 | 1 << 15
_OF_CONTROL_REGISTERS: Final = 1 << 9 | 1 << 10 | 1 << 11 | 1 << 22
"""Bits of the CPU's cached flags that follow CR0.MP, EM, TS and CR4.OSFXSR: never the level's."""


class SegmentLayout(msgspec.Struct, frozen=True):
    """Byte offsets in a raw context: the cached flags with the level, and CS."""

    flags: int
    code: int


def segment_layout(modes: ModeTable) -> SegmentLayout:
    """The offsets for the library that is loaded; `EngineError` if none fit."""
    kernel = modes.context(Mode.LONG64, 0).bytes
    user = modes.context(Mode.LONG64, 3).bytes
    words = len(kernel) // 4
    inside, outside = (struct.unpack_from(f"<{words}I", one) for one in (kernel, user))
    flags = [
        index
        for index in range(words)
        if inside[index] & outside[index] & _LONG_MODE == _LONG_MODE
        and not inside[index] & _LEVEL
        and outside[index] & _LEVEL == _LEVEL
    ]
    selectors = (
        (inside, layout.CODE64_BY_CPL[0], layout.DATA_BY_CPL[0]),
        (outside, layout.CODE64_BY_CPL[3], layout.DATA_BY_CPL[3]),
    )
    step = _SEGMENT // 4
    code = [
        index
        for index in range(words - 2 * step)
        if all(
            (found[index], found[index + step]) == (code, data) and found[index + 4] == 0xFFFFFFFF
            for found, code, data in selectors
        )
    ]
    if len(flags) != 1 or len(code) != 1:
        raise EngineError(
            f"this build of libunicorn keeps segments elsewhere ({len(flags)} and {len(code)} "
            "candidates in its context); use unicorn 2.1.x"
        )
    return SegmentLayout(4 * flags[0], 4 * code[0])


class KernelSegments:
    """CS, SS and level of a kernel, taken from the CPU where it executes the kernel at CPL 0."""

    def __init__(self, engine: Engine, modes: ModeTable) -> None:
        self._layout = segment_layout(modes)
        self._scratch = Context(engine)
        context = self._scratch.bytes
        (self._flags,) = struct.unpack_from("<I", context, self._layout.flags)
        start = self._layout.code
        self._segments = bytes(context[start : start + 2 * _SEGMENT])
        if self._flags & _LEVEL:
            raise EngineError("the CPU is not at CPL 0")

    @property
    def state(self) -> tuple[int, bytes]:
        """For a snapshot: the cached flags, and CS and SS as the library keeps them."""
        return self._flags, self._segments

    def load(self, state: tuple[int, bytes]) -> None:
        """As `state` returned it."""
        self._flags, self._segments = state

    def enter(self) -> None:
        """CPL becomes 0. Every other register, MSR and the FPU stay as they are."""
        context, where = self._scratch, self._layout
        context.save()
        (flags,) = struct.unpack_from("<I", context.bytes, where.flags)
        kept = flags & _OF_CONTROL_REGISTERS
        struct.pack_into(
            "<I", context.bytes, where.flags, self._flags & ~_OF_CONTROL_REGISTERS | kept
        )
        context.bytes[where.code : where.code + 2 * _SEGMENT] = self._segments
        context.restore()
