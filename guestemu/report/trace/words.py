# SPDX-License-Identifier: GPL-2.0-or-later
"""The one word for how a run or an operation ended, and the value an operation gives.

Words of a run, the first that fits: `host-failed` (a user's host raised, gave no answer, or did not
return), `vm-stopped` (the host's user space ended the VM),
`no-progress` (an operation used up its budget), `shutdown` (triple fault), `violation` (a check
failed), `terminated` (the guest asked for its end), `run-failed` (KVM_RUN returned an error and the
vCPU stands still), `oops` (the guest's exception handler gave up), `ok`. Words of an operation:
`vm-stopped`, `no-progress`, `terminated`, `run-failed`, `shutdown`, `oops`, `exception` (a raw
instruction raised one), `unbacked` (an access outside RAM), `stopped` (anything else that kept a
function from returning), `ok`.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi.addresses import to_signed
from guestemu.guest.base import CallOutcome, GuestOops
from guestemu.machine.exits import (
    BudgetExhausted,
    ExceptionExit,
    RunFailed,
    Shutdown,
    Terminated,
    Unbacked,
)
from guestemu.program.ops import SPECS, Gives, Op
from guestemu.report.trace.run import Run
from guestemu.runner.testbed import HOST_FAILED, TIME_UP

OK: Final = "ok"
VIOLATION: Final = "violation"
OOPS: Final = "oops"
NO_PROGRESS: Final = "no-progress"
SHUTDOWN: Final = "shutdown"
TERMINATED: Final = "terminated"
RUN_FAILED: Final = "run-failed"
VM_STOPPED: Final = "vm-stopped"

_ENDS: Final[tuple[tuple[type[object], str], ...]] = (
    (BudgetExhausted, NO_PROGRESS),
    (Terminated, TERMINATED),
    (RunFailed, RUN_FAILED),
    (Shutdown, SHUTDOWN),
    (GuestOops, OOPS),
    (ExceptionExit, "exception"),
    (Unbacked, "unbacked"),
)


def op_word(outcome: CallOutcome) -> str:
    """How one operation ended."""
    if outcome.value is not None:
        return OK
    for end, word in _ENDS:
        if isinstance(outcome.end, end):
            return word
    return "stopped"


def run_word(run: Run) -> str:
    """How the run ended."""
    words = {op_word(result.outcome) for result in run.outcome.results}
    if any(violation.check == HOST_FAILED for violation in run.outcome.violations):
        return HOST_FAILED
    if any(violation.check == TIME_UP for violation in run.outcome.violations):
        return TIME_UP
    if run.stop is not None:
        return VM_STOPPED
    for word in (NO_PROGRESS, SHUTDOWN):
        if word in words:
            return word
    if run.outcome.violations:
        return VIOLATION
    for word in (TERMINATED, RUN_FAILED):
        if word in words:
            return word
    return OOPS if OOPS in words else OK


def is_finding(word: str) -> bool:
    """Whether a run that ended in `word` is to be looked at. An oops alone is not: programs may
    unmap pages and touch them. Nor is the end of a guest whose host refused it something, or that
    it cannot enter again: the check `progress` judges any other."""
    return word not in {OK, OOPS, TERMINATED, RUN_FAILED}


def value_of(op: Op, outcome: CallOutcome) -> int | None:
    """What the operation returned: a hypercall's RAX and a function's result signed, a load
    unsigned; None where it gives nothing (void functions, faults) or did not return."""
    value = outcome.value
    gives = SPECS[op.kind].gives
    if value is None or gives is Gives.NOTHING:
        return None
    return to_signed(value, 64) if gives is Gives.RAX else value


def is_load(op: Op) -> bool:
    """Whether the value of `op` is data (unsigned) rather than a result."""
    return SPECS[op.kind].gives is Gives.DATA
