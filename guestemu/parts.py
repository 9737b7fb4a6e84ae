# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts that installed packages add: ops, hosts, guests, checks, targets, kinds of events.

A package names a module in the entry-point group `guestemu.parts`; importing it registers what it
defines (`define_op`, `operation`, `register_host`, `register_generation`, `register_check`,
`register_target`, `register_device`). Only installed packages are asked, never files beside a
program: what is installed may run code anyway.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Final

from guestemu.abi.errors import InputError

GROUP: Final = "guestemu.parts"


@cache
def load_parts() -> tuple[str, ...]:
    """Imports the modules of all installed packages, once in a process; their names.

    Raises `InputError` naming the package whose module cannot be imported.
    """
    found = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    for entry in found:
        try:
            entry.load()
        except Exception as error:
            name = entry.dist.name if entry.dist is not None else entry.name
            raise InputError(
                f"package {name}: {entry.value} cannot be loaded: {type(error).__name__}: {error}; "
                f"mend or uninstall it"
            ) from error
    return tuple(entry.name for entry in found)
