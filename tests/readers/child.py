# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs mutated inputs of one reader in this process; one JSON line at the end.

    python child.py READER SEED FIRST COUNT DIRECTORY

The number of the input that runs is in DIRECTORY/number, the input itself where its reader looks
for it. A run of more than `HANG_S` ends the process.
"""

from __future__ import annotations

import faulthandler
import io
import json
import os
import random
import re
import resource
import shutil
import sys
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType

import typer
import typer.main
from inputs import API, READERS, Reader
from mutations import mutated

from guestemu.abi.errors import InputError
from guestemu.cli import main as frame
from guestemu.cli.main import main

HANG_S = 120
LONG_S = 10.0
GIB = 1 << 30
ADDRESS_SPACE = 64 * GIB
"""Bound of what is asked for; each CPU reserves a gigabyte and touches little of it."""
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
TOLD_ON_STDOUT = frozenset({"triage"})
"""Verbs that say for each of several programs why it could not run."""
EXPECTED = frozenset({0, 1, 2, 3})


class Screen(io.StringIO):
    """A stream that a verb may reconfigure, as it does with stdout."""

    encoding = "utf-8"  # type: ignore[assignment]

    def reconfigure(self, **_how: object) -> None:
        """Nothing to do."""


def build_once() -> None:
    """Keeps the parser of each verb: making it takes ten times as long as most inputs."""
    build, get_command = frame._build, typer.main.get_command
    apps: dict[tuple[str, ...], tuple[typer.Typer, dict[str, ModuleType]]] = {}
    commands: dict[int, object] = {}

    def kept_app(verbs: dict[str, str]) -> tuple[typer.Typer, dict[str, ModuleType]]:
        if tuple(verbs) not in apps:
            apps[tuple(verbs)] = build(verbs)
        return apps[tuple(verbs)]

    def kept_command(app: typer.Typer) -> object:
        if id(app) not in commands:
            commands[id(app)] = get_command(app)
        return commands[id(app)]

    frame._build = kept_app  # type: ignore[assignment]
    typer.main.get_command = kept_command  # type: ignore[assignment]


def run(words: list[str]) -> tuple[int, str, str]:
    """Status, stdout and stderr of one command."""
    out, err = Screen(), Screen()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(words)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 70
    return status, out.getvalue(), err.getvalue()


def api_fault(name: str, data: bytes) -> str:
    """What is wrong with a reader that no command takes a file for, or nothing."""
    start = time.process_time()
    try:
        API[name].read(data)
        STATUSES[0] += 1
    except API[name].refuses as error:
        STATUSES[2] += 1
        if isinstance(error, InputError) and RAW.search(str(error)):
            return f"raw characters: {error!r:.300}"
    except Exception as error:
        STATUSES[70] += 1
        return f"raised {error!r:.300}"
    return judged(time.process_time() - start)


def peak_memory() -> int:
    """Bytes that this process had in memory at most.

    ``ru_maxrss`` is not that: a child takes it over from the process that started it (Linux keeps
    the larger of both at execve, fs/exec.c:exec_mmap), here a test worker.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    (kibibytes,) = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(kibibytes) << 10


def judged(seconds: float) -> str:
    """What is wrong with time and memory so far."""
    figures["slowest"] = max(figures["slowest"], seconds)
    peak = peak_memory()
    figures["peak_mib"] = peak >> 20
    if seconds > LONG_S:
        return f"took {seconds:.1f} s of CPU time"
    return f"took {peak >> 20} MiB" if peak > GIB else ""


def fault(words: list[str], directory: Path) -> str:
    """What is wrong with a run, or nothing; and its status for the count."""
    start = time.process_time()
    status, out, err = run(words)
    seconds = time.process_time() - start
    STATUSES[status] += 1
    too_much = judged(seconds)
    if status not in EXPECTED:
        return f"status {status}: {err.strip()[-400:]}"
    if RAW.search(out) or RAW.search(err):
        return f"raw characters: {(out + err)!r:.300}"
    says_elsewhere = "--json" in words or words[0] in TOLD_ON_STDOUT
    if status == 2 and not says_elsewhere and err.count("\n") != 1:
        return f"{err.count(chr(10))} lines for bad input: {err!r:.400}"
    if (directory / "ran").exists():
        return "code that a program named was run"
    return too_much


STATUSES: Counter[int] = Counter()
figures: dict[str, float] = {"slowest": 0.0, "peak_mib": 0.0}


def seeds_of(reader: Reader, directory: Path) -> list[bytes]:
    """The reader's own seeds, or what it makes itself."""
    return reader.seeds or [(directory / reader.place).read_bytes()]


def work(name: str, seed: int, first: int, count: int, directory: Path) -> list[dict[str, object]]:
    """Runs `count` inputs from number `first` on; what was wrong."""
    faults: list[dict[str, object]] = []
    if name in API:
        for number in range(first, first + count):
            chance = random.Random(f"{name} {seed} {number}")
            data = mutated(chance, chance.choice(API[name].seeds))
            (directory / "number").write_text(str(number))
            wrong = api_fault(name, data)
            if wrong:
                faults.append({"number": number, "wrong": wrong, "input": data.hex()})
        return faults
    reader = READERS[name]
    for number in range(first, first + count):
        place = directory / "here"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        os.chdir(place)
        reader.prepare(place)
        chance = random.Random(f"{name} {seed} {number}")
        data = mutated(chance, chance.choice(seeds_of(reader, place)))
        path = place / reader.place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        (directory / "number").write_text(str(number))
        words = reader.commands[number % len(reader.commands)]
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        wrong = fault(words, place)
        faulthandler.cancel_dump_traceback_later()
        if wrong:
            faults.append({"number": number, "words": words, "wrong": wrong, "input": data.hex()})
            if wrong.startswith("took"):
                break
    return faults


if __name__ == "__main__":
    build_once()
    reader_name, *numbers, where = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    report = io.TextIOWrapper(os.fdopen(os.dup(1), "wb"))
    first_number, how_many = int(numbers[1]), int(numbers[2])
    found = work(reader_name, int(numbers[0]), first_number, how_many, Path(where))
    done = sum(STATUSES.values())
    report.write(json.dumps({"runs": done, "statuses": STATUSES, "faults": found, **figures}))
    report.flush()
