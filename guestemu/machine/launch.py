# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts of the CPU: context, registers, run and result in one call into host machine code.

An execution needs four calls of the library around the guest's own instructions, and each costs
Python as much as a hundred of those. `native/hooks.c` makes the four in a row; without it Python
makes them one by one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Final

from guestemu.machine.engine import Context, Engine, RegisterBatch
from guestemu.machine.native import HostCode

_CONTEXT, _RIP = 2, 8


class LaunchRecord(ctypes.Structure):
    """The record that the native `launch` works on; layout as in native/hooks.c."""

    _fields_ = (
        ("uc", ctypes.c_void_p),
        ("context_restore", ctypes.c_uint64),
        ("context", ctypes.c_uint64),
        ("write_batch", ctypes.c_uint64),
        ("write_ids", ctypes.c_uint64),
        ("write_values", ctypes.c_uint64),
        ("write_count", ctypes.c_uint64),
        ("emu_start", ctypes.c_uint64),
        ("rip", ctypes.c_uint64),
        ("read_batch", ctypes.c_uint64),
        ("read_ids", ctypes.c_uint64),
        ("read_values", ctypes.c_uint64),
        ("read_count", ctypes.c_uint64),
    )


class Entry:
    """One way to start the CPU: with a saved context and some registers, or just at an address.

    `values` are the registers to write, in the order of the names given; `context` is restored
    before (None: the CPU goes on as it is).
    """

    __slots__ = (
        *("_alone", "_batch", "_call", "_context", "_ended", "_engine", "_record", "_sharing"),
        *("_words", "values"),
    )

    def __init__(
        self, engine: Engine, code: HostCode, ended: RegisterBatch, names: Sequence[str]
    ) -> None:
        self._engine = engine
        self._ended = ended
        self._batch = RegisterBatch(engine, names) if names else None
        self.values = memoryview(b"") if self._batch is None else self._batch.values
        self._context: Context | None = None
        record = LaunchRecord(uc=engine.handle)
        record.context_restore = engine.function("uc_context_restore")
        record.write_batch = engine.function("uc_reg_write_batch")
        record.emu_start = engine.function("uc_emu_start")
        record.read_batch = engine.function("uc_reg_read_batch")
        if self._batch is not None:
            record.write_ids, record.write_values, record.write_count = self._batch.addresses
        record.read_ids, record.read_values, record.read_count = ended.addresses
        self._record = ctypes.c_void_p(ctypes.addressof(record))
        self._words = memoryview(record).cast("B").cast("Q")
        self._call = self._alone = self._sharing = None
        if code.available:
            self._alone = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(code.launch)
            self._sharing = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(code.launch)
            self._call = self._alone

    def share_interpreter(self, is_on: bool) -> None:
        """See `Launcher.share_interpreter`."""
        self._call = self._sharing if is_on else self._alone

    def use(self, context: Context) -> None:
        """Restores `context` at every start from now on."""
        self._context = context
        self._words[_CONTEXT] = context.address

    @property
    def addresses(self) -> tuple[int, int]:
        """Host addresses of the record that the native `launch` takes, and of `values`."""
        values = 0 if self._batch is None else self._batch.values_address
        return self._record.value or 0, values

    def start(self, rip: int) -> int:
        """Runs from `rip` as `Engine.start` does and returns its UC_ERR code; RIP and RAX at the
        end are then in `Launcher.ended`."""
        if self._call is not None:
            self._words[_RIP] = rip
            code: int = self._call(self._record)
            return code
        if self._context is not None:
            self._context.restore()
        if self._batch is not None:
            self._batch.write()
        code = self._engine.start(rip)
        self._ended.read()
        return code


class Launcher:
    """Makes the entries of one CPU. `ended` holds RIP and RAX after the last start of any."""

    def __init__(self, engine: Engine, code: HostCode) -> None:
        self._engine = engine
        self._code = code
        self._batch = RegisterBatch(engine, ("rip", "rax"))
        self.ended: Final = self._batch.values
        self.ended_address: Final = self._batch.values_address
        self._is_shared = False
        self._entries: list[Entry] = []
        self.resume: Final = self.entry(())
        """Starts the CPU as it is."""

    def entry(self, names: Sequence[str]) -> Entry:
        """A start that sets the registers `names`."""
        entry = Entry(self._engine, self._code, self._batch, names)
        entry.share_interpreter(self._is_shared)
        self._entries.append(entry)
        return entry

    def share_interpreter(self, is_on: bool) -> None:
        """Whether other threads may run Python while the CPU runs. It costs time at each start."""
        self._is_shared = is_on
        self._engine.share_interpreter(is_on)
        for entry in self._entries:
            entry.share_interpreter(is_on)
