# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces as JSON lines: the first line is the run (configuration, hash), then one event a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.files import write_atomically
from guestemu.events.lines import Line
from guestemu.program.program import Header
from guestemu.report.trace.digest import trace_hash

FORMAT: Final = 1
"""The version of the format: a reader that knows another one must not read on."""


class RunLine(msgspec.Struct, frozen=True, tag="run", tag_field="event"):
    """The first line of a trace file; `trace_hash` is that of the events that follow."""

    format: int
    header: dict[str, object]
    events: int
    trace_hash: str


def write_jsonl(path: Path, header: Header, events: Sequence[Line]) -> None:
    """Writes a trace file. Raises the error of `write_atomically`."""
    encode = msgspec.json.Encoder().encode
    fields = msgspec.to_builtins(header)
    del fields["plugin"]  # a path of this machine
    first = RunLine(FORMAT, fields, len(events), trace_hash(events))
    write_atomically(path, b"".join(encode(one) + b"\n" for one in (first, *events)), "--trace")
