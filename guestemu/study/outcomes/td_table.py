# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the table T18 on a TD: a real kernel or the snippet, from the same state for every row.

A WARN of the kernel is WARN_ONCE, so the guest is reset before each row (T19).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.errors import InputError
from guestemu.abi.regions import Region
from guestemu.events.tdx import Accept, SeptViolation
from guestemu.guest.base import Guest
from guestemu.guest.td import Td
from guestemu.machine.sept import ACCEPTED, PENDING, SHARED
from guestemu.study.outcomes.answers import ScriptedKvm
from guestemu.study.outcomes.cells import Key
from guestemu.study.outcomes.guests import outcome_guest
from guestemu.study.outcomes.store import store_of
from guestemu.study.outcomes.td_rows import ROWS, AcceptPlan, TdRow

_WORDS: Final = {ACCEPTED: "a", PENDING: "p", SHARED: "s"}
_FIRST: Final = 8
"""Pages before it in region D are left alone."""


class RowResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a row left. `value` is what the function returned, or how it ended; `entries` (P, S) and
    `states` (accepted, pending, shared) by page, in runs; `next_store` what a store of 8 bytes to
    the middle of the range then comes to."""

    to_private: bool
    pages: int
    title: str
    value: str
    warned: bool
    entries: str
    states: str
    map_gpa_calls: int
    accepts: int
    next_store: str


def table_of(name: str, done: Callable[[], None] | None = None) -> list[RowResult]:
    """The table of guest `name` ("linux:6.12") as a TD: rows of its store, and what has to be
    measured; `done` is called after each."""
    store = store_of(name)
    guest: Guest | None = None
    results = []
    for row in ROWS:
        way = "encrypt" if row.to_private else "decrypt"
        key = Key("tdx", f"outcomes table {way} {row.pages}", row.title)
        result = store.recall(key, RowResult)
        if result is None:
            guest = guest or outcome_guest(name, "tdx")
            [result] = run_table(guest, [row])
            store.keep(key, name, result.value, result)
        results.append(result)
        if done is not None:
            done()
    return results


def run_table(
    guest: Guest, rows: Iterable[TdRow] = ROWS, done: Callable[[], None] | None = None
) -> list[RowResult]:
    """The rows on `guest`, which is a TD; `done` is called after each. Raises `InputError` for
    another guest."""
    td = guest.td
    if td is None:
        raise InputError(f"{guest.name}: not a TD; take `sev tdx`")
    results = []
    handler = guest.machine.hooks.handler
    try:
        for row in rows:
            results.append(_run(guest, td, row))
            if done is not None:
                done()
    finally:
        td.accept_error = None
        guest.machine.hooks.handler = handler
        guest.reset()
    return results


def _run(guest: Guest, td: Td, row: TdRow) -> RowResult:
    guest.reset()
    td.accept_error = None
    region, page = (Region.L, 0) if row.pages > 1 << 9 else (Region.D, _FIRST)
    gva, gpa = guest.gva(region, page), guest.gpa(region, page)
    hooks = guest.machine.hooks
    if row.to_private and row.pages:
        hooks.handler = ScriptedKvm()
        outcome = guest.set_memory_decrypted(gva, row.pages)
        if outcome.value != 0:
            raise InputError(f"{guest.name}: set_memory_decrypted: {outcome}")
    handler = ScriptedKvm(row.answers, row.event_every_chunk)
    hooks.handler = handler
    td.events.clear()
    td.accept_error = _accept_error(row.accept, gpa)
    convert = guest.set_memory_encrypted if row.to_private else guest.set_memory_decrypted
    outcome = convert(gva, row.pages)
    accepts = sum(isinstance(event, Accept) for event in td.events)
    gfn = gpa >> PAGE_SHIFT
    guest.leaf_map.update(guest.machine.ram.table_writes())
    entries = guest.leaf_map.private[gfn : gfn + row.pages]
    states = [_WORDS[td.sept.state(gfn + index)] for index in range(row.pages)]
    td.accept_error = None
    return RowResult(
        to_private=row.to_private,
        pages=row.pages,
        title=row.title,
        value=str(outcome.value if outcome.value is not None else outcome.end),
        warned=bool(outcome.warnings),
        entries=_runs("P" if private else "S" for private in entries),
        states=_runs(states),
        map_gpa_calls=len(handler.calls),
        accepts=accepts,
        next_store=_store(guest, td, gva + (row.pages // 2 << PAGE_SHIFT)) if row.pages else "",
    )


def _store(guest: Guest, td: Td, gva: int) -> str:
    td.events.clear()
    outcome = guest.memset(type(guest.direct_map)(gva), 0x5A, 8)
    events = [event for event in td.events if isinstance(event, SeptViolation)]
    if not events:
        return "works"
    lost = [event for event in events if event.converted and not event.private]
    if lost and outcome.value is not None:
        return "private page lost" if lost[0].state == "accepted" else "converted by user space"
    return "the VM ends"


def _accept_error(plan: AcceptPlan | None, first: int) -> Callable[[int, int], int | None] | None:
    if plan is None:
        return None

    def error(gpa: int, level: int) -> int | None:
        if plan.level is not None and level != plan.level:
            return None
        if plan.page is not None and gpa != first + (plan.page << PAGE_SHIFT):
            return None
        return plan.status

    return error


def _runs(letters: Iterable[str]) -> str:
    """Runs of one letter, as in a*3 p*5; one letter alone has no count."""
    counted = [(letter, len(list(run))) for letter, run in groupby(letters)]
    return " ".join(letter if count == 1 else f"{letter}*{count}" for letter, count in counted)
