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
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final

from guestemu.abi.errors import PluginError
from guestemu.host.base import Host
from guestemu.host.plugin_guard import PluginHost, describe, place_of

_METHODS: Final = {
    "reset": ("frames",),
    "hypercall": ("call",),
    "rdmsr": ("index", "vcpu"),
    "wrmsr": ("index", "value", "vcpu"),
    "private_map": (),
}


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
        raise PluginError(f"{place_of(path, error)}: import failed: {describe(error)}") from error
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
            f"{place_of(path, error)}: {host_class.__name__}() failed: {describe(error)}; "
            f"it must work without arguments{', or with a tuple of switches' if switches else ''}"
        ) from error
