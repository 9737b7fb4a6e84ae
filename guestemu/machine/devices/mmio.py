# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest-physical addresses without memory: windows of devices, and open bus between them.

In a plain SEV guest a load or store reaches the device directly. A SEV-ES, SNP or TDX guest gets
#VC or #VE there and asks for the access by VMGEXIT or TDVMCALL (facts U6, U26, U28); the addresses
then stay unmapped, and the code that answers those calls reads and writes here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

import msgspec

from guestemu.machine.callbacks import MmioReadHook, MmioWriteHook
from guestemu.machine.devices.pci import PciFunction
from guestemu.machine.hooks import CpuHooks

HOLE_START: Final = 0xE0000000
HOLE_END: Final = 1 << 32
"""Where a PC has its devices; no RAM lies there."""

SPACING: Final = 0x10000


class MmioSpace:
    """All of the hole. `accesses` counts loads and stores of devices."""

    def __init__(self, functions: Sequence[PciFunction[msgspec.Struct]]) -> None:
        self._functions = sorted(functions, key=lambda function: function.bar)
        self._starts = [function.bar for function in self._functions]
        self.accesses = 0

    def _find(self, gpa: int) -> PciFunction[msgspec.Struct] | None:
        index = bisect_right(self._starts, gpa) - 1
        if index < 0:
            return None
        function = self._functions[index]
        is_inside = gpa < function.bar + function.window
        return function if is_inside and function.is_plugged else None

    def read(self, gpa: int, size: int) -> int:
        """A load of `size` bytes; all ones where no device answers."""
        ones = (1 << 8 * size) - 1
        function = self._find(gpa)
        if function is None:
            return ones
        self.accesses += 1
        return function.load(gpa - function.bar, size) & ones

    def write(self, gpa: int, size: int, value: int) -> None:
        """A store of `size` bytes; lost where no device answers."""
        function = self._find(gpa)
        if function is not None:
            self.accesses += 1
            function.store(gpa - function.bar, size, value & (1 << 8 * size) - 1)

    def install(self, hooks: CpuHooks) -> None:
        """Lets the CPU's loads and stores in the hole end here. Errors go to `hooks.errors` and end
        the run."""

        def on_read(_uc: object, offset: int, size: int, _user: object) -> int:
            try:
                return self.read(HOLE_START + offset, size)
            except BaseException as error:
                hooks.errors.append(error)
                hooks.watch.left = 0
                return 0

        def on_write(_uc: object, offset: int, size: int, value: int, _user: object) -> None:
            try:
                self.write(HOLE_START + offset, size, value)
            except BaseException as error:
                hooks.errors.append(error)
                hooks.watch.left = 0

        size = HOLE_END - HOLE_START
        hooks.engine.map_mmio(HOLE_START, size, MmioReadHook(on_read), MmioWriteHook(on_write))
