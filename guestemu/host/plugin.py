# SPDX-License-Identifier: GPL-2.0-or-later
"""A user's own host, loaded from FILE.py:CLASS.

The class has the interface of `guestemu.host.base.Host` (deriving from it is the easy way to have
the optional parts). Everything that goes wrong in it, while loading or during a run, is reported
as a `PluginError` that names the user's file and line.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Final, TypeVar

from bitarray import bitarray

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.errors import PluginError
from guestemu.host.base import GuestFault, Host, Hypercall, VcpuAccess
from guestemu.host.userspace.base import VmStopped

_METHODS: Final = {
    "reset": ("frames",),
    "hypercall": ("call",),
    "rdmsr": ("index", "vcpu"),
    "wrmsr": ("index", "value", "vcpu"),
    "private_map": (),
}
_T = TypeVar("_T")


def is_plugin_spec(spec: str) -> bool:
    """Whether `spec` has the form FILE.py:CLASS."""
    return spec.rpartition(":")[0].endswith(".py") or spec.endswith(".py")


def load_plugin(spec: str, switches: tuple[str, ...] = ()) -> Host:
    """The host of FILE.py:CLASS, wrapped so that its failures become `PluginError`.

    `switches` are passed to the class only if there are any. Raises `PluginError` for a file that
    cannot be imported, a class that is not there or lacks a part of the interface.
    """
    file_name, _, class_name = spec.rpartition(":")
    if not file_name.endswith(".py"):
        raise PluginError(f"host {spec}: no class named; write {spec}:CLASS")
    path = Path(file_name)
    module = _import(path)
    host_class = getattr(module, class_name, None)
    if not inspect.isclass(host_class):
        raise PluginError(f"{path}: no class {class_name!r}; {_classes_text(module)}")
    _check_interface(path, host_class)
    return PluginHost(path, _instantiate(path, host_class, switches))


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise PluginError(f"{path}: no such file; --host takes FILE.py:CLASS")
    name = f"guestemu_plugin_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise PluginError(f"{path}: cannot be imported as Python; give a .py file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise PluginError(f"{_place(path, error)}: import failed: {_what(error)}") from error
    return module


def _classes_text(module: ModuleType) -> str:
    names = sorted(
        name
        for name, member in vars(module).items()
        if inspect.isclass(member) and member.__module__ == module.__name__
    )
    return f"the file defines {', '.join(names)}" if names else "the file defines no class"


def _check_interface(path: Path, host_class: type[object]) -> None:
    where = f"{path}:{_line_of(host_class)}: class {host_class.__name__}"
    for name, parameters in _METHODS.items():
        method = getattr(host_class, name, None)
        signature = f"{name}({', '.join(('self', *parameters))})"
        if method is None or getattr(method, "__isabstractmethod__", False):
            raise PluginError(f"{where}: no method {name}; add def {signature}")
        try:
            inspect.signature(method).bind(None, *parameters)
        except (TypeError, ValueError):
            raise PluginError(
                f"{where}: {name} has other parameters; use def {signature}"
            ) from None
    ready = getattr(host_class, "migration_ready", None)
    if ready is None or getattr(ready, "__isabstractmethod__", False):
        raise PluginError(f"{where}: no migration_ready; add a property that returns bool")


def _line_of(host_class: type[object]) -> int:
    try:
        return inspect.getsourcelines(host_class)[1]
    except (OSError, TypeError):
        return 1


def _instantiate(path: Path, host_class: type[object], switches: tuple[str, ...]) -> object:
    construct: Callable[..., object] = host_class
    try:
        return construct(switches) if switches else construct()
    except Exception as error:
        raise PluginError(
            f"{_place(path, error)}: {host_class.__name__}() failed: {_what(error)}; "
            f"it must work without arguments{', or with a tuple of switches' if switches else ''}"
        ) from error


def _place(path: Path, error: BaseException) -> str:
    """FILE:LINE of the innermost frame inside the plug-in's file."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}:{error.lineno}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == path
    ]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _what(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class PluginHost(Host):
    """A user's host behind a guard.

    `GuestFault` and `VmStopped` pass; any other exception and any value of the wrong type or
    range becomes a `PluginError` with the plug-in's file and line.
    """

    name: ClassVar[str] = "plugin"
    summary: ClassVar[str] = "a user's own host, FILE.py:CLASS"

    def __init__(self, path: Path, plugin: object) -> None:
        self._path = path
        self._plugin = plugin
        self._frames = 0

    def _method(self, name: str) -> Callable[..., object]:
        method: Callable[..., object] = getattr(self._plugin, name)
        return method

    def _call(self, name: str, *arguments: object) -> object:
        try:
            return self._method(name)(*arguments)
        except (GuestFault, VmStopped, PluginError):
            raise
        except Exception as error:
            place = _place(self._path, error)
            raise PluginError(
                f"{place}: {type(self._plugin).__name__}.{name} raised {_what(error)}; "
                "a host may raise only GuestFault"
            ) from error

    def _place_of(self, name: str) -> str:
        code = getattr(getattr(type(self._plugin), name, None), "__code__", None)
        return f"{self._path}:{code.co_firstlineno}" if code is not None else str(self._path)

    def _checked(self, name: str, value: object, kind: type[_T], wanted: str) -> _T:
        if isinstance(value, kind):
            return value
        raise self._wrong(name, value, wanted)

    def _wrong(self, name: str, value: object, wanted: str) -> PluginError:
        class_name = type(self._plugin).__name__
        return PluginError(
            f"{self._place_of(name)}: {class_name}.{name} returned {value!r:.60}; return {wanted}"
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

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        """Passes on; the result must be an unsigned 64-bit value."""
        return self._u64("rdmsr", self._call("rdmsr", index, vcpu))

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """Passes on."""
        self._call("wrmsr", index, value, vcpu)

    def private_map(self) -> bitarray:
        """Passes on; must be a little-endian bitarray with one bit for each frame of RAM."""
        wanted = "a little-endian bitarray with one bit per frame"
        bits = self._checked("private_map", self._call("private_map"), bitarray, wanted)
        is_little = (bits[:0] + bitarray("1")).tobytes() == b"\x01"
        if len(bits) != self._frames or not is_little:
            found = f"{len(bits)} bits, {'little' if is_little else 'big'}-endian"
            raise self._wrong("private_map", found, f"{wanted}: {self._frames}")
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
        try:
            return getattr(self._plugin, name, 0)
        except Exception as error:
            place = _place(self._path, error)
            class_name = type(self._plugin).__name__
            raise PluginError(f"{place}: {class_name}.{name} raised {_what(error)}") from error

    def inject_answer(self, value: int, count: int) -> None:
        """Passes on; NotImplementedError where the plug-in has no injection."""
        self._inject("inject_answer", value, count)

    def inject_msr_error(self, count: int) -> None:
        """Passes on; NotImplementedError where the plug-in has no injection."""
        self._inject("inject_msr_error", count)

    def _inject(self, name: str, *arguments: int) -> None:
        if not callable(getattr(self._plugin, name, None)):
            raise NotImplementedError(f"{self._path}: {type(self._plugin).__name__} has no {name}")
        try:
            self._call(name, *arguments)
        except PluginError as error:
            if isinstance(error.__cause__, NotImplementedError):
                raise NotImplementedError(str(error.__cause__)) from error
            raise
