# SPDX-License-Identifier: GPL-2.0-or-later
"""What a submitter and its nodes tell each other, as MessagePack.

A *node* is what runs on one Dask worker: a supervisor with a process for each of the worker's
threads. The submitter holds the campaign's directory. Every second or so it sends each node a
`Post` and gets `News` back. Dask moves bytes; what they mean is decided here, so that both ends can
count them and nothing is unpickled but bytes.
"""

from __future__ import annotations

from typing import Final

import msgspec

import guestemu
from guestemu.campaign.figures import Figures
from guestemu.campaign.journal import Entry
from guestemu.campaign.store import CampaignRecord
from guestemu.campaign.worker import WorkerConfig, WorkerFailure
from guestemu.program.program import FORMAT_VERSION
from guestemu.program.table import table_digest


class NodeIdentity(msgspec.Struct, frozen=True):
    """What has to be equal on all machines: guestemu's version, the version of the program format,
    and a digest of the table of ops, by which the binary form is decoded."""

    version: str
    format: int
    ops: str


def identity() -> NodeIdentity:
    """That of this process."""
    return NodeIdentity(guestemu.__version__, FORMAT_VERSION, table_digest())


class ShareStart(msgspec.Struct, frozen=True):
    """A share of a campaign for one node, for the `life`-th time.

    `workdir` is the submitter's directory, which the node writes in texts in place of its own.
    `entries` are lines of journals by worker index (violations met and not filed, positions);
    `deadly` inputs crashed a worker and are not run again.
    """

    share: int
    life: int
    workdir: str
    record: CampaignRecord
    configs: list[WorkerConfig]
    inputs: list[bytes]
    entries: list[tuple[int, Entry]]
    deadly: list[bytes]


class Post(msgspec.Struct, frozen=True):
    """To a node: inputs that others found; with `is_over` it ends its workers."""

    inputs: list[bytes]
    is_over: bool = False


class News(msgspec.Struct, frozen=True):
    """From a node, since the last one: inputs that covered something new there, entries of its
    journals by worker index (all but inputs), programs of findings by file name, files about deaths
    by name. `figures` are of its whole life. A `failure` ends the campaign. After the one with
    `is_done` nothing follows."""

    inputs: list[bytes]
    entries: list[tuple[int, Entry]]
    findings: list[tuple[str, bytes]]
    files: list[tuple[str, bytes]]
    figures: Figures | None
    is_done: bool = False
    failure: WorkerFailure | None = None


encode: Final = msgspec.msgpack.Encoder().encode
decode_start: Final = msgspec.msgpack.Decoder(ShareStart).decode
decode_post: Final = msgspec.msgpack.Decoder(Post).decode
decode_news: Final = msgspec.msgpack.Decoder(News).decode
