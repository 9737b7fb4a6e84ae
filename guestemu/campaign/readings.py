# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign directory read from outside, whether the campaign runs or not. Nothing is written."""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.files import read_regular
from guestemu.campaign.findings import FindingCount
from guestemu.campaign.store import CampaignRecord, Store
from guestemu.campaign.targets import find_target
from guestemu.program.binary import OpDecoder
from guestemu.program.ops import SPECS
from guestemu.program.validity import GIANT_MEMORY

_TAIL: Final = 1 << 16
_LARGEST_STATS: Final = 1 << 30


class StatsLine(msgspec.Struct, frozen=True):
    """One line of stats.jsonl. Seconds and executions count from the start of that run."""

    seconds: float
    executions: int
    execs_per_second: float
    corpus_size: int
    guest_blocks: int
    model_states: int
    findings: int
    near_misses: int = 0
    infrastructure: int = 0
    workers: list[float] = []


class Reading(msgspec.Struct, frozen=True):
    """A campaign as its directory shows it. `seconds` and `executions` are of all its runs;
    `last_new_s` is when coverage or findings grew last, as exact as stats.jsonl."""

    root: str
    record: CampaignRecord
    is_running: bool
    seconds: float
    executions: int
    execs_per_second: float
    last_new_s: float
    corpus_size: int
    latest: StatsLine | None
    findings: list[FindingCount]


def read_stats(root: Path) -> list[StatsLine]:
    """Every whole line of stats.jsonl, in order; times and executions are made to count on from one
    run of the campaign to the next."""
    try:
        lines = read_regular(root / "stats.jsonl", _LARGEST_STATS).split(b"\n")
    except OSError:
        return []
    decoder = msgspec.json.Decoder(StatsLine)
    found: list[StatsLine] = []
    base = last = (0.0, 0)
    for line in lines:
        try:
            entry = decoder.decode(line)
        except (msgspec.DecodeError, RecursionError):
            continue  # cut off, or of a version that counts otherwise
        if entry.seconds < last[0]:
            base = (base[0] + last[0], base[1] + last[1])
        last = (entry.seconds, entry.executions)
        found.append(
            msgspec.structs.replace(
                entry, seconds=base[0] + entry.seconds, executions=base[1] + entry.executions
            )
        )
    return found


def _is_running(root: Path) -> bool:
    """Whether a campaign holds the directory's lock."""
    try:
        fd = os.open(root / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _last_new(lines: list[StatsLine]) -> float:
    best = [0, 0, 0, 0]
    when = 0.0
    for line in lines:
        now = (line.guest_blocks, line.model_states, line.near_misses, line.findings)
        if any(new > old for new, old in zip(now, best, strict=True)):
            best = [max(pair) for pair in zip(now, best, strict=True)]
            when = line.seconds
    return when


def read_campaign(root: Path) -> Reading:
    """Reads the directory of a campaign. Raises `InputError` if it is not one."""
    if not root.is_dir():
        raise InputError(f"{root}: no such directory; name the work directory of a campaign")
    store = Store(root)
    record = store.read_record()
    lines = read_stats(root)
    latest = lines[-1] if lines else None
    return Reading(
        root=str(root),
        record=record,
        is_running=_is_running(root),
        seconds=latest.seconds if latest else 0.0,
        executions=latest.executions if latest else 0,
        execs_per_second=latest.execs_per_second if latest else 0.0,
        last_new_s=_last_new(lines),
        corpus_size=store.corpus_size(),
        latest=latest,
        findings=store.load_counts(),
    )


def finding_programs(root: Path) -> list[Path]:
    """The programs of a campaign's findings, in order of name."""
    return sorted((root / "findings").glob("*.prog"))


def ops_in_corpus(reading: Reading) -> Counter[str]:
    """How many ops of each kind the inputs of the corpus hold."""
    record = reading.record
    kinds = find_target(record.target).kinds_with(record.faults, record.layout)
    decode = OpDecoder(record.vcpus, record.memory >= GIANT_MEMORY, kinds).decode
    return Counter(
        SPECS[op.kind].name for data in _inputs(Path(reading.root)) for op in decode(data)
    )


def _inputs(root: Path) -> Iterator[bytes]:
    for path in sorted((root / "corpus").iterdir()):
        if not path.name.startswith("."):
            try:
                yield read_regular(path)[:_TAIL]
            except OSError:  # replaced meanwhile
                continue
