# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard around a user's host: its failures during a run become `HostFailedError`.

Each message names the plug-in's file and line, so the user need not read a traceback of ours. What
a host raises to end the process (SystemExit) is a failure like any other.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Final, TypeVar

from bitarray import bitarray

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.errno import MAX_ERRNO
from guestemu.abi.errors import HostFailedError, TimeUp
from guestemu.host.base import GuestFault, Host, Hypercall, MapGpaRange, VcpuAccess
from guestemu.host.calls import Calls
from guestemu.host.hang_guard import HangGuard
from guestemu.host.kvm.guest_memory import GuestMemory, MemoryFaultExit, Slot
from guestemu.host.kvm.memory_operations import memory_operations
from guestemu.host.userspace.base import VmStopped
from guestemu.program.ops import OpKind

_T = TypeVar("_T")
_MSR_ACCESSES: Final = frozenset({"rdmsr", "wrmsr"})
_SHOWN: Final = 60
_ERRNO: Final = "0 or a negative errno"


def place_of(path: Path, error: BaseException) -> str:
    """FILE:LINE of the innermost frame inside the plug-in's file."""
    if isinstance(error, SyntaxError) and error.filename and _is(error.filename, path):
        return f"{path}:{error.lineno}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if _is(frame.filename, path)
    ]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _is(file_name: str, path: Path) -> bool:
    return Path(file_name).resolve() == path.resolve()


def describe(error: BaseException) -> str:
    """The exception's type and text on one line."""
    try:
        text = " ".join(str(error).split())
    except KeyboardInterrupt:
        raise
    except BaseException:  # of the plug-in's own __str__
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _shown(value: object) -> str:
    """A value on a line; its type where its own repr cannot be had."""
    if isinstance(value, int) and value.bit_length() > 8 * _SHOWN:
        return f"an int of {value.bit_length()} bits"
    try:
        return f"{value!r:.60}"
    except KeyboardInterrupt:
        raise
    except BaseException:
        return f"a {type(value).__name__}"


def _may_fault(name: str, arguments: tuple[object, ...]) -> bool:
    """Whether KVM itself gives the guest an exception there: for MSRs, for a hypercall outside of
    CPL 0 and for a VMCALL, which it patches first. A VMMCALL of a kernel is answered by a value."""
    if name in _MSR_ACCESSES:
        return True
    return name == "hypercall" and any(
        isinstance(one, Hypercall) and (one.cpl or one.is_vmcall) for one in arguments
    )


