# SPDX-License-Identifier: GPL-2.0-or-later
"""A refused notification under each guest kind, as evidence for C19 and C20.

The cells are those of `guestemu outcomes matrix`: SEV, SEV-ES and SNP guests and TDs, on the
snippet and on real kernels (facts T35, N20).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from guestemu.study.claims.result import Evidence
from guestemu.study.outcomes.guests import SNIPPET
from guestemu.study.outcomes.matrix import MatrixCell, run_refusals
from guestemu.study.outcomes.stops import PAGES, StopCell, run_stops


def refused_conversions(kernels: Sequence[str]) -> list[MatrixCell]:
    """A page becomes shared, and private again; user space answers EINVAL and records nothing."""
    return run_refusals((SNIPPET, *kernels))


def refused_ranges(kernels: Sequence[str]) -> list[StopCell]:
    """1000 pages become shared; user space refuses the second exit."""
    return run_stops((SNIPPET, *kernels))


def unread_means_lost(cells: Iterable[MatrixCell]) -> bool:
    """The page is lost where, and only where, the caller reads success."""
    found = tuple(cells)
    return bool(found) and all(cell.is_lost is not cell.is_told for cell in found)


def rest_is_of_use(cells: Iterable[StopCell]) -> bool:
    """A guest that goes on behind the refusal has all other pages converted."""
    went_on = [cell for cell in cells if cell.word == "goes on"]
    return bool(went_on) and all(cell.converted == PAGES - 1 for cell in went_on)


def refusal_evidence(cells: Iterable[MatrixCell]) -> tuple[Evidence, ...]:
    """A line for each guest and kind."""
    by_kind: dict[tuple[str, str], list[MatrixCell]] = {}
    for cell in cells:
        by_kind.setdefault((cell.guest, cell.kind), []).append(cell)
    return tuple(
        Evidence(
            f"{guest} as {kind}: the host refuses",
            " or ".join(dict.fromkeys(map(_words, found))),
            how=", ".join(f"{cell.operation}()" for cell in found),
        )
        for (guest, kind), found in by_kind.items()
    )


def _words(cell: MatrixCell) -> str:
    log = "WARN" if cell.warned else "nothing in the log"
    if cell.is_lost:
        return f"returns {cell.result}, {log}: the page is lost"
    if cell.word == "ends":
        return f"the guest ends ({cell.result}): nothing is lost"
    return f"returns {cell.result}, {log}: the caller is told"


def range_evidence(cells: Iterable[StopCell]) -> tuple[Evidence, ...]:
    """A line for each guest and kind."""
    return tuple(
        Evidence(
            f"{cell.guest} as {cell.kind}: the second exit of {PAGES} pages is refused",
            cell.converted,
            f"of {PAGES} pages converted",
            f"{cell.exits} exits; the caller reads {cell.result}"
            if cell.result.lstrip("-").isdigit()
            else f"{cell.exits} exits; the guest: {cell.result}",
        )
        for cell in cells
    )
