# SPDX-License-Identifier: GPL-2.0-or-later
"""Outcomes as matrices: what each guest made of each answer, in a word and a colour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from guestemu.abi.names import command_line
from guestemu.report.document import Document
from guestemu.report.matrix import Tried, matrix_document
from guestemu.study.outcomes.matrix import MatrixCell
from guestemu.study.outcomes.snp_answers import WAYS, SnpAnswer
from guestemu.study.outcomes.td_table import RowResult

_DONE: Final = "succeeds, entry and host agree"
_TOLD: Final = "the caller reads the failure"
_ENDS: Final = "the guest ends"
_LOST: Final = "lost: success, but entry and host differ"
_GOES_ON: Final = "goes on"
_STANDS: Final = "no longer runs"
_SAME: Final = "as the first guest"
_WARNS: Final = "as the first guest, with a WARN"
_DIFFERS: Final = "differs from the first guest"


def kinds_document(cells: Sequence[MatrixCell]) -> Document:
    """`outcomes matrix`: operations and answers by guest and kind."""
    words = (
        "The same operations in guests of several kinds. User space answers one exit with the "
        "answer named in the row and records nothing; a cell says what the caller makes of it."
    )
    values = {_DONE: "good", _TOLD: "good", _ENDS: "warn", _LOST: "bad"}
    tried = [_of_kind(cell) for cell in cells]
    return matrix_document("One answer, four guest kinds", words, tried, values, "operation")


def _of_kind(cell: MatrixCell) -> Tried:
    kind = {"lost": _LOST, "ends": _ENDS, "told": _TOLD, "ok": _DONE}[cell.word]
    views = [("page table", cell.entry), ("host", cell.host), ("RMP or Secure EPT", cell.module)]
    afterwards = ", ".join(f"{name} {view}" for name, view in views if view)
    warned = " It prints a WARN." if cell.warned else ""
    return Tried(
        row=f"{cell.operation}, answer {cell.answer}",
        column=f"{cell.guest} {cell.kind}",
        word=cell.word,
        kind=kind,
        detail=f"The caller reads: {cell.result}.{warned} Afterwards: {afterwards}.",
        command=command_line("outcomes", "matrix", "--guest", cell.guest),
    )


def answers_document(cells: Sequence[SnpAnswer], images: Mapping[str, str]) -> Document:
    """`outcomes snp`: answers to a page-state change by kernel. `images` has the name by which a
    kernel's version was asked for."""
    words = (
        "A guest asks for a change of page states; user space answers its first request with the "
        "answer named in the row. 6.12 and 7.2 are the host's KVM: the one makes an error of every "
        "answer but 0, of the other KVM_RUN fails where the answer is not documented."
    )
    values = {_GOES_ON: "good", _ENDS: "warn", _STANDS: "bad"}
    tried = [
        Tried(
            row=f"{cell.way}, {cell.answer}, KVM {cell.kvm}",
            column=cell.kernel,
            word=cell.did,
            kind=_end(cell.did),
            detail=f"{WAYS[cell.way]}: {cell.kernel} {cell.did}.",
            command=command_line(
                "outcomes", "snp", "--image", images.get(cell.kernel, cell.kernel)
            ),
        )
        for cell in cells
    ]
    return matrix_document("Answers to a page-state change", words, tried, values, "request")


def _end(did: str) -> str:
    if did.startswith("terminates"):
        return _ENDS
    return _GOES_ON if did.startswith(("returns", "goes on", "boots")) else _STANDS


def conversions_document(tables: Mapping[str, Sequence[RowResult]]) -> Document:
    """`outcomes table`: conversions of TDX guests by guest."""
    words = (
        "A TD converts pages while MapGPA or ACCEPT answers as the row says. A cell is what the "
        "function returns; behind it are the page-table entries, the page states and what the next "
        "store does. P private, S shared; a accepted, p pending, s shared."
    )
    values = {_SAME: "good", _WARNS: "warn", _DIFFERS: "bad"}
    return matrix_document(
        "What a conversion comes to", words, list(_conversions(tables)), values, "conversion"
    )


def _conversions(tables: Mapping[str, Sequence[RowResult]]) -> Iterator[Tried]:
    first = next(iter(tables.values()))
    for name, rows in tables.items():
        for base, row in zip(first, rows, strict=True):
            direction = "encrypt" if row.to_private else "decrypt"
            kind = _DIFFERS if row != base else _WARNS if row.warned else _SAME
            pages = "1 page" if row.pages == 1 else f"{row.pages} pages"
            yield Tried(
                row=f"{direction} {pages}, {row.title}",
                column=name,
                word=row.value,
                kind=kind,
                detail=f"Entries {row.entries or 'none'}; states {row.states or 'none'}; "
                f"{row.map_gpa_calls} calls of MapGPA, {row.accepts} of ACCEPT; the next store: "
                f"{row.next_store or 'none'}.",
                command=command_line("outcomes", "table", "--guest", name),
            )