class PluginHost(Host):
    """A user's host behind a guard; `make` makes another object of its class.

    `VmStopped` passes, and `GuestFault` where KVM gives the guest one; any other exception and any
    value of the wrong type or range becomes a `HostFailedError` with the plug-in's file and line.
    `path` is that file; `calls`, if set, knows the call that would end this process.
    """

    name: ClassVar[str] = "plugin"
    summary: ClassVar[str] = "a user's own host, FILE.py:CLASS"
    contract_state: ClassVar[bool] = True

    def __init__(self, path: Path, plugin: object, make: Callable[[], object]) -> None:
        self.path = path
        self._plugin = plugin
        self._make = make
        self.serves_migration_control = getattr(plugin, "serves_migration_control", True) is True
        self._frames = 0
        self.guard = HangGuard()
        self.calls: Calls | None = None
        self.user_numbers: tuple[int, ...] = ()
        self._map: bitarray | None = None
        self.make_counting: Callable[[memoryview], object | None] = lambda hits: None

    def count_blocks(self, hits: memoryview) -> None:
        """From now on an object of a copy of the user's class answers, whose blocks set `hits`;
        nothing changes where there can be no copy. Inside `as_new` the class is as it was."""
        self._plugin = self._described(self.make_counting(hits) or self._plugin)
        self._map = None

    def describe_vm(self, slots: tuple[Slot, ...], vcpus: int) -> None:
        """Tells the user's host, if it wants to know."""
        super().describe_vm(slots, vcpus)
        self._described(self._plugin)

    def take_slot(self, slot: Slot) -> int:
        """Passes on; -ENOTTY for a plug-in without it. The result must be 0 or a negative errno."""
        if not callable(getattr(self._plugin, "take_slot", None)):
            return super().take_slot(slot)
        answer = self._checked("take_slot", self._call("take_slot", slot), int, _ERRNO)
        if not -MAX_ERRNO <= answer <= 0:
            raise self._wrong("take_slot", answer, _ERRNO)
        return answer

    def give_slot(self, slot: Slot) -> int:
        """As `take_slot`."""
        if not callable(getattr(self._plugin, "give_slot", None)):
            return super().give_slot(slot)
        answer = self._checked("give_slot", self._call("give_slot", slot), int, _ERRNO)
        if not -MAX_ERRNO <= answer <= 0:
            raise self._wrong("give_slot", answer, _ERRNO)
        return answer

    def _described(self, plugin: object) -> object:
        if isinstance(plugin, Host):
            plugin.describe_vm(self.memory_slots, self.vcpu_count)
        return plugin

    @contextmanager
    def as_new(self) -> Iterator[None]:
        """Inside, an object of the user's class that has run nothing yet is in the place of the one
        that has: what a program shows is then the program's."""
        plugin = self._plugin
        self._plugin, self._map = self._described(self._make()), None
        try:
            yield
        finally:
            self._plugin, self._map = plugin, None

    def _method(self, name: str) -> Callable[..., object]:
        method: Callable[..., object] = getattr(self._plugin, name)
        return method

    def _call(self, name: str, *arguments: object) -> object:
        self._map = None
        guard = self.guard
        turn = guard.turn
        if self.calls is not None and self.calls.enter(name == "private_map"):
            raise self._ended(name, self.calls)
        try:
            guard.method = name
            guard.turn = turn + 1
            try:
                return self._method(name)(*arguments)
            finally:
                guard.turn = turn + 2
                if self.calls is not None:
                    self.calls.leave()
        except (VmStopped, HostFailedError, KeyboardInterrupt):
            raise
        except BaseException as error:
            if isinstance(error, GuestFault) and _may_fault(name, arguments):
                raise
            raise self._failed(name, error) from error

    def _ended(self, name: str, calls: Calls) -> HostFailedError:
        line = f":{calls.line}" if calls.line else ""
        return HostFailedError(f"{self.path}{line}: {self._title(name)} {calls.how}")

    def _title(self, name: str) -> str:
        return f"{type(self._plugin).__name__}.{name}"

    def _failed(self, name: str, error: BaseException) -> HostFailedError:
        where = f"{place_of(self.path, error)}: {self._title(name)}"
        if isinstance(error, TimeUp):
            return HostFailedError(f"{where} did not return: {error}")
        remedy = (
            "a host may raise only GuestFault, for an MSR that it does not have, or for a VMCALL "
            "or a hypercall from user mode"
        )
        return HostFailedError(f"{where} raised {describe(error)}; {remedy}")

    def _place_of(self, name: str) -> str:
        code = getattr(getattr(type(self._plugin), name, None), "__code__", None)
        return f"{self.path}:{code.co_firstlineno}" if code is not None else str(self.path)

    def _checked(self, name: str, value: object, kind: type[_T], wanted: str) -> _T:
        if isinstance(value, kind):
            return value
        raise self._wrong(name, value, wanted)

    def _wrong(self, name: str, value: object, wanted: str) -> HostFailedError:
        return HostFailedError(
            f"{self._place_of(name)}: {self._title(name)} returned {_shown(value)}; return {wanted}"
        )

    def _u64(self, name: str, value: object) -> int:
        number = self._checked(name, value, int, "an int from 0 to 2**64-1")
        if not 0 <= number <= U64_MASK:
            raise self._wrong(name, number, "an int from 0 to 2**64-1 (mask a negative one)")
        return number

    def reset(self, frames: int) -> None:
        """Passes on; remembers `frames` to check the map's length."""
        self._frames = frames
        self._call("reset", frames)

    def hypercall(self, call: Hypercall) -> int:
        """Passes on; the result must be an unsigned 64-bit value."""
        return self._u64("hypercall", self._call("hypercall", call))

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """Passes on where the plug-in has the method; the result must be an unsigned 64-bit value.
        Without it: as the hypercall of the same range."""
        if not callable(getattr(self._plugin, "map_gpa_range", None)):
            return super().map_gpa_range(call)
        return self._u64("map_gpa_range", self._call("map_gpa_range", call))

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        """Passes on; the result must be an unsigned 64-bit value."""
        return self._u64("rdmsr", self._call("rdmsr", index, vcpu))

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """Passes on."""
        self._call("wrmsr", index, value, vcpu)

    def private_map(self) -> bitarray:
        """Passes on, once after each other call: between two calls a record does not change. Must
        be a little-endian bitarray with one bit for each frame of RAM."""
        if self._map is not None:
            return self._map
        wanted = "a little-endian bitarray with one bit per frame"
        bits = self._checked("private_map", self._call("private_map"), bitarray, wanted)
        is_little = (bits[:0] + bitarray("1")).tobytes() == b"\x01"
        if len(bits) != self._frames or not is_little:
            found = f"{len(bits)} bits, {'little' if is_little else 'big'}-endian"
            raise self._wrong("private_map", found, f"{wanted}: {self._frames}")
        self._map = bits
        return bits

    @property
    def migration_ready(self) -> bool:
        """Passes on; must be a bool."""
        return self._checked("migration_ready", self._attribute("migration_ready"), bool, "a bool")

    @property
    def state(self) -> int:
        """Passes on; 0 for a plug-in without it."""
        return self._checked("state", self._attribute("state"), int, "an int")

    def _attribute(self, name: str) -> object:
        calls = self.calls
        if calls is not None and calls.enter(is_passive=True):
            raise self._ended(name, calls)
        try:
            return getattr(self._plugin, name, 0)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise self._failed(name, error) from error
        finally:
            if calls is not None:
                calls.leave()

    def numbers(self) -> tuple[int, ...]:
        """Those in the user's code."""
        return self.user_numbers

    def inject_answer(self, value: int, count: int) -> None:
        """Passes on; NotImplementedError where the plug-in has no injection."""
        self._inject("inject_answer", value, count)

    def inject_msr_error(self, count: int) -> None:
        """Passes on; NotImplementedError where the plug-in has no injection."""
        self._inject("inject_msr_error", count)

    def _inject(self, name: str, *arguments: int) -> None:
        if not callable(getattr(self._plugin, name, None)):
            raise NotImplementedError(f"{self.path}: {type(self._plugin).__name__} has no {name}")
        try:
            self._call(name, *arguments)
        except HostFailedError as error:
            if isinstance(error.__cause__, NotImplementedError):
                raise NotImplementedError(str(error.__cause__)) from error
            raise


class GuardedHandler(PluginHost):
    """A user's `VmmHandler` behind a guard: as a host, with the VM's memory for the check of it."""

    summary: ClassVar[str] = "a user's own exit handler, FILE.py:CLASS"

    @property
    def guest_memory(self) -> GuestMemory:
        """See `MemoryHost`. Raises `HostFailedError` where the plug-in has none."""
        memory = self._attribute("guest_memory")
        return self._checked("guest_memory", memory, GuestMemory, "the VM's memory")

    @property
    def has_failing_kernel(self) -> bool:
        """See `MemoryHost`."""
        return self.guest_memory.has_failed

    def memory_fault(self, fault: MemoryFaultExit) -> bool:
        """Passes on; whether the vCPU runs again."""
        return self._checked("memory_fault", self._call("memory_fault", fault), bool, "a bool")

    def operations(self) -> Mapping[OpKind, Callable[..., int]]:
        """See `MemoryHost`."""
        return memory_operations(self)
