# SPDX-License-Identifier: GPL-2.0-or-later
"""The calls of a program into code that can end this process: a user's Python, a loaded library.

Such a program runs in another process first (runner/scout.py). That process notes in shared memory
which call it is in. Where it ends there, the same call is not made in this process: it raises
`HostFailedError`, as a call that raised does.
"""

from __future__ import annotations

import mmap
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final, TypeAlias

_Tracer: TypeAlias = Callable[[FrameType, str, object], "_Tracer | None"]

_SIZE: Final = 4096
_COUNT, _IS_PASSIVE, _IS_INSIDE, _LINE = range(4)
_WORDS: Final[dict[int, str]] = {
    signal.SIGPROF: "did not return: it computed for ever in machine code",
    signal.SIGVTALRM: "did not return: it computed for ever",
    signal.SIGSEGV: "ended by a segmentation fault",
    signal.SIGABRT: "aborted",
    signal.SIGBUS: "ended by a bus error",
    signal.SIGILL: "ended by an illegal instruction",
    signal.SIGFPE: "ended by an arithmetic exception",
}


def how_it_ended(status: int) -> str:
    """What ended a host's process, from its exit status or the negative number of a signal."""
    if status >= 0:
        return f"ended with status {status}"
    names = {number.value: number.name for number in signal.Signals}
    return _WORDS.get(-status, f"ended by {names.get(-status, f'signal {-status}')}")


class Calls:
    """Counts calls. A *passive* call asks for a record or a status; observers make such calls when
    they like, so they are not counted, and stand with the last one that was.

    `line` is the last line of the user's file that ran in the call that ended the other process, 0
    where there is none.
    """

    def __init__(self) -> None:
        self._note = memoryview(mmap.mmap(-1, _SIZE)).cast("Q")
        self._is_noted = False
        self._count = 0
        self._fatal = (-1, False)
        self.how = ""
        self.line = 0

    def begin(self) -> None:
        """Another program begins, of which no call is known to end a process."""
        self._count = 0
        self._fatal = (-1, False)
        if self._is_noted:
            self._note[_LINE] = self._note[_IS_INSIDE] = 0

    @property
    def is_fatal(self) -> bool:
        """Whether a call of the program would end this process."""
        return self._fatal[0] >= 0

    def enter(self, is_passive: bool = False) -> bool:
        """A call begins; whether it is the one that must not be made."""
        if not is_passive:
            self._count += 1
        if self._is_noted:
            note = self._note
            note[_COUNT], note[_IS_PASSIVE], note[_IS_INSIDE] = self._count, is_passive, 1
        return (self._count, is_passive) == self._fatal

    def leave(self) -> None:
        """The call returned."""
        if self._is_noted:
            self._note[_IS_INSIDE] = 0

    def note(self, path: Path | None) -> None:
        """From now on this process, a copy of the other, notes where it is; lines of the Python
        file `path`."""
        self._is_noted = True
        if path is None:
            return
        whole, note = path.resolve(), self._note
        is_own: dict[str, bool] = {}

        def trace(frame: FrameType, event: str, _argument: object) -> _Tracer | None:
            name = frame.f_code.co_filename
            if name not in is_own:
                is_own[name] = Path(name).resolve() == whole
            if not is_own[name]:
                return None
            if event == "line":
                note[_LINE] = frame.f_lineno
            return trace

        sys.settrace(trace)

    def learn(self, how: str) -> bool:
        """The other process came to an end; whether it did in a call, which is known from now on
        and of which `how` is said."""
        note = self._note
        if not note[_IS_INSIDE]:
            return False
        self._fatal = (note[_COUNT], bool(note[_IS_PASSIVE]))
        self.how, self.line = how, note[_LINE]
        return True
