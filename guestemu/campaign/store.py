# SPDX-License-Identifier: GPL-2.0-or-later
"""The directory of a campaign, written so that nothing is lost whenever a process dies.

    campaign.json      what was asked for; `--resume` checks it
    corpus/            inputs that brought coverage, named by their hash (libFuzzer's format)
    findings/KEY.prog  one minimal program for each finding
    findings.json      counts and first sightings
    infrastructure/    inputs during which a worker died, and logs of workers
    stats.jsonl        one line of figures every few seconds

A file appears complete or not at all: it is written beside its place and renamed.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.campaign.findings import FindingCount
from guestemu.program.program import Header, Program
from guestemu.program.text import format_text

_DIRECTORIES: Final = ("corpus", "findings", "infrastructure")


class CampaignRecord(msgspec.Struct, frozen=True):
    """What a campaign fuzzes: target, header fields that matter, whether fault ops are in."""

    target: str
    guest: str
    host: str
    cbit: int
    faults: bool

    @classmethod
    def of(cls, target: str, header: Header, faults: bool) -> CampaignRecord:
        """The record of a campaign on `target` under `header`."""
        return cls(target, header.guest, header.host, header.cbit, faults)


def _failure(path: Path, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    return InputError(f"{path}: {reason}; make room there or name another place with --workdir")


def write_atomically(path: Path, data: bytes) -> None:
    """Puts `data` at `path`, whole or not at all. Raises `InputError` naming the file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _failure(path, error) from error


class Store:
    """One campaign directory. Several processes may hold it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.corpus = root / "corpus"
        self.findings = root / "findings"
        self.infrastructure = root / "infrastructure"
        self._saved: set[str] = set()

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
                store._check(known, record)
            for name in _DIRECTORIES:
                (root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _failure(root, error) from error
        write_atomically(known, msgspec.json.encode(record) + b"\n")
        return store

    def _check(self, known: Path, record: CampaignRecord) -> None:
        try:
            before = msgspec.json.decode(known.read_bytes(), type=CampaignRecord)
        except (OSError, msgspec.DecodeError) as error:
            raise InputError(
                f"{known}: no campaign to resume; name the --workdir of one, or leave --resume out"
            ) from error
        for field in record.__struct_fields__:
            old, new = getattr(before, field), getattr(record, field)
            if old != new:
                raise InputError(
                    f"{known}: that campaign has {field} {old}, not {new}; "
                    "resume it with the same, or name another --workdir"
                )

    def finding_path(self, key: str) -> Path:
        """Where the program of finding `key` is."""
        return self.findings / f"{key}.prog"

    def save_finding(self, key: str, program: Program, comment: str) -> None:
        """Keeps the program of a finding unless there is one."""
        path = self.finding_path(key)
        if not path.exists():
            write_atomically(path, format_text(program, comment).encode())

    def save_input(self, data: bytes) -> None:
        """Adds an input to the corpus."""
        name = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        self._saved.add(name)
        path = self.corpus / name
        if not path.exists():
            write_atomically(path, data)

    def load_inputs(self) -> list[bytes]:
        """Inputs in the corpus that this object has neither loaded nor saved, in order of name."""
        inputs = []
        for path in sorted(self.corpus.iterdir()):
            if path.name in self._saved or path.name.startswith("."):
                continue
            self._saved.add(path.name)
            try:
                inputs.append(path.read_bytes())
            except FileNotFoundError:  # libFuzzer replaces inputs by shorter ones
                continue
        return inputs

    def corpus_size(self) -> int:
        """Inputs in the corpus."""
        return sum(not entry.name.startswith(".") for entry in os.scandir(self.corpus))

    def save_counts(self, findings: list[FindingCount]) -> None:
        """Writes findings.json."""
        write_atomically(self.root / "findings.json", msgspec.json.encode(findings) + b"\n")

    def load_counts(self) -> list[FindingCount]:
        """Reads findings.json; nothing when there is none."""
        path = self.root / "findings.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=list[FindingCount])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError) as error:
            raise InputError(f"{path}: {error}; remove the file to count anew") from error

    def save_death(self, name: str, data: bytes) -> Path:
        """Keeps the input during which a worker died; returns its place."""
        path = self.infrastructure / name
        write_atomically(path, data)
        return path

    def add_stats(self, line: bytes) -> None:
        """Appends one line to stats.jsonl."""
        path = self.root / "stats.jsonl"
        try:
            with path.open("ab") as file:
                file.write(line + b"\n")
        except OSError as error:
            raise _failure(path, error) from error
