# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypothesis: programs from strategies, shrunk by Hypothesis, failing ones in its own database.

A violation fails the test once for each signature, so that Hypothesis shrinks its program and
keeps it in WORKDIR/hypothesis, where the next run of the campaign starts. The session files the
violation besides, as with every engine. Hypothesis knows nothing of coverage: it is the slowest of
the engines and good at structured programs.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Final

from guestemu.campaign.engines.base import Leave
from guestemu.campaign.findings import signature
from guestemu.campaign.session import Session, SessionOver
from guestemu.program.binary import RECORD
from guestemu.program.ops import MAX_ARGUMENTS, OpKind

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_HOT: Final = 1 << 31
"""Makes a page index one that chooses among the hot pages of its region."""

_EXAMPLES: Final = 1000
"""Examples of one round; a round ends early when a violation was shrunk."""


class HypothesisEngine:
    """See the module's docstring."""

    name = "hypothesis"
    summary = "programs from Hypothesis strategies, with its shrinking and its database"
    remedy = "the hypothesis package is not installed (pip install 'guestemu[fuzz]')"

    def is_available(self) -> bool:
        """Whether hypothesis can be imported."""
        return importlib.util.find_spec("hypothesis") is not None

    def run(self, session: Session, leave: Leave) -> None:
        """See `Engine.run`."""
        try:
            _search(session)
        except _Over:
            return


class _Over(BaseException):
    """The session is over. No Exception, which Hypothesis would take for a failure."""


class _ViolatedError(Exception):
    """A violation. Each signature has a subclass, by which Hypothesis distinguishes failures."""

    sign = ""


def programs(session: Session) -> SearchStrategy[bytes]:
    """Programs of the session's target in binary form, whole records.

    A record's bytes choose among usual values and edges (`program.binary`), 0 being the default:
    what Hypothesis shrinks towards.
    """
    from hypothesis import strategies

    byte = strategies.integers(0, 0xFF)
    kinds = strategies.sampled_from(sorted(session.kinds))
    choices = strategies.binary(min_size=MAX_ARGUMENTS, max_size=MAX_ARGUMENTS)
    record = strategies.builds(_record, kinds, byte, byte, byte, choices)
    return strategies.lists(record, min_size=1, max_size=session.plan.target.max_ops).map(b"".join)


def _record(kind: OpKind, posture: int, region: int, page: int, choices: bytes) -> bytes:
    return RECORD.pack(kind, posture, region, 0, page | _HOT, *choices)


class _Test:
    """The test that Hypothesis runs: fails for signatures that no round has had yet."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._classes: dict[str, type[_ViolatedError]] = {}
        self._shrunk: set[str] = set()

    def run(self, data: bytes) -> None:
        """One example."""
        session = self._session
        session.feedback.clear()
        try:
            is_new = session.execute(data)
        except SessionOver:
            raise _Over from None
        except Exception as error:
            raise _Broken(error) from error
        if is_new and session.store is not None:
            session.store.save_input(data)
        ran = session.executor.decode(data)
        for violation in session.violations:
            sign = signature(violation, ran[violation.op])
            if sign not in self._shrunk:
                raise self._class(sign)

    def settle(self, error: BaseException) -> None:
        """A round ended with this failure: its signatures pass from now on."""
        if isinstance(error, BaseExceptionGroup):
            for part in error.exceptions:
                self.settle(part)
        elif isinstance(error, _ViolatedError):
            self._shrunk.add(error.sign)

    def _class(self, sign: str) -> type[_ViolatedError]:
        known = self._classes.get(sign)
        if known is None:
            known = type("Violated", (_ViolatedError,), {"sign": sign})
            self._classes[sign] = known
        return known


class _Broken(BaseException):
    """The testbed or the host failed, which is not a violation; `error` says how."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _import_corpus(session: Session) -> None:
    """Runs what the directory has; Hypothesis cannot start from it."""
    if session.store is None:
        return
    for data in session.store.load_inputs():
        session.feedback.clear()
        try:
            session.execute(data)
        except SessionOver:
            raise _Over from None


def _search(session: Session) -> None:
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis.database import DirectoryBasedExampleDatabase
    from hypothesis.errors import Flaky

    store = session.store
    database = None if store is None else DirectoryBasedExampleDatabase(store.root / "hypothesis")
    test = _Test(session)
    _import_corpus(session)
    phases = [Phase.reuse, Phase.generate, Phase.shrink]
    for number in range(1 << 62):

        @settings(
            max_examples=_EXAMPLES,
            database=database,
            deadline=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        @seed(session.plan.seed + number)  # below `settings`: it takes the database away
        @given(programs(session))
        def program(data: bytes) -> None:
            test.run(data)

        try:
            program()
        except (_ViolatedError, BaseExceptionGroup) as error:
            test.settle(error)
        except Flaky:
            pass  # the session says that it is not reproducible
        except _Broken as broken:
            raise broken.error from None
        phases = [Phase.generate, Phase.shrink]  # what the database had would pass now, and be lost
