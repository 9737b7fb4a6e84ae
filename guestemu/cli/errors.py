# SPDX-License-Identifier: GPL-2.0-or-later
"""From exceptions to exit status and one line on stderr. The only place that decides either.

| status | meaning |
| --- | --- |
| 0 | nothing wrong |
| 1 | findings, mismatches, failed expectations: a verb returns `EXIT_FINDINGS` |
| 2 | bad usage or bad input |
| 3 | something this machine lacks |
| 70 | a defect of guestemu itself (EX_SOFTWARE) |
| 130 | Ctrl-C |
| 141 | the reader of stdout went away (128 + SIGPIPE) |
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Final, Protocol, runtime_checkable

from guestemu.abi.errors import HostFailedError, InputError, MissingError, ProgramTimeError
from guestemu.abi.text import visible
from guestemu.cli import console

EXIT_OK: Final = 0
EXIT_FINDINGS: Final = 1
EXIT_INPUT: Final = 2
EXIT_MISSING: Final = 3
EXIT_INTERNAL: Final = 70
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141

TRACEBACK_VARIABLE: Final = "GUESTEMU_TRACEBACK"
"""Environment variable; set to 1 it shows the traceback of any error."""

_NO_MEMORY: Final = (
    "not enough memory; use a smaller --memory or fewer --jobs, or raise the limit (ulimit -v)"
)
_LACKS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE})


@runtime_checkable
class UsageProblem(Protocol):
    """What typer raises for a command line it cannot parse, in any of its versions."""

    def format_message(self) -> str:
        """The problem in words, at times with a suggestion."""


def one_line(text: str) -> str:
    """`text` on one line: whitespace runs become one blank, other control characters escapes."""
    return visible(" ".join(text.split()))


def _usage_line(problem: UsageProblem) -> str:
    context = getattr(problem, "ctx", None)
    path = getattr(context, "command_path", None) or "guestemu"
    message = one_line(problem.format_message()).rstrip(".")
    command = "" if path == "guestemu" else f"{path.removeprefix('guestemu ')}: "
    return f"{command}{message}; {path} --help shows what there is"


def _os_line(error: OSError) -> tuple[int, str]:
    status = EXIT_MISSING if error.errno in _LACKS else EXIT_INPUT
    reason = error.strerror or str(error)
    if error.filename is not None:
        return status, f"{os.fsdecode(error.filename)}: {reason}"
    if error.errno == errno.ENOMEM:
        return status, _NO_MEMORY
    if status == EXIT_MISSING:
        return status, f"cannot go on: {reason}"
    return EXIT_INTERNAL, f"internal error: {reason}"


def describe(error: BaseException) -> tuple[int, str]:
    """The exit status of `error` and what to say about it, without the `guestemu: ` in front."""
    match error:
        case KeyboardInterrupt():
            return EXIT_INTERRUPTED, "interrupted"
        case InputError():
            return EXIT_INPUT, str(error)
        case HostFailedError() | ProgramTimeError():
            return EXIT_FINDINGS, str(error)
        case MissingError():
            return EXIT_MISSING, str(error)
        case MemoryError():
            return EXIT_MISSING, _NO_MEMORY
        case OSError():
            return _os_line(error)
        case UsageProblem():
            return EXIT_INPUT, _usage_line(error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return EXIT_INTERNAL, (
        f"internal error: {what}; please report it with the traceback that "
        f"{TRACEBACK_VARIABLE}=1 shows"
    )


def report(error: BaseException, as_json: bool = False) -> int:
    """Prints what `error` means on stderr, in one line, and returns the exit status.

    With `as_json` also as an object on stdout, unless the verb has printed its own already.
    """
    status, line = describe(error)
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        traceback.print_exception(error)
    message = one_line(line)
    if as_json and not console.has_object():
        console.begin("")
        console.emit_json({"status": status, "message": message}, "error")
    print(f"guestemu: {message}", file=sys.stderr)
    return status
