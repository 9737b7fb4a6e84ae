# SPDX-License-Identifier: GPL-2.0-or-later
"""A table of how hosts end: each kind of host, each way to end at a call for three pages.

`python tests/quality/deaths/ends.py [KIND...]` from the top of the tree prints rows in Markdown: a
campaign of 1,500 executions on target `hypercall`, engine and seed as in docs/native-hosts.md
(EXECS and ENGINE in the environment change that), beside one on the same host without an end. Times
are CPU seconds of all processes of a campaign.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from guestemu.native.build import find_compiler

HERE = Path(__file__).parent
TOP = HERE.parents[2]
NATIVE = TOP / "guestemu" / "host" / "native"
HANDLER = TOP / "guestemu" / "bench" / "handler.c"
HEAD = """#include <stdlib.h>
#include <unistd.h>
#define LOOP for (volatile int go = 1; go;)
#define CRASH *(volatile int *)0 = 1
#define ABORT abort()
#define EXIT _exit(3)
"""
ANSWER = "\texit->hypercall.ret ="
SERVE = NATIVE / "guestemu_serve.c"
PYTHON, IN_PROCESS, ISOLATED, COMMAND = ("Python", "`.so:in-process`", "`.so`", "`cmd:`")
KINDS = (PYTHON, IN_PROCESS, ISOLATED, COMMAND)
ENDS = {
    PYTHON: ("Correct", "Loop", "LoopInC", "Crash", "Abort", "Exit", "Raise"),
    IN_PROCESS: ("", "LOOP", "CRASH", "ABORT", "EXIT"),
    ISOLATED: ("", "LOOP", "CRASH", "ABORT", "EXIT"),
    COMMAND: ("", "LOOP", "CRASH", "ABORT", "EXIT"),
}
WORDS = {
    "LOOP": "endless loop",
    "LOOPINC": "endless loop in C",
    "CRASH": "segmentation fault",
    "ABORT": "abort",
    "EXIT": "`_exit(3)`",
    "RAISE": "exception",
}


class Row(msgspec.Struct):
    """What one campaign showed."""

    status: int
    checks: list[str]
    counts: list[int]
    executions: int
    infrastructure: list[str]
    seconds: float
    directory: Path


def host_of(kind: str, end: str, directory: Path) -> str:
    """The `--host` of a kind of host with an end (none: it has none)."""
    if kind == PYTHON:
        return f"{HERE / 'hosts_that_end.py'}:{end or 'Correct'}"
    flags = ["-shared", "-fPIC"] if kind != COMMAND else ["-DGUESTEMU_SERVE_MAIN", "-rdynamic"]
    text = directory / "handler.c"
    text.write_text(
        HEAD + HANDLER.read_text().replace(ANSWER, f"\tif (pages == 3)\n\t\tEND;\n{ANSWER}")
    )
    source = [str(text), *([str(SERVE)] if kind == COMMAND else [])]
    output = directory / ("handler" if kind == COMMAND else "handler.so")
    compiler = find_compiler()
    assert compiler is not None
    words = [
        *compiler,
        "-O1",
        *flags,
        f"-I{NATIVE}",
        f"-DEND={end}",
        *source,
        "-o",
        str(output),
        "-ldl",
    ]
    subprocess.run(words, check=True)
    if kind == COMMAND:
        return f"cmd:{shlex.quote(str(output))}"
    return f"{output}:in-process" if kind == IN_PROCESS else str(output)


def campaign(kind: str, end: str) -> Row:
    """One campaign in a directory of its own."""
    directory = Path(tempfile.mkdtemp(prefix="guestemu-death-"))
    words = ["--execs", os.environ.get("EXECS", "1500"), "--seed", "1", "--json"]
    if "ENGINE" in os.environ:
        words += ["--engine", os.environ["ENGINE"]]
    command = [sys.executable, "-m", "guestemu", "fuzz", "hypercall", *words]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, "--host", host_of(kind, end, directory), "--workdir", str(directory / "work")],
        capture_output=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if not done.stdout:
        return Row(done.returncode, [], [], 0, [done.stderr.decode()], seconds, directory)
    figures = json.loads(done.stdout)
    return Row(
        done.returncode,
        [found["check"] for found in figures["findings"]],
        [found["count"] for found in figures["findings"]],
        figures["executions"],
        figures["infrastructure"],
        seconds,
        directory,
    )


def main(kinds: list[str]) -> None:
    """Prints the rows as campaigns end."""
    print("| host | end | status | findings | met | executions | CPU s | more than without, s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind in KINDS:
        if kinds and kind.strip("`") not in kinds:
            continue
        without = 0.0
        for end in ENDS[kind]:
            row = campaign(kind, end)
            word = WORDS.get(end.upper(), "–")
            without = without if word != "–" else row.seconds
            print(
                f"| {kind} | {word} | {row.status} | {', '.join(row.checks) or '–'} "
                f"| {sum(row.counts)} | {row.executions:,} | {row.seconds:.1f} "
                f"| {row.seconds - without:.1f} | {' '.join(row.infrastructure)}",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
