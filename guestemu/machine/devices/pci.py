# SPDX-License-Identifier: GPL-2.0-or-later
"""PCI bus 0 by configuration mechanism 1 (ports 0xCF8 and 0xCFC), and what functions share.

Each function has 32-bit memory BARs, one behind the other, placed before the kernel runs, and INTA
on a line of the 8259s. Where CPUs have local APICs it also has MSI-X (msix.py); a kernel without
one has no domain for messages and takes INTx (fact U15). There is no MSI: the drivers of these
devices ask for MSI-X first.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import msgspec

from guestemu.machine.devices import msix
from guestemu.machine.devices.msix import Messages, MsixTable
from guestemu.machine.devices.pic import Line
from guestemu.machine.devices.port import DmaPort
from guestemu.machine.devices.state import StatefulDevice

ADDRESS_PORT: Final = 0xCF8
DATA_PORT: Final = 0xCFC
PORTS: Final = range(ADDRESS_PORT, DATA_PORT + 4)

_SPACE: Final = 256
_COMMAND: Final = 0x04
_STATUS: Final = 0x06
_CACHE_LINE: Final = 0x0C
_BAR: Final = 0x10
_BARS_END: Final = 0x28
_SUBSYSTEM: Final = 0x2C
_ROM: Final = 0x30
_CAPABILITIES: Final = 0x34
_INTERRUPT: Final = 0x3C
_FIRST_CAPABILITY: Final = 0x40
_MESSAGE_CONTROL: Final = 2  # in the MSI-X capability
_HAS_CAPABILITIES: Final = 0x10
_COMMAND_MEMORY: Final = 0x2
_WRITABLE: Final = frozenset({_COMMAND, _COMMAND + 1, _CACHE_LINE, _CACHE_LINE + 1, _INTERRUPT})
_ENABLED: Final = 1 << 31

S = TypeVar("S", bound=msgspec.Struct, covariant=True)


class PciIds(msgspec.Struct, frozen=True):
    """Vendor and device number, 24-bit class code, revision, subsystem (vendor, device)."""

    vendor: int
    device: int
    class_code: int
    revision: int = 0
    subsystem: tuple[int, int] = (0, 0)


def configuration(ids: PciIds, bar: int = 0, irq: int = 0) -> bytearray:
    """256 bytes of configuration space for one function; `bar` is where its BAR lies."""
    space = bytearray(_SPACE)
    struct.pack_into("<HH", space, 0, ids.vendor, ids.device)
    space[_COMMAND] = _COMMAND_MEMORY if bar else 0
    space[_STATUS] = _HAS_CAPABILITIES
    struct.pack_into("<I", space, 8, ids.class_code << 8 | ids.revision)
    struct.pack_into("<I", space, _BAR, bar)
    struct.pack_into("<HH", space, _SUBSYSTEM, *ids.subsystem)
    space[_INTERRUPT], space[_INTERRUPT + 1] = irq, 1 if irq else 0
    return space


class PciFunction(StatefulDevice[S]):
    """One function: configuration space and a window of `SIZE` bytes at GPA `bar`, which is one BAR
    or, with `BARS`, those of these sizes in bytes.

    A device derives from it and answers `first_state`, `mmio_read` and `mmio_write`. `dma` is its
    way to memory, `line` its interrupt. `state` is all that may change, except the configuration
    space. An unplugged function answers nothing: reads are all ones.
    """

    IDS: PciIds
    SIZE: int = 0x4000
    BARS: tuple[int, ...] = ()
    MODULES: tuple[str, ...] = ()
    """Kernel modules that are its driver, in the order of loading; none for a built-in one."""

    OPTIONAL_MODULES: tuple[str, ...] = ()
    """The same of a driver that only some kernels have as modules: those that there are."""

    BOUNCE_SLOTS: int = 0
    """Slots of swiotlb's pool (2 KiB each) that the driver keeps for each CPU while the device is
    open, where that is a large part of a small pool."""

    OPENING: int = 0
    """Basic blocks that the driver takes to open a network interface that was not open yet."""

    DOORBELLS: range = range(0)
    """Offsets in the window where a store tells the device of new work."""

    NODE: str = ""
    """The file in /dev, or the network interface, that reads from the device; empty for none."""

    def __init__(self, bar: int, line: Line, dma: DmaPort) -> None:
        self.config = configuration(self.IDS, bar, line.irq)
        for index in range(1, len(self.BARS)):
            struct.pack_into("<I", self.config, _BAR + 4 * index, bar + sum(self.BARS[:index]))
        self.bar = bar
        self.line = line
        self.dma = dma
        self.is_plugged = True
        self.distort: Callable[[bool, int, int, int], int] | None = None
        """What a hostile device makes of a load: whether it is from configuration space, offset,
        size, value."""

        self.detain: Callable[[int, int, int], bool] | None = None
        """Whether a store of the driver's (offset, size, value) is kept back from a device that
        was stopped (quiesce.py)."""

        self.msix: MsixTable | None = None
        """None without local APICs."""

        self._msix_at = 0
        self._next_link, self._next_body = _CAPABILITIES, _FIRST_CAPABILITY
        super().__init__(self.first_state())

    def first_state(self) -> S:
        """The state at power-on."""
        raise NotImplementedError

    @property
    def vectors(self) -> int:
        """Entries of the MSI-X table that the device wants; 0 for none."""
        return 0

    @property
    def window(self) -> int:
        """Bytes of all BARs together."""
        return self.SIZE + (0 if self.msix is None else msix.SIZE)

    @property
    def uses_messages(self) -> bool:
        """Whether the driver has enabled MSI-X."""
        return self.msix is not None and self.msix.is_enabled

    def offer_messages(self, port: Messages) -> None:
        """Before the kernel runs: the device has MSI-X and sends by `port`, if it wants to."""
        if not self.vectors:
            return
        self.msix = MsixTable(self.vectors, port)
        self._msix_at = self._next_body
        self.add_capability(msix.CAPABILITY, self.msix.capability)
        struct.pack_into("<I", self.config, _BAR + 4 * msix.BAR, self.bar + self.SIZE)
        self.state = self.first_state()
        self.checkpoint()

    def signal(self, entry: int) -> None:
        """An interrupt by MSI-X, which the driver has enabled; see `MsixTable`."""
        if self.msix is not None:
            self.msix.signal(entry)

    def add_capability(self, kind: int, body: bytes) -> None:
        """Appends a capability with its `body` behind kind and link."""
        at = self._next_body
        self.config[self._next_link] = at
        self.config[at : at + 2 + len(body)] = bytes((kind, 0)) + body
        self._next_link = at + 1
        self._next_body = at + 2 + len(body) + 3 & ~3

    def dump(self) -> bytes:
        """See `StatefulDevice`; with the configuration space."""
        table = b"" if self.msix is None else self.msix.dump()
        return msgspec.msgpack.encode((bytes(self.config), self.is_plugged, super().dump(), table))

    def restore(self, data: bytes) -> None:
        """See `StatefulDevice`."""
        config, self.is_plugged, state, table = msgspec.msgpack.decode(
            data, type=tuple[bytes, bool, bytes, bytes]
        )
        self.config[:] = config
        super().restore(state)
        if self.msix is not None:
            self.msix.restore(table)

    def unplug(self) -> None:
        """Surprise removal: the slot is empty from now on."""
        self.is_plugged = False
        self.line.set(False)

    def read_command(self, size: int, offset: int) -> str:
        """The command of PID 1 (init.c) that reads `size` bytes at byte `offset` of `NODE`."""
        return f"read {self.NODE} {size} {offset}"

    def write_command(self, size: int, offset: int) -> str:
        """The command of PID 1 that writes a pattern of `size` bytes at byte `offset`."""
        return f"fill {self.NODE} {size} {offset}"

    def holds(self, data: bytes, offset: int = 0) -> bool:
        """Whether `data`, read from byte `offset` of `NODE` on, is what the device holds."""
        return False

    def config_read(self, offset: int, size: int) -> int:
        """A load from configuration space."""
        value = int.from_bytes(self.config[offset : offset + size], "little")
        return value if self.distort is None else self.distort(True, offset, size, value)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """A store to configuration space; a BAR keeps the bits above its size."""
        if _BAR <= offset < _BARS_END or offset == _ROM:
            sizes = dict(enumerate(self.BARS or (self.SIZE,)))
            if self.msix is not None:
                sizes[msix.BAR] = msix.SIZE
            size = sizes.get((offset - _BAR) // 4, 0)
            if size:
                struct.pack_into("<I", self.config, offset & ~3, value & ~(size - 1) & 0xFFFFFFFF)
            return
        if offset in _WRITABLE:
            data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
            self.config[offset : offset + size] = data
            self.config[_STATUS : _STATUS + 2] = bytes((_HAS_CAPABILITIES, 0))
        control = self._msix_at + _MESSAGE_CONTROL
        if self.msix is not None and offset <= control + 1 < offset + size:
            self.msix.configure(value >> 8 * (control + 1 - offset) << 8)
            struct.pack_into("<H", self.config, control, self.msix.control)

    def load(self, offset: int, size: int) -> int:
        """What the CPU reads from the window."""
        if self.msix is not None and offset >= self.SIZE:
            value = self.msix.read(offset - self.SIZE, size)
        else:
            value = self.mmio_read(offset, size)
        return value if self.distort is None else self.distort(False, offset, size, value)

    def store(self, offset: int, size: int, value: int) -> None:
        """What the CPU writes into the window."""
        if self.msix is not None and offset >= self.SIZE:
            self.msix.write(offset - self.SIZE, size, value)
        elif self.detain is None or not self.detain(offset, size, value):
            self.mmio_write(offset, size, value)

    def mmio_read(self, offset: int, size: int) -> int:
        """A load of 1, 2, 4 or 8 bytes from the window."""
        raise NotImplementedError

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """A store of 1, 2, 4 or 8 bytes into the window."""
        raise NotImplementedError


class PciState(msgspec.Struct):
    """The address register."""

    address: int = 0


class PciBus(StatefulDevice[PciState]):
    """Bus 0: a host bridge at device 0 (`pci_sanity_check` looks for one), functions by device
    number."""

    def __init__(self, functions: Mapping[int, PciFunction[msgspec.Struct]]) -> None:
        super().__init__(PciState())
        self._functions = functions
        self._bridge = configuration(PciIds(0x1B36, 0x0008, 0x060000))

    def read(self, port: int, size: int) -> int:
        """IN from one of `PORTS`."""
        if port == ADDRESS_PORT and size == 4:
            return self.state.address
        address = self.state.address
        absent = (1 << 8 * size) - 1
        if port < DATA_PORT or not self._selects_bus_0(address):
            return absent
        slot, offset = address >> 11 & 31, (address & 0xFC) + (port & 3)
        if not slot:
            return int.from_bytes(self._bridge[offset : offset + size], "little")
        function = self._functions.get(slot)
        if function is None or not function.is_plugged:
            return absent
        return function.config_read(offset, size)

    def write(self, port: int, size: int, value: int) -> None:
        """OUT to one of `PORTS`."""
        if port == ADDRESS_PORT and size == 4:
            self.state.address = value
            return
        address = self.state.address
        if port < DATA_PORT or not self._selects_bus_0(address):
            return
        function = self._functions.get(address >> 11 & 31)
        if function is not None and function.is_plugged:
            function.config_write((address & 0xFC) + (port & 3), size, value)

    @staticmethod
    def _selects_bus_0(address: int) -> bool:
        return bool(address & _ENABLED) and not address >> 16 & 0xFF and not address >> 8 & 7
