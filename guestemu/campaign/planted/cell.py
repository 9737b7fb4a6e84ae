# SPDX-License-Identifier: GPL-2.0-or-later
"""One campaign of the zoo in a process of its own.

    python -m guestemu.campaign.planted.cell CELL

CELL is a `HuntCell` as JSON; the `CellResult` goes to stdout as one line of JSON. libFuzzer never
returns and takes one target per process, and the plain arm changes code while it is imported: hence
the process, and the imports inside functions.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

if TYPE_CHECKING:
    from guestemu.campaign.planted.session import ZooSession

OURS: Final = "ours"
PLAIN: Final = "plain"
BLIND: Final = "blind"
STATUS_FAILED: Final = 70
INSTRUMENTED: Final = ("guestemu",)
"""What the plain arm sees the coverage of: atheris instruments whole top-level packages."""

_STDOUT: Final = 1
_STDERR: Final = 2


class HuntCell(msgspec.Struct, frozen=True):
    """One campaign: `bug` by id, planted or repaired; `engine` "atheris", "random" or "blind";
    `arm` `OURS` or, for atheris without our feedback and mutator, `PLAIN`. `execs` and `seconds`
    bound it."""

    bug: str
    planted: bool
    engine: str
    arm: str
    seed: int
    execs: int | None
    seconds: float | None = None

    @property
    def kind(self) -> str:
        """What its figures are compared as: `OURS`, `PLAIN` or `BLIND`."""
        return BLIND if self.engine == BLIND else self.arm

    @property
    def key(self) -> tuple[str, bool, str, str, int]:
        """What identifies a cell in a file of results, whatever its budget."""
        return self.bug, self.planted, self.engine, self.arm, self.seed


class CellResult(msgspec.Struct, frozen=True):
    """What a campaign gave.

    `found`: the wanted check failed (of a repaired configuration: any check did). `executions` and
    `seconds` until then, or all of them; `cpu_seconds` are those that this process computed in
    (booting not counted). `check`, `message` and `program` (one op a line) are of
    the find; `others` counts violations of other checks.
    """

    cell: HuntCell
    found: bool
    executions: int
    seconds: float
    check: str = ""
    message: str = ""
    program: tuple[str, ...] = ()
    others: dict[str, int] = {}
    cpu_seconds: float = 0.0


class Clock:
    """What has passed since it was made."""

    def __init__(self) -> None:
        self._wall = time.monotonic()
        self._cpu = time.process_time()

    def read(self) -> tuple[float, float]:
        """Seconds, and seconds of this process's CPU time."""
        return (
            round(time.monotonic() - self._wall, 3),
            round(time.process_time() - self._cpu, 3),
        )


def make_session(cell: HuntCell) -> ZooSession:
    """The session of `cell`, its testbed booted. Raises `InputError` for an unknown bug."""
    from guestemu.abi.errors import InputError
    from guestemu.campaign.planted.catalogue import BUGS
    from guestemu.campaign.planted.session import ZooSession
    from guestemu.campaign.planted.targets import find_target

    bug = BUGS.get(cell.bug)
    if bug is None:
        raise InputError(f"zoo bug {cell.bug!r}: not in the zoo; see guestemu zoo list")
    return ZooSession(
        find_target(bug.target),
        bug.planted if cell.planted else bug.repaired,
        bug.check if cell.planted else None,
        seed=cell.seed,
        execs=cell.execs,
        seconds=cell.seconds,
    )


def result_of(cell: HuntCell, session: ZooSession, clock: Clock) -> CellResult:
    """What `session` found since `clock` was made."""
    from guestemu.program.op_text import format_op

    found = session.found
    seconds, cpu_seconds = clock.read()
    return CellResult(
        cell,
        found is not None,
        session.executions,
        seconds,
        "" if found is None else found.violation.check,
        "" if found is None else found.violation.message,
        () if found is None else tuple(format_op(op) for op in found.ops),
        session.others,
        cpu_seconds,
    )


def _instrument() -> None:
    """Imports everything with atheris's coverage of the byte-code in `INSTRUMENTED`."""
    import importlib

    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        importlib.import_module("guestemu.campaign.planted.plain")
        importlib.import_module("guestemu.campaign.planted.catalogue")


def work(cell: HuntCell) -> NoReturn:
    """Runs `cell`, writes its result, ends the process."""
    from guestemu.processes import follow_parent

    follow_parent()
    output = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    sessions: list[ZooSession] = []
    clock = Clock()

    def leave(error: BaseException | None) -> NoReturn:
        if error is not None:
            traceback.print_exception(error)
            sys.stderr.flush()
            os._exit(STATUS_FAILED)
        result = result_of(cell, sessions[0], clock)
        os.write(output, msgspec.json.encode(result) + b"\n")
        os._exit(0)

    try:
        if cell.arm == PLAIN:
            _instrument()
            from guestemu.campaign.planted.plain import PlainEngine

            sessions.append(make_session(cell))
            clock = Clock()
            PlainEngine().run(sessions[0], leave)
        else:
            from guestemu.campaign.engines import ENGINES

            sessions.append(make_session(cell))
            clock = Clock()
            ENGINES[cell.engine].run(sessions[0], leave)
    except BaseException as error:
        leave(error)
    leave(None)


if __name__ == "__main__":
    work(msgspec.json.decode(sys.argv[1].encode(), type=HuntCell))
