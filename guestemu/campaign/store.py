# SPDX-License-Identifier: GPL-2.0-or-later
"""The directory of a campaign, written so that nothing is lost whenever a process dies.

    campaign.json      what was asked for; `--resume` checks it
    corpus/            inputs that brought coverage, named by their hash (libFuzzer's format)
    findings/KEY.prog  one minimal program for each finding
    findings.json      counts and first sightings
    journal/           what workers saw, before anything was made of it (journal.py)
    infrastructure/    inputs during which a worker died, and logs of workers
    stats.jsonl        one line of figures every few seconds

A file appears complete or not at all: it is written beside its place and renamed. The exception are
inputs that libFuzzer writes: `repair` puts them right.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.files import read_regular, replace_file, write_atomically, write_failure
from guestemu.abi.text import visible
from guestemu.campaign.findings import FindingCount
from guestemu.campaign.journal import (
    Entry,
    FindingFiled,
    InputNoted,
    Journal,
    ViolationMet,
    input_name,
    journal_files,
    journal_path,
    read_journals,
    unsettled,
)
from guestemu.campaign.reserve import Reserve
from guestemu.campaign.triage.identify import digest_of
from guestemu.program.program import Header, Program
from guestemu.program.text import format_text

_DIRECTORIES: Final = ("corpus", "findings", "infrastructure", "journal")
WORKDIR: Final = "--workdir"
"""The option that names the directory."""

_HASH_DIGITS: Final = 40
_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*(?:-[A-Za-z0-9_.]+)*")
"""A finding's key, which is a file name."""

_CRASH: Final = "crash-"
"""Start of the names of inputs that a worker died of by its own fault: never run again."""


def is_key(text: str) -> bool:
    """Whether `text` may be the key of a finding."""
    return _KEY.fullmatch(text) is not None


class CampaignRecord(msgspec.Struct, frozen=True):
    """What a campaign fuzzes: target, header fields that matter, whether fault ops are in.

    `ops` is the table of ops by which the bytes of its corpus are read (`program.table.op_table`);
    directories of guestemu 0.1 have none. `runs_in` says what its programs ran in last.
    """

    target: str
    guest: str
    host: str
    cbit: int
    faults: bool
    memory: int = Header().memory
    ops: dict[str, str] = {}
    runs_in: str = ""
    vcpus: int = 1
    layout: str = ""

    @classmethod
    def of(
        cls, target: str, header: Header, faults: bool, ops: dict[str, str] | None = None
    ) -> CampaignRecord:
        """The record of a campaign on `target` under `header`, with `ops` as its table."""
        return cls(
            target=target,
            guest=header.guest,
            host=header.host,
            cbit=header.cbit,
            faults=faults,
            memory=header.memory,
            ops=ops or {},
            vcpus=header.vcpus,
            layout=header.layout,
        )


