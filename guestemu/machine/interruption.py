# SPDX-License-Identifier: GPL-2.0-or-later
"""Ends a run of the CPU from a signal handler.

Python runs a signal handler between any two bytecodes of the main thread, also inside of a function
that the CPU emulator has called. An exception that such a function raises outside of its `try` goes
to C, which drops it: the run would go on, the access that was interrupted would be lost, and so
would Ctrl-C. Therefore the handler looks at the frame that it interrupts. In a callback of the
emulator it hands the exception to the vCPU, which raises it when the CPU has stopped; everywhere
else the handler may raise. That includes the models and hosts that a callback calls: they are
called inside of the `try`, and one that never returns must be interrupted.
"""

from __future__ import annotations

from types import FrameType
from typing import Final, Protocol, runtime_checkable

_STARTS: Final = frozenset(
    {
        ("guestemu.machine.engine", "start"),
        ("guestemu.machine.engine", "step"),
        ("guestemu.machine.launch", "start"),
    }
)
"""Module and name of the functions that call the emulator: a frame that one of them called is a
callback's. (By name, since a command that runs no CPU need not import them.)"""

_PACKAGE: Final = "guestemu."
_OWN: Final = "guestemu.machine."


@runtime_checkable
class Interruptible(Protocol):
    """A vCPU of this package: its method that starts the CPU raises what `interrupt` was given."""

    def interrupt(self, error: BaseException) -> None:
        """Called from inside of a callback: the CPU stops soon, then `error` is raised."""


def defer(error: BaseException, frame: FrameType | None) -> bool:
    """Hands `error` to the vCPU whose callback `frame` belongs to; False if it belongs to none, or
    to code that may be interrupted at any place: the caller then raises `error`."""
    is_guarded = False
    at, caller = frame, None if frame is None else frame.f_back
    while at is not None and caller is not None:
        if _is_start(caller) and not _is_start(at):
            return not is_guarded and _interrupt(error, caller)
        name: object = at.f_globals.get("__name__")
        if isinstance(name, str) and name.startswith(_PACKAGE) and not name.startswith(_OWN):
            is_guarded = True
        at, caller = caller, caller.f_back
    return False


def _is_start(frame: FrameType) -> bool:
    return (frame.f_globals.get("__name__"), frame.f_code.co_name) in _STARTS


def _interrupt(error: BaseException, frame: FrameType | None) -> bool:
    """Finds the vCPU that started the CPU."""
    while frame is not None:
        owner: object = frame.f_locals.get("self")
        if isinstance(owner, Interruptible):
            owner.interrupt(error)
            return True
        frame = frame.f_back
    return False
