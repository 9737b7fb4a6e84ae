# SPDX-License-Identifier: GPL-2.0-or-later
"""What `explore kernel-migration` shows: migrations by window and function, and orders."""

from __future__ import annotations

from collections.abc import Iterator

from guestemu.migration.sweep.run import SweepReport
from guestemu.report.document import (
    Chapter,
    Code,
    Content,
    Document,
    Grid,
    Paragraph,
    Picture,
)
from guestemu.report.page import TableCell


def sweep_document(report: SweepReport, command: str = "") -> Document:
    """The report; `command` runs the sweep again."""
    head = f"Linux {report.version}, {report.sev}, {report.path}, {report.order}"
    chapters = [Chapter("", (Paragraph(_sentence(report)),), is_page_only=True)]
    if report.windows:
        chapters.append(Chapter("", tuple(_windows(report))))
    chapters += (
        Chapter(f"{window.name}: migrations by function", (Picture(window.name, window.heat),))
        for window in report.windows
        if window.heat
    )
    if report.tuples:
        chapters.append(Chapter("", tuple(_tuples(report))))
    chapters.append(Chapter("", tuple(_rest(report))))
    if command:
        chapters.append(Chapter("See it again", (Code(command, True),), is_page_only=True))
    return Document(head, tuple(chapter for chapter in chapters if chapter.contents))


def _sentence(report: SweepReport) -> str:
    found = (
        f"{report.differences} of the migrated guests were different; {report.lost_defined} read "
        "other bytes than they had stored."
        if report.differences or report.lost_defined
        else "None was different afterwards, none lost a byte that it had stored."
    )
    key = "" if report.sev == "tdx" else " under another key"
    return (
        "A booted kernel converts a page. It was stopped at instructions of the conversion, moved "
        f"to another machine{key}, and ran on: {report.points} migrations. {found} A "
        "bar is a function, as long as its share of the migrations; red: the page was lost there."
    )


def _windows(report: SweepReport) -> Iterator[Content]:
    yield Grid(
        ("window", "instructions", "points", "differences", "lost_strict", "lost_defined"),
        tuple(
            (
                window.name,
                window.instructions,
                window.points,
                window.differences,
                window.lost_strict,
                window.lost_defined,
            )
            for window in report.windows
        ),
        "Windows",
    )
    points = [(window.name, point) for window in report.windows for point in window.first]
    if points:
        yield Grid(
            ("window", "instruction", "what was wrong"),
            tuple(
                (name, point.index, TableCell(point.difference or "stores are lost", "text"))
                for name, point in points
            ),
            "First migrations that were wrong",
        )


def _tuples(report: SweepReport) -> Iterator[Content]:
    yield Paragraph(f"{report.instants} instants, {report.matrix} migrations")
    yield Grid(
        ("order", "right", "tuples", "lost", "undefined"),
        tuple(
            (name, "yes" if row.is_right else "no", row.tuples, row.lost, row.undefined)
            for name, row in report.tuples.items()
        ),
        "Orders of the host's steps",
    )


def _rest(report: SweepReport) -> Iterator[Content]:
    for command, answer in report.kvm.items():
        yield Paragraph(f"KVM_SEV_{command}: {answer}")
    if report.points and report.cpu_seconds:
        migrations = report.points + report.matrix
        yield Paragraph(
            f"{report.migrations_per_second:.0f} migrations/s, "
            f"{migrations / report.cpu_seconds:.0f} per second of CPU time, "
            f"{report.pages_per_migration:.1f} pages each"
        )