class Store:
    """One campaign directory. Several processes may hold it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.corpus = root / "corpus"
        self.findings = root / "findings"
        self.infrastructure = root / "infrastructure"
        self.journals = root / "journal"
        self.reserve = Reserve(root)
        self._saved: set[str] = set()
        self._lock: int | None = None

    @classmethod
    def create(cls, root: Path, record: CampaignRecord, resume: bool) -> Store:
        """Opens `root` for a new campaign, or with `resume` for one that was there before.

        Raises `InputError` for a directory in use without `resume`, for one of another campaign
        with it, and where nothing can be written.
        """
        store = cls(root)
        known = root / "campaign.json"
        try:
            if root.is_dir() and any(root.iterdir()):
                if not resume:
                    raise InputError(
                        f"{root}: not empty; go on with --resume, or name another --workdir"
                    )
                record = store._check(known, record)
            for name in _DIRECTORIES:
                (root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failure(root, error, WORKDIR) from error
        store.write_record(record)
        store.reserve.fill()
        return store

    def lock(self) -> None:
        """Keeps other campaigns out until `unlock` or the end of the process. Raises `InputError`
        where one is running."""
        fd = os.open(self.root / ".lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise InputError(
                f"{self.root}: a campaign is running there; wait for its end, or name another "
                "--workdir"
            ) from error
        self._lock = fd

    def unlock(self) -> None:
        """See `lock`."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @classmethod
    def open(cls, root: Path) -> Store:
        """Opens the directory of a campaign that is not running, and locks it. Raises
        `InputError`."""
        store = cls(root)
        store.read_record()
        store.lock()
        return store

    def read_record(self) -> CampaignRecord:
        """What the campaign fuzzes. Raises `InputError`."""
        known = self.root / "campaign.json"
        try:
            return msgspec.json.decode(read_regular(known), type=CampaignRecord)
        except (OSError, msgspec.DecodeError) as error:
            raise InputError(
                f"{known}: cannot be read as a campaign's; name the work directory of one"
            ) from error

    def write_record(self, record: CampaignRecord) -> None:
        """Writes campaign.json. Raises `InputError`."""
        write_atomically(self.root / "campaign.json", msgspec.json.encode(record) + b"\n", WORKDIR)

    def _check(self, known: Path, record: CampaignRecord) -> CampaignRecord:
        """`record` with the table of ops that the directory was written by."""
        try:
            before = self.read_record()
        except InputError as error:
            raise InputError(
                f"{known}: no campaign to resume; name the --workdir of one, or leave --resume out"
            ) from error
        for field in record.__struct_fields__:
            if field in {"ops", "runs_in"}:
                continue  # the former: conversion.py
            old, new = getattr(before, field), getattr(record, field)
            if old != new:
                raise InputError(
                    f"{known}: that campaign has {field} {old}, not {new}; "
                    "resume it with the same, or name another --workdir"
                )
        return msgspec.structs.replace(record, ops=before.ops)

    def finding_path(self, key: str) -> Path:
        """Where the program of finding `key` is."""
        return self.findings / f"{key}.prog"

    def _write(self, path: Path, action: Callable[[], None]) -> None:
        """Runs `action`, which writes `path`, with the reserve behind it. Raises `InputError`."""
        try:
            self.reserve.write(action)
        except OSError as error:
            raise write_failure(path, error, WORKDIR) from error

    def _put(self, path: Path, data: bytes) -> None:
        self._write(path, lambda: replace_file(path, data))

    def replace(self, path: Path, data: bytes) -> None:
        """Writes a file of the directory anew. Raises `InputError`."""
        self._put(path, data)

    def save_finding(self, key: str, program: Program, comment: str) -> None:
        """Keeps the program of a finding unless there is one."""
        path = self.finding_path(key)
        if not path.exists():
            self._put(path, format_text(program, comment).encode())

    def save_input(self, data: bytes) -> None:
        """Adds an input to the corpus."""
        name = input_name(data)
        self._saved.add(name)
        path = self.corpus / name
        if not path.exists():
            self._put(path, data)

    def load_inputs(self) -> list[bytes]:
        """Inputs in the corpus that this object has neither loaded nor saved, in order of name."""
        inputs = []
        for path in sorted(self.corpus.iterdir()):
            if path.name in self._saved or path.name.startswith("."):
                continue
            self._saved.add(path.name)
            with contextlib.suppress(OSError):  # libFuzzer replaces inputs by shorter ones
                inputs.append(read_regular(path))
        return inputs

    # The journal ------------------------------------------------------------------------------

    def open_journal(self, index: int) -> Journal:
        """The journal of worker `index`. Raises `InputError`."""
        path = journal_path(self.journals, index)
        try:
            return Journal(path)
        except OSError as error:
            raise write_failure(path, error, WORKDIR) from error

    def note(self, journal: Journal, entry: Entry) -> None:
        """Appends to a journal. Raises `InputError`."""
        self._write(journal.path, lambda: journal.add(entry))

    def note_all(self, entries: Iterable[tuple[int, Entry]]) -> None:
        """Appends to the journals of the workers with these indices. Raises `InputError`."""
        parts: dict[int, list[Entry]] = {}
        for index, entry in entries:
            parts.setdefault(index, []).append(entry)
        for index, part in parts.items():
            journal = self.open_journal(index)
            try:
                for entry in part:
                    self.note(journal, entry)
            finally:
                journal.close()

    def note_input(self, journal: Journal, data: bytes) -> None:
        """Notes an input that the corpus does not have yet."""
        if not (self.corpus / input_name(data)).exists():
            self.note(journal, InputNoted(data))

    def forget_inputs(self) -> None:
        """Takes the inputs out of the journals: the corpus as it is counts."""
        encode = msgspec.json.Encoder().encode
        for path in journal_files(self.journals):
            entries = [e for e in read_journals([path]) if not isinstance(e, InputNoted)]
            self._put(path, b"".join(encode(entry) + b"\n" for entry in entries))

    def unsettled(self) -> list[ViolationMet]:
        """Violations that were met and never filed."""
        return unsettled(read_journals(journal_files(self.journals)))

    def settled(self) -> list[FindingCount]:
        """The findings that the journals say were filed, each counted once."""
        entries = read_journals(journal_files(self.journals))
        return [
            FindingCount(entry.key, entry.check, 1, entry.seconds)
            for entry in entries
            if isinstance(entry, FindingFiled)
        ]

    def known_findings(self) -> frozenset[str]:
        """The digests of the findings that campaigns in this directory have."""
        found = [*self.load_counts(), *self.settled()]
        return frozenset(digest_of(one.key) for one in found)

    def repair(self) -> list[str]:
        """Puts the corpus right after a crash: missing inputs come back from the journals, damaged
        files likewise, or they are set aside. One line for each file that was damaged and whose
        content is gone, or that cannot be read."""
        noted = {
            input_name(entry.data): entry.data
            for entry in read_journals(journal_files(self.journals))
            if isinstance(entry, InputNoted)
        }
        lines = [self._mend(path, noted) for path in sorted(self.corpus.iterdir())]
        for name, data in noted.items():
            path = self.corpus / name
            if not path.exists():
                self._put(path, data)
        return [line for line in lines if line]

    def _mend(self, path: Path, noted: dict[str, bytes]) -> str:
        """Restores a damaged file of the corpus or sets it aside; "" if nothing is to be said."""
        if path.name.startswith("."):
            path.unlink(missing_ok=True)  # half of an input: its writer died
            return ""
        try:
            data = read_regular(path)
        except OSError as error:
            return f"{path}: {error.strerror}; left out, remove it or put it right"
        is_hash = len(path.name) == _HASH_DIGITS and path.name.strip("0123456789abcdef") == ""
        if not is_hash or input_name(data) == path.name:
            return ""
        if path.name in noted:
            self._put(path, noted[path.name])
            return ""
        aside = self.infrastructure / f"damaged-{path.name}"
        path.replace(aside)
        return f"{path}: damaged (its content is not what its name says); now {aside}"

    def corpus_size(self) -> int:
        """Inputs in the corpus."""
        return sum(not entry.name.startswith(".") for entry in os.scandir(self.corpus))

    def save_counts(self, findings: list[FindingCount]) -> None:
        """Writes findings.json."""
        self._put(self.root / "findings.json", msgspec.json.encode(findings) + b"\n")

    def load_counts(self) -> list[FindingCount]:
        """Reads findings.json; nothing when there is none."""
        path = self.root / "findings.json"
        try:
            counts = msgspec.json.decode(read_regular(path), type=list[FindingCount])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError, RecursionError) as error:
            raise InputError(f"{path}: {error}; remove the file to count anew") from error
        for found in counts:
            if not is_key(found.key) or found.count < 0 or found.first_seen_s < 0:
                raise InputError(
                    f"{path}: {visible(found.key)!r} is not the name of a finding; remove the file "
                    "to count anew"
                )
        return counts

    def save_death(self, name: str, data: bytes, is_crash: bool) -> Path:
        """Keeps the input during which a worker died; returns its place. `is_crash`: no worker runs
        it again."""
        path = self.infrastructure / f"{_CRASH if is_crash else 'death-'}{name}.bin"
        self._put(path, data)
        return path

    def deadly_inputs(self) -> frozenset[bytes]:
        """The inputs that crashed a worker."""
        found: set[bytes] = set()
        for path in self.infrastructure.glob(f"{_CRASH}*.bin"):
            with contextlib.suppress(OSError):
                found.add(read_regular(path))
        return frozenset(found)

    def add_stats(self, line: bytes) -> None:
        """Appends one line to stats.jsonl."""
        path = self.root / "stats.jsonl"

        def append() -> None:
            with path.open("ab") as file:
                file.write(line + b"\n")

        self._write(path, append)
