# SPDX-License-Identifier: GPL-2.0-or-later
"""A page-state request of one contiguous range in two calls into host machine code (psc.c).

Linux makes such a request for every conversion of a page. Answering it step by step, as `SnpPsc`
does with every other, costs Python five times what user space's answer costs.
"""

from __future__ import annotations

import ctypes
from typing import Final

from guestemu.abi.addresses import Gpa
from guestemu.machine.memory import GuestRam
from guestemu.machine.native import HostCode

_PAGE, _GPA, _HEADER_ONCE = range(3)
_FIELDS: Final = (
    *("page", "gpa", "header_once", "buffer", "index", "end"),
    *("gfn", "pages", "is_private", "is_2m", "info_1", "info_2"),
)
_ASKED: Final = _FIELDS.index("gfn")


class _PscRecord(ctypes.Structure):
    """The record that the native functions work on; layout as in native/psc.c."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in _FIELDS)


class PscRange:
    """Requests in the GHCBs of one machine. `code` has the native functions, `ram` is plain RAM."""

    def __init__(self, ram: GuestRam, code: HostCode) -> None:
        self._ram = ram
        self._record = _PscRecord()
        self._words = memoryview(self._record).cast("B").cast("Q")
        self._at = ctypes.c_void_p(ctypes.addressof(self._record))
        one = ctypes.PYFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)
        self._begin = one(code.psc_begin)
        self._done = ctypes.PYFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64)(
            code.psc_done
        )
        two = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64)
        self._answer = two(code.psc_answer)

    def begin(self, ghcb: Gpa, header_once: bool) -> list[int] | None:
        """The request in the GHCB at `ghcb`: gfn, pages, whether private, whether of 2 MiB,
        SW_EXITINFO1 and 2. None where it is of another kind; then nothing is done."""
        words = self._words
        words[_PAGE] = self._ram.shared_page(ghcb)
        words[_GPA] = ghcb
        words[_HEADER_ONCE] = header_once
        return words[_ASKED:].tolist() if self._begin(self._at) else None

    def done(self, answers: bool) -> bool:
        """User space has done it; False where KVM now finds more to do in the buffer. Else, if it
        `answers`, the request is answered with success, too."""
        self._ram.shared_page(Gpa(self._words[_GPA]))  # user space may have used its other view
        return bool(self._done(self._at, answers))

    def answer(self, info_2: int) -> None:
        """Writes the GHCB's answer."""
        self._answer(self._at, info_2)
