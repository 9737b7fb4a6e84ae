# SPDX-License-Identifier: GPL-2.0-or-later
"""A user's own host, loaded from FILE.py:CLASS.

The class has the interface of `guestemu.host.base.Host` (deriving from it is the easy way to have
the optional parts), or derives from `guestemu.host.handler.VmmHandler`. What goes wrong while it is
loaded is a `PluginError` that names the user's file and line; what goes wrong during a run is a
`HostFailedError` (plugin_guard.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Final

from guestemu.abi.errors import InputError, PluginError
from guestemu.host.base import Host
from guestemu.host.block_cover import counting_copy
from guestemu.host.code_numbers import numbers_of
from guestemu.host.handler import HandlerHost, VmmHandler
from guestemu.host.permission import REMEDY, file_of, shown_path
from guestemu.host.plugin_guard import GuardedHandler, PluginHost, describe, place_of
from guestemu.host.plugin_import import import_file
from guestemu.machine.watchdog import Watchdog

_METHODS: Final = {
    "reset": ("frames",),
    "hypercall": ("call",),
    "rdmsr": ("index", "vcpu"),
    "wrmsr": ("index", "value", "vcpu"),
    "private_map": (),
}

LOAD_LIMIT_S: Final = 20.0
"""Seconds of CPU time for importing the file and making the host."""


def load_plugin(spec: str, plugin: str, switches: tuple[str, ...] = ()) -> Host:
    """The host of FILE.py:CLASS, wrapped so that its failures become `HostFailedError`.

    `plugin` is the file's path, as `permission` gave it. `switches` are passed to the class only if
    there are any. Raises `InputError` without a path, and `PluginError` for a file that cannot be
    imported or made within `LOAD_LIMIT_S`, a class that is not there or lacks a part of the
    interface.
    """
    if not plugin:
        raise InputError(f"host {spec}: is code, and nothing here allows it; {REMEDY}")
    class_name = spec.removeprefix(file_of(spec)).removeprefix(":")
    path = Path(shown_path(plugin))
    if not class_name:
        raise PluginError(f"host {spec}: no class named; write {spec}:CLASS")
    if path.suffix != ".py":
        raise PluginError(f"host {spec}: cannot be loaded; write FILE.py:CLASS")
    with Watchdog(None, LOAD_LIMIT_S):
        module = import_file(path)
        host_class = getattr(module, class_name, None)
        if not inspect.isclass(host_class):
            raise PluginError(f"{path}: no class {class_name!r}; {_classes_text(module)}")
        make = partial(_instantiate, path, host_class, switches)
        if issubclass(host_class, VmmHandler):
            host: PluginHost = GuardedHandler(path, make(), make)
        else:
            _check_interface(path, host_class)
            host = PluginHost(path, make(), make)
        host.user_numbers = numbers_of(host_class)
        host.make_counting = partial(_count, path, host_class, switches)
        return host


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


def _count(
    path: Path, host_class: type[object], switches: tuple[str, ...], hits: memoryview
) -> object | None:
    """An object of a copy of the class that sets `hits`, or None."""
    copy = counting_copy(host_class, hits)
    try:
        return None if copy is None else _instantiate(path, copy, switches)
    except PluginError:
        return None


def _instantiate(path: Path, host_class: type[object], switches: tuple[str, ...]) -> object:
    construct: Callable[..., object] = host_class
    try:
        made = construct(switches) if switches else construct()
        return HandlerHost(made) if isinstance(made, VmmHandler) else made
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(
            f"{place_of(path, error)}: {host_class.__name__}() failed: {describe(error)}; "
            f"it must work without arguments{', or with a tuple of switches' if switches else ''}"
        ) from error
