# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiled half of the fast path (the C beside this file), loaded into this process."""

from __future__ import annotations

import ctypes
from functools import cache

from guestemu.campaign.fastpath.records import FastRecord, ShadowRecord
from guestemu.native import load
from guestemu.native.build import FASTPATH


class FastLibrary:
    """Its functions; `one` and `slow_access` are host addresses for libFuzzer and the emulator."""

    def __init__(self, library: ctypes.PyDLL) -> None:
        library.fast_size.restype = ctypes.c_uint64
        library.fast_run.restype = ctypes.c_bool
        library.fast_run.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        library.fast_one.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
        library.fast_shadow_judge.restype = ctypes.c_bool
        library.fast_shadow_judge.argtypes = (
            *(ctypes.c_void_p, ctypes.c_char_p),
            *(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64),
        )
        self._library = library
        self.one = ctypes.cast(library.fast_one, ctypes.c_void_p)
        self.slow_access = ctypes.cast(library.fast_slow_access, ctypes.c_void_p).value or 0

    def use(self, record: FastRecord | None) -> None:
        """What the next executions work on."""
        self._library.fast_use(None if record is None else ctypes.byref(record))

    def judge(self, record: FastRecord, replies: bytes, calls: int, start: int, end: int) -> bool:
        """Judges what a native handler replied to the logged programs from `start` to before `end`;
        False where that does not reply to their requests."""
        at = ctypes.addressof(record)
        return bool(self._library.fast_shadow_judge(at, replies, calls, start, end))

    def run(self, data: bytes) -> bool:
        """One execution; False where it is none of the common ones."""
        return bool(self._library.fast_run(data, len(data)))

    def run_at(self, address: int, size: int) -> bool:
        """The same with `size` bytes at host `address`."""
        return bool(self._library.fast_run(address, size))

    def test_one_input(self, data: bytes) -> None:
        """What libFuzzer calls."""
        self._library.fast_one(data, len(data))


@cache
def load_library() -> FastLibrary | None:
    """The library; None where there is none (`guestemu.native.why_not`)."""
    library = load(FASTPATH)
    if library is None:
        return None
    size: int = library.fast_size()
    ours = ctypes.sizeof(FastRecord) + ctypes.sizeof(ShadowRecord)
    return FastLibrary(library) if size == ours else None
