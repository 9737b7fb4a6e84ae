# SPDX-License-Identifier: GPL-2.0-or-later
"""The libraries of machine code that guestemu runs in its own process: found, loaded, explained.

They are built when guestemu is installed (`build.py`); in a checkout of the sources they are built
again, at the first load after the C was edited. Where they are missing, Python bodies do the same
work: `why_not` says why.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Final

from guestemu.abi.errors import MissingError
from guestemu.native import build
from guestemu.native.build import SWITCH, BuildError, Library

REMEDY: Final = "install a C compiler and run `python -m guestemu.native`"
COST: Final = (
    "Python runs in place of machine code: hypercall programs take 12 times the time, conversions "
    "25 times"
)
"""For messages: what it means to be without (measured on the built-in host, one worker)."""


def _is_checkout() -> bool:
    return (build.PACKAGE.parent / "hatch_build.py").exists()


@cache
def _prepare() -> str:
    """Sees to the libraries, once in a process; why there are none, or empty."""
    if build.is_off():
        return f"{SWITCH}=off"
    if not build.missing():
        return ""
    if not _is_checkout():
        return f"it was not built when guestemu was installed; {REMEDY}"
    try:
        build.build_missing()
    except BuildError as error:
        return " ".join(str(error).split())
    return ""


@cache
def _load(library: Library, is_global: bool) -> ctypes.PyDLL | str:
    why = _prepare()
    if why:
        return why
    mode = ctypes.RTLD_GLOBAL if is_global else ctypes.RTLD_LOCAL
    try:
        return ctypes.PyDLL(str(library.path), mode=mode)
    except OSError as error:
        return str(error)


def load(library: Library, is_global: bool = False) -> ctypes.PyDLL | None:
    """The library, or None where Python has to do its work (`why_not` says why).

    `is_global`: libraries that are loaded later find its functions by name.
    """
    found = _load(library, is_global)
    return None if isinstance(found, str) else found


def guest_program(program: Library) -> bytes:
    """The ELF file of a program that runs in a guest.

    Raises `MissingError` where it was not built.
    """
    why = "" if program.path.exists() else _prepare()
    try:
        return program.path.read_bytes()
    except OSError as error:
        reason = why or error.strerror
        raise MissingError(
            f"the guest program {program.name} is missing ({reason}); {REMEDY}"
        ) from None


def why_not() -> str:
    """Why no machine code runs here, in a few words; empty if it does."""
    found = _load(build.HOOKS, False)
    return found if isinstance(found, str) else ""
