# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu replay`: regression programs against their recorded expectations."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from guestemu.abi.files import write_atomically
from guestemu.abi.names import plural
from guestemu.cli import console
from guestemu.cli._options import AsJson, Cluster, Limit, Plugins
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_INPUT, EXIT_INTERNAL, EXIT_OK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guestemu.replay.suite import Result
    from guestemu.report.document import Document

GROUP: Final = "Regression"
ORDER: Final = 10

_FILES_PER_JOB: Final = 32
"""A worker takes longer to start than to replay this many programs."""


def command(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Programs, or directories searched for *.prog."),
    ],
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="OUT.xml", help="Write JUnit XML for CI.")
    ] = None,
    sarif: Annotated[
        Path | None,
        typer.Option("--sarif", metavar="OUT.sarif", help="Write SARIF 2.1.0 for code scanning."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", metavar="N", min=1, help="Worker processes.  [default: auto]"),
    ] = None,
    record: Annotated[
        bool,
        typer.Option("--record", help="Write what happens as the expectation instead of judging."),
    ] = False,
    plugins: Plugins = None,
    limit: Limit = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> int:
    """Run programs and compare with their recorded outcomes.

    A program that expects nothing passes if its outcome is ok. Exit status 0: all as expected; 1:
    some are not; 2: a file is not a valid program (the other programs still run).

    For example:

      guestemu replay corpora

      guestemu replay --jobs 4 --junit results.xml --sarif results.sarif corpora/conversion

      guestemu replay --record my.prog

      guestemu replay --cluster tcp://192.0.2.1:8786 corpora
    """
    from guestemu.host.permission import permissions
    from guestemu.replay.files import find_programs
    from guestemu.replay.junit import junit_xml
    from guestemu.replay.sarif import sarif_log
    from guestemu.replay.suite import replay_all

    programs = find_programs(paths)
    allowed = permissions(plugins)
    start = time.perf_counter()
    watch = _progress(len(programs))
    if cluster is not None:
        from guestemu.cli._cluster import replay

        results = replay(cluster, programs, jobs, record, allowed, watch)
    else:
        workers = jobs or _jobs(len(programs))
        results = replay_all(programs, workers, record, watch, allowed, limit)
    seconds = time.perf_counter() - start
    if as_json:
        console.emit_json(_object(results, seconds))
    else:
        for result in results:
            if result.bad is not None:
                console.note(f"guestemu: {result.bad}")
        console.emit_document(_document(results, seconds, record))
    try:
        if junit is not None:
            write_atomically(junit, junit_xml(results, seconds), "--junit")
    finally:
        if sarif is not None:
            write_atomically(sarif, sarif_log(results), "--sarif")
    if any(result.is_internal for result in results):
        return EXIT_INTERNAL
    if any(result.bad is not None for result in results):
        return EXIT_INPUT
    return EXIT_OK if all(result.passed for result in results) else EXIT_FINDINGS


def _jobs(programs: int) -> int:
    import os

    return max(1, min(os.cpu_count() or 1, programs // _FILES_PER_JOB))


def _progress(total: int) -> Callable[[Result], None] | None:
    """A counter on a live terminal."""
    if not console.is_live():
        return None
    stream = console.notes().file
    done = 0

    def show(_result: Result) -> None:
        nonlocal done
        done += 1
        end = "\r" if done < total else "\r\x1b[K"
        stream.write(f"{done}/{total}{end}")
        stream.flush()

    return show


def _object(results: Sequence[Result], seconds: float) -> dict[str, object]:
    return {
        "programs": len(results),
        "passed": sum(result.passed for result in results),
        "failed": [
            {"program": result.program, "expectation": m.expectation, "found": m.found}
            for result in results
            for m in result.mismatches
        ],
        "bad": [
            {"program": result.program, "message": result.bad}
            for result in results
            if result.bad is not None
        ],
        "recorded": [result.program for result in results if result.is_new],
        "seconds": seconds,
    }


def _document(results: Sequence[Result], seconds: float, recording: bool) -> Document:
    """For people: what failed, and the counts."""
    from guestemu.report.document import Document, Item, Paragraph

    failed = [result for result in results if result.mismatches]
    passed = sum(result.passed for result in results)
    bad = sum(result.bad is not None for result in results)
    counts = [plural(len(results), "program")]
    counts += [f"{passed} {'recorded' if recording else 'as expected'}"]
    counts += [f"{len(failed)} failed"] if failed else []
    counts += [f"{bad} cannot be run"] if bad else []
    counts += [f"{plural(sum(r.is_new for r in results), 'file')} changed"] if recording else []
    items = (
        Item(
            f"FAILED {result.program}",
            tuple(
                Paragraph(line)
                for mismatch in result.mismatches
                for line in (
                    f"expected: {mismatch.expectation}",
                    f"found:    {mismatch.found}",
                )
            ),
            "red",
            indent=4,
        )
        for result in failed
    )
    return Document("", lead=(*items, Paragraph(f"{', '.join(counts)}, {seconds:.1f} s")))
