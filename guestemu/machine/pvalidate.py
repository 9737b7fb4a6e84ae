# SPDX-License-Identifier: GPL-2.0-or-later
"""PVALIDATE's operands: registers and page walk in one call into host machine code."""

from __future__ import annotations

import ctypes
from typing import Final

from guestemu.abi.addresses import U64_MASK
from guestemu.machine.engine import Engine, RegisterBatch
from guestemu.machine.memory import GuestRam
from guestemu.machine.native import HostCode

_NO_FRAME: Final = U64_MASK
_FIELDS: Final = (
    *("uc", "read_batch", "ids", "values", "count", "registers"),
    *("private_view", "frames", "bit"),
)


class _PvalidateRecord(ctypes.Structure):
    """The record that the native function works on; layout as in native/hooks.c."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in _FIELDS)


class PvalidateOperands:
    """The operands of PVALIDATE on one CPU, `registers` after each `read`: RAX, RCX, RDX, RFLAGS,
    CS, CR3. `cbit` is the C-bit of page-table entries as a mask."""

    def __init__(self, engine: Engine, ram: GuestRam, cbit: int, code: HostCode) -> None:
        self._batch = RegisterBatch(engine, ("rax", "rcx", "rdx", "rflags", "cs", "cr3"))
        self.registers = self._batch.values
        self._record = record = _PvalidateRecord()
        record.uc = engine.handle.value
        record.read_batch = engine.function("uc_reg_read_batch")
        record.ids, record.values, record.count = self._batch.addresses
        record.registers = self._batch.values_address
        record.private_view = ram.watch.private
        record.frames, record.bit = ram.frames, cbit
        self._at = ctypes.c_void_p(ctypes.addressof(record))
        self._frame = None
        if code.available and type(ram) is GuestRam:
            kind = ctypes.PYFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)
            self._frame = kind(code.pvalidate_frame)

    def read(self) -> int | None:
        """Fills `registers`; the frame of a 4 KiB page that CPL 0 maps with the C-bit. None: the
        caller has to look."""
        if self._frame is None:
            self._batch.read()
            return None
        gfn: int = self._frame(self._at)
        return None if gfn == _NO_FRAME else gfn
