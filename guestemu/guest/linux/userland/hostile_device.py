# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel in user space with one hostile device: changes are ordered, then the driver is used.

Rules of rules.py judge each access of the device as always. What a run adds to them: an honest
device's data arrive (`DATA`), and neither the device nor user space gets bytes that were
not meant for it (`LEAK`). The kernel runs with init_on_alloc=1, so that a fresh buffer is zero:
bytes in a buffer handed out to be written that are not zero, and bytes that read() returns though
the device stored nothing like them, come from elsewhere.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi.addresses import Gva
from guestemu.abi.errno import EBUSY, EINVAL, ENOENT, ETIME
from guestemu.abi.errors import InputError
from guestemu.events.devices import DeviceViolation
from guestemu.guest.base import CallOutcome
from guestemu.guest.linux.userland.complaints import printed_warnings
from guestemu.guest.linux.userland.running import (
    CommandFailed,
    CommandResult,
    Patience,
    RunningKernel,
)
from guestemu.guest.linux.userland.session import read_device
from guestemu.machine.devices.disk import SECTOR
from guestemu.machine.devices.hostile import CONFIG, REGISTER, STORE
from guestemu.machine.exits import BudgetExhausted, Shutdown

DATA: Final = "device-data"
LEAK: Final = "device-leak"

_PAGE: Final = 4096
_WORD: Final = 8


class Change(msgspec.Struct, frozen=True):
    """One ordered change: of the answer after the next `after` of its kind, `size` bytes at
    `offset` become `value`; a size of 0 loses the answer."""

    after: int
    offset: int
    size: int
    value: int

    def apply(self, data: bytes) -> bytes | None:
        """The changed answer; None where it is lost."""
        if not self.size:
            return None
        changed = bytearray(data)
        at = min(self.offset, max(len(data) - 1, 0))
        end = min(at + min(self.size, _WORD), len(data))
        changed[at:end] = self.value.to_bytes(_WORD, "little")[: end - at]
        return bytes(changed)


class DeviceOrders:
    """A `Tamper`: what is ordered for the device's next answers. `is_honest` until something was
    changed."""

    def __init__(self) -> None:
        self.is_honest = True
        self._changes: dict[str, list[Change]] = {STORE: [], REGISTER: [], CONFIG: []}
        self._seen = dict.fromkeys(self._changes, 0)
        self._interrupts: list[int] = []
        self._lost: list[int] = []
        self._stores = self._rises = 0

    def order(self, kind: str, change: Change) -> None:
        """One more change of answers of `kind`, counted from now on."""
        after = self._seen[kind] + change.after
        self._changes[kind].append(msgspec.structs.replace(change, after=after))

    def order_interrupt(self, after: int, lost: bool) -> None:
        """One interrupt too many, or one that is lost."""
        if lost:
            self._lost.append(self._rises + after)
        else:
            self._interrupts.append(self._stores + after)

    def change(self, kind: str, data: bytes, what: str) -> bytes | None:
        """See `Tamper`."""
        index = self._seen[kind]
        self._seen[kind] = index + 1
        changed: bytes | None = data
        for change in self._changes[kind]:
            if change.after == index and changed is not None:
                changed = change.apply(changed)
        if changed != data:
            self.is_honest = False
        return changed

    def after_store(self) -> bool:
        """See `Tamper`."""
        self._stores += 1
        return self._stores - 1 in self._interrupts

    def loses_interrupt(self) -> bool:
        """See `Tamper`."""
        self._rises += 1
        if self._rises - 1 not in self._lost:
            return False
        self.is_honest = False
        return True


