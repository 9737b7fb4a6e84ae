# SPDX-License-Identifier: GPL-2.0-or-later
"""Importing a user's file as Python would run it.

A file in a package is imported as `python -m` imports it: the directory above the outermost package
is on sys.path and the module has its dotted name, so relative imports work. A file outside of any
package finds its neighbours, as with `python FILE`. The file itself is executed each time, for two
programs of one process must not share what it keeps; its neighbours are imported once.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Final

from guestemu.abi.errors import PluginError
from guestemu.host.plugin_guard import describe, place_of

_INIT: Final = "__init__.py"
_MARK: Final = "__guestemu_plugin_root__"
"""Attribute of modules that came with a plug-in: the directory they were imported from."""


def import_file(path: Path) -> ModuleType:
    """The module of the Python file at `path`. Raises `PluginError` with file and line."""
    if not path.is_file():
        raise PluginError(f"{path}: no such file; --host takes FILE.py:CLASS")
    full = path.resolve()
    root, package = _package_of(full)
    with _importable(root):
        try:
            if package:
                importlib.import_module(package)
            return _execute(full, package)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise PluginError(
                f"{place_of(path, error)}: import failed: {describe(error)}"
            ) from error


def _package_of(path: Path) -> tuple[Path, str]:
    """The directory to import from, and the dotted name of the package that `path` is in."""
    names: list[str] = []
    root = path.parent
    while (root / _INIT).is_file() and root != root.parent:
        names.insert(0, root.name)
        root = root.parent
    return root, ".".join(names)


def _execute(path: Path, package: str) -> ModuleType:
    digest = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    name = f"{package}.{path.stem}" if package else f"guestemu_plugin_{path.stem}_{digest}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise ImportError("not a Python file; give a .py file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _importable(root: Path) -> Iterator[None]:
    """`root` comes first on sys.path, and the neighbours that plug-ins of other directories brought
    are forgotten: two directories may have a helper.py each. Afterwards `root` stays as the last,
    for imports that a function makes later."""
    entry = str(root)
    for name, module in list(sys.modules.items()):
        if getattr(module, _MARK, entry) != entry:
            del sys.modules[name]
    before = set(sys.modules)
    is_new = entry not in sys.path
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(entry)
        if is_new:
            sys.path.append(entry)
        for name in sys.modules.keys() - before:
            _mark(sys.modules[name], root)


def came_with_a_plugin(module: ModuleType) -> bool:
    """Whether `module` is a user's file, or was imported by one from beside it."""
    return hasattr(module, _MARK)


def _mark(module: ModuleType, root: Path) -> None:
    file = getattr(module, "__file__", None)
    if isinstance(file, str) and Path(file).resolve().is_relative_to(root):
        setattr(module, _MARK, str(root))
