# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks of a run, asked after each operation that concerns them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from guestemu.checks.base import Check, OpView, Violation
from guestemu.program.ops import OpKind

_Asked: TypeAlias = tuple[Callable[[OpView], Iterable[Violation]], ...]


class CheckSet:
    """Checks in the order in which they are asked, and others that only watch for a while.

    Which of them an operation concerns (`Check.kinds`) is found out at the first of its kind.
    """

    def __init__(self, checks: Iterable[Check]) -> None:
        self.checks = tuple(checks)
        self._usual: dict[OpKind, _Asked] = {}
        self.watch()

    def watch(self, *extra: Check) -> None:
        """From now on `extra` are asked after the others, in place of those of the last call."""
        self._extra = extra
        self._asked: dict[OpKind, _Asked] = {} if extra else self._usual

    def after(self, view: OpView) -> list[Violation]:
        """The violations of an operation that just ended."""
        kind = view.op.kind
        found: list[Violation] = []
        for after in self._asked.get(kind) or self._concerned(kind):
            found += after(view)
        return found

    def _concerned(self, kind: OpKind) -> _Asked:
        usual = self._usual.get(kind)
        if usual is None:
            usual = self._usual[kind] = _after_of(self.checks, kind)
        asked = self._asked[kind] = (*usual, *_after_of(self._extra, kind))
        return asked


def _after_of(checks: Iterable[Check], kind: OpKind) -> _Asked:
    return tuple(one.after for one in checks if one.kinds is None or kind in one.kinds)