class HostileDevice:
    """The device `name` of `running`, and what the kernel's driver is asked for. `budget` bounds a
    use of the driver in basic blocks, beside what it takes to open the device."""

    def __init__(self, running: RunningKernel, name: str, budget: int) -> None:
        """Raises `InputError` for a device without a file."""
        self.running = running
        self.name = name
        self.budget = budget
        self._device = running.hardware.devices[name]
        if not self._device.NODE:
            raise InputError(f"device {name}: it has no file to read from")
        self._hostility = running.make_hostile(name)
        self._slot = list(running.hardware.devices).index(name) + 1
        self._is_back = True
        self.orders = DeviceOrders()

    def keep(self) -> None:
        """Reads once; what the device has stored by now is known to come from it."""
        self.begin()
        read_device(self.running, self.name)
        self._hostility.port.keep()

    def begin(self) -> None:
        """A new program: nothing is ordered."""
        self.orders = DeviceOrders()
        self._is_back = True
        self._hostility.begin(self.orders)

    # What the device does ---------------------------------------------------------------------

    def order(self, kind: str, after: int, offset: int, size: int, value: int) -> CallOutcome:
        """See `DeviceOrders.order`."""
        self.orders.order(kind, Change(after, offset, size, value))
        return CallOutcome(0)

    def order_interrupt(self, after: int, lost: bool) -> CallOutcome:
        """See `DeviceOrders.order_interrupt`."""
        self.orders.order_interrupt(after, lost)
        return CallOutcome(0)

    def poke(self, page: int, offset: int, value: int) -> CallOutcome:
        """Stores into a page that the device has touched; -ENOENT without one."""
        done = self._hostility.port.poke(page, offset, value.to_bytes(_WORD, "little"))
        self.orders.is_honest &= not done
        return CallOutcome(0 if done else -ENOENT)

    def stop_bouncing(self) -> CallOutcome:
        """Clears io_tlb_mem.force_bounce; -ENOENT where the kernel has none."""
        kernel = self.running.kernel
        symbol = kernel.symbols.get("io_tlb_default_mem")
        if symbol is None:
            return CallOutcome(-ENOENT)
        at = symbol + kernel.btf.offset("io_tlb_mem.force_bounce")
        self.running.machine.current.write_memory(Gva(at), b"\0")
        return CallOutcome(0)

    # What the driver is asked for -------------------------------------------------------------

    def read(self, pages: int, sector: int) -> CallOutcome:
        """`pages` pages of the device's file, or one sector."""
        size = pages * _PAGE or SECTOR
        outcome, result = self._command(self._device.read_command(size, sector * SECTOR))
        if result is not None and result.value > 0:
            self._judge(result, sector)
        return outcome

    def write(self, pages: int, sector: int) -> CallOutcome:
        """A pattern into the device's file."""
        size = pages * _PAGE or SECTOR
        return self._command(self._device.write_command(size, sector * SECTOR))[0]

    def rebind(self) -> CallOutcome:
        """Unbinds the driver and has it probe again: the results of both writes, or the first
        error."""
        address = f"0000:00:{self._slot:02x}.0"
        outcome, result = self._command(
            f"write /sys/bus/pci/devices/{address}/driver/unbind {address}"
        )
        if result is None:
            return outcome
        return self._command(f"write /sys/bus/pci/drivers_probe {address}")[0]

    def _command(self, text: str) -> tuple[CallOutcome, CommandResult | None]:
        running = self.running
        if not self._is_back:
            return CallOutcome(-EBUSY), None
        printed = len(running.console.text)
        try:
            budget = self.budget + self._device.OPENING
            result = running.command(text, budget, Patience(running).is_over)
        except CommandFailed as failed:
            self._is_back = False
            return self._failed(failed, printed), None
        except InputError:
            return CallOutcome(-EINVAL), None
        finally:
            self._judge_buffers()
        warnings = tuple(printed_warnings(running.console.text, printed))
        return CallOutcome(result.value, None, warnings), result

    def _failed(self, failed: CommandFailed, printed: int) -> CallOutcome:
        running = self.running
        warnings = tuple(printed_warnings(running.console.text, printed))
        reason = failed.ended.reason
        if reason == "until":
            return CallOutcome(-ETIME, None, warnings)
        rip = running.machine.current.read_register("rip")
        if reason == "budget":
            return CallOutcome(None, BudgetExhausted(rip), warnings)
        return CallOutcome(None, Shutdown(failed.ended.text, rip), warnings)

    # Judging ----------------------------------------------------------------------------------

    def _judge_buffers(self) -> None:
        port = self._hostility.port
        if port.foreign:
            text = f"buffers to be written held {port.foreign} bytes that the device did not store"
            self._report(LEAK, text)
            port.foreign = 0

    def _judge(self, result: CommandResult, sector: int) -> None:
        device, data = self._device, result.data
        if self.orders.is_honest:
            if not device.holds(data, sector * SECTOR):
                self._report(DATA, "read() returned other bytes than the honest device holds")
            return
        foreign = self._hostility.port.count_foreign(data)
        if foreign:
            self._report(LEAK, f"read() returned {foreign} bytes that the device did not store")

    def _report(self, rule: str, text: str) -> None:
        self.running.note(
            DeviceViolation(rule=rule, device=self.name, gpa=0, size=0, text=f"{self.name}: {text}")
        )
