# SPDX-License-Identifier: GPL-2.0-or-later
"""The readers of the command line: seeds for each, and the commands that read a file."""

from __future__ import annotations

import io
import json
import lzma
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import zstandard

from guestemu.campaign.cluster.jobs import decode_task
from guestemu.campaign.cluster.wire import decode_start
from guestemu.campaign.store import CampaignRecord, Store
from guestemu.campaign.targets import find_target
from guestemu.host.qemu.stream_format import (
    BlockEntry,
    BlockList,
    EndOfSection,
    Format,
    PlainPage,
    ZeroPage,
)
from guestemu.host.qemu.stream_reader import StreamLimits, StreamReader
from guestemu.host.qemu.stream_writer import StreamWriter, write_record
from guestemu.host.qemu.wire import StreamError
from guestemu.program.binary import decode_ops, encode_ops
from guestemu.program.program import Header
from guestemu.program.table import op_table

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
PROGRAM = "guestemu-program 1\nhost {}\n---\nset_memory_decrypted D[3] pages=2\nread D[3]\n\n"
CSV = "event,device,address,size,time_ns,cpu,task,driver,flags,attrs\n" + "".join(
    f"{kind},eth0,0x{0x10000 + 4096 * i:x},{4096 * (1 + i % 3)},{i * 1000},0,t,drv,GFP_KERNEL,\n"
    for i in range(6)
    for kind in ("alloc", "free")
)


class Api(NamedTuple):
    """A reader of bytes: seeds, the function, and what it raises for bad input."""

    seeds: list[bytes]
    read: Callable[[bytes], object]
    refuses: tuple[type[Exception], ...]


class Reader(NamedTuple):
    """`seeds` are whole inputs; `place` is the file below the working directory that one replaces;
    `commands` read it; `prepare` makes what else has to be there."""

    seeds: list[bytes]
    place: str
    commands: list[list[str]]
    prepare: Callable[[Path], None] = lambda _directory: None


def _programs() -> list[bytes]:
    chosen = sorted((ROOT / "corpora").rglob("*.prog"))[::25]
    own = [PROGRAM.format("map-gpa-range") + "expect hypercalls 2\nexpect result 0 at 0\n"]
    own.append(PROGRAM.format("evil.py:Evil"))
    return [*(text.encode() for text in own), *(path.read_bytes() for path in chosen)]


def _head(path: Path, lines: int) -> bytes:
    return b"".join(path.read_bytes().splitlines(keepends=True)[:lines])


def _elf() -> bytes:
    names = b"\0.rodata\0.BTF\0.shstrtab\0"
    table_at = 64 + 56 + len(names)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\2\1\1" + bytes(9),
        *(2, 62, 1, 0x1000000, 64, table_at, 0, 64, 56, 1, 64, 4, 3),
    )
    data = header + struct.pack("<IIQQQQQQ", 1, 5, 0, 0x1000000, 0x1000000, 64, 4096, 4096) + names
    sections = [(0,) * 10, (1, 1, 2, 0, 64, 64, 0, 0, 1, 0), (9, 1, 2, 0, 64, 64, 0, 0, 1, 0)]
    sections.append((14, 3, 0, 0, 120, len(names), 0, 0, 1, 0))
    return data + b"".join(struct.pack("<IIQQQQIIQQ", *one) for one in sections) + bytes(256)


def _package(name: str, packed: bytes) -> bytes:
    head = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(packed):<10}`\n".encode()
    return b"!<arch>\n" + head + packed


def _tar(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("./boot/vmlinuz-6.1")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _bzimage(payload: bytes) -> bytes:
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 0, len(payload))
    return bytes(head) + payload


def _images() -> list[bytes]:
    elf = _elf()
    return [
        elf,
        _bzimage(zstandard.compress(elf)),
        _bzimage(lzma.compress(elf)),
        _package("data.tar", _tar(elf)),
        _package("data.tar.xz", lzma.compress(_tar(elf))),
        _package("data.tar.zst", zstandard.compress(_tar(elf))),
    ]


def make_campaign(directory: Path) -> None:
    """A small campaign in `directory`/w."""
    kinds = find_target("hypercall").kinds
    record = CampaignRecord("hypercall", "snippet:6.1", "map-gpa-range", 39, False, 64)
    root = directory / "w"
    record = CampaignRecord(*[getattr(record, n) for n in record.__struct_fields__[:-1]], {})
    table = op_table(kinds)
    store = Store.create(root, CampaignRecord("hypercall", *_rest(record), table), resume=False)
    store.save_input(bytes(48))
    (root / "findings" / "a-b-1.prog").write_text(PROGRAM.format("map-gpa-range"))
    (root / "findings.json").write_bytes(FINDINGS)
    (root / "stats.jsonl").write_bytes(STATS)
    (root / "journal" / "worker-0.jsonl").write_bytes(JOURNAL)


def _rest(record: CampaignRecord) -> tuple[str, str, int, bool, int]:
    return record.guest, record.host, record.cbit, record.faults, record.memory


FINDINGS = json.dumps([{"key": "a-b-1", "check": "a", "count": 3, "first_seen_s": 1.5}]).encode()
STATS = b"".join(
    b'{"seconds":%d.0,"executions":%d,"execs_per_second":9.5,"corpus_size":2,"guest_blocks":7,'
    b'"model_states":3,"near_misses":1,"findings":1,"rss_mib":90}\n' % (n, 10 * n)
    for n in range(1, 4)
)
JOURNAL = (
    b'{"type":"input","data":"' + b"A" * 64 + b'"}\n'
    b'{"type":"met","sign":"x","data":"' + b"A" * 64 + b'","seconds":1.0}\n'
    b'{"type":"filed","key":"a-b-1","check":"a","seconds":1.0}\n'
    b'{"type":"position","space":"s","position":3}\n'
)
_WORK = [["status", "w"], ["report", "w", "-o", "out.html"], ["status", "w", "--json"]]
_RESUME = ["fuzz", "hypercall", "--workdir", "w", "--resume", "--engine", "random", "--execs", "3"]
PROJECT = b'[tool.guestemu]\nplugins = ["hosts", "."]\n[tool.other]\na = 1\n'


def _evil(directory: Path) -> None:
    (directory / "evil.py").write_text("open('ran', 'w').close()\nclass Evil: pass\n")


def _project(directory: Path) -> None:
    (directory / "a.prog").write_text(PROGRAM.format("none.py:None"))


READERS = {
    "program": Reader(
        _programs(),
        "a.prog",
        [
            ["run", "a.prog", "--limit", "2"],
            [
                "replay",
                "a.prog",
                "--json",
                "--limit",
                "2",
                "--sarif",
                "o.sarif",
                "--junit",
                "o.xml",
            ],
            ["run", "a.prog", "--json", "--limit", "2"],
            ["show", "a.prog"],
            ["replay", "a.prog", "--record", "--limit", "2"],
        ],
        _evil,
    ),
    "recording": Reader(
        [_head(TESTS / "data/kvm-oracle/linux-6.1.jsonl", 14)],
        "r.jsonl",
        [["conform", "r.jsonl"], ["conform", "r.jsonl", "--json", "--kernel", "6.12"]],
    ),
    "trace": Reader(
        [_head(path, 40) for path in sorted((TESTS / "data/dma-traces").glob("*.trace"))],
        "t.trace",
        [
            ["dma", "t.trace", "--guest", "model:6.1"],
            ["dma", "t.trace", "--guest", "model:6.1", "--json", "--policy", "all"],
            ["dma", "t.trace", "--guest", "model:6.1", "--report", "out.html"],
        ],
    ),
    "csv": Reader(
        [CSV.encode()],
        "t.csv",
        [
            ["dma", "t.csv", "--guest", "model:6.1"],
            ["dma", "t.csv", "--guest", "model:6.1", "--json", "--parquet", "p.parquet"],
            ["dma", "t.csv", "--guest", "model:6.1", "--perfetto", "o.perfetto-trace"],
            ["dma", "t.csv", "--guest", "model:6.1", "--migrate", "at=0.000001,rate=1"],
        ],
    ),
    "image": Reader(_images(), "vmlinuz", [["kernel", "info", "--image", "vmlinuz"]]),
    "findings": Reader([FINDINGS], "w/findings.json", _WORK, make_campaign),
    "stats": Reader([STATS], "w/stats.jsonl", _WORK, make_campaign),
    "journal": Reader(
        [JOURNAL], "w/journal/worker-0.jsonl", [["status", "w"], _RESUME], make_campaign
    ),
    "campaign": Reader([], "w/campaign.json", [*_WORK, _RESUME, ["merge", "w"]], make_campaign),
    "corpus": Reader(
        [bytes(48), bytes(range(96)) * 3],
        "w/corpus/input",
        [["merge", "w", "-o", "small"], ["report", "w", "-o", "out.html"]],
        make_campaign,
    ),
    "finding": Reader(
        [_programs()[0]],
        "w/findings/a-b-1.prog",
        [["report", "w", "-o", "out.html"], ["triage", "w", "--no-write"]],
        make_campaign,
    ),
    "project": Reader(
        [PROJECT],
        "pyproject.toml",
        [["run", "a.prog"]],
        _project,
    ),
}
"""Every file that a user can hand over, by what it is."""


def _stream(wire: Format) -> bytes:
    class Sink:
        def __init__(self) -> None:
            self.data = bytearray()

        def write(self, data: bytes) -> None:
            self.data += data

    sink = Sink()
    writer = StreamWriter(sink, wire)
    for record in (
        BlockList(0x44000, (BlockEntry("pc.ram", 0x40000), BlockEntry("vga.vram", 0x4000))),
        PlainPage("pc.ram", 0x1000, bytes(4096)),
        ZeroPage("pc.ram", 0x2000, 0),
        EndOfSection(),
    ):
        write_record(writer, record)
    return bytes(sink.data)


def _read_stream(wire: Format) -> Callable[[bytes], object]:
    limits = StreamLimits({"pc.ram": 0x40000, "vga.vram": 0x4000}, 0x40)
    return lambda data: list(StreamReader(wire, limits).read(data))


def _decode(data: bytes) -> object:
    ops = decode_ops(data, Header(memory=4096, vcpus=3))
    again = decode_ops(encode_ops(ops), Header(memory=4096, vcpus=3))
    assert again == ops
    return ops


API = {
    "ops": Api([bytes(480), bytes(range(240)) * 2], _decode, ()),
    **{
        f"stream-{wire.name}": Api([_stream(wire)], _read_stream(wire), (StreamError,))
        for wire in Format
    },
    "start": Api(
        [b"\x80", b"\x88\xa5share\x00\xa4life\x01\xa7workdir\xa1w\xa6inputs\x90"],
        decode_start,
        (msgspec.MsgspecError,),
    ),
    "task": Api(
        [b"\x82\xa6number\x00\xa5batch\x81\xa4type\xa6replay"],
        decode_task,
        (msgspec.MsgspecError,),
    ),
}
"""Readers that no command takes a file for: bytes of a corpus, streams, messages of a cluster."""
