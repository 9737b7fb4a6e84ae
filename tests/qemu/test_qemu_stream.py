# SPDX-License-Identifier: GPL-2.0-or-later
"""The RAM stream on the wire: layout byte by byte, round trips, hostile and truncated input."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc

import pytest

from guestemu.abi.errors import InputError
from guestemu.host.kvm.findings import FindingKind
from guestemu.host.qemu import status_fields
from guestemu.host.qemu.interfaces import SendStart, SevPacket
from guestemu.host.qemu.stream_format import (
    BitmapRange,
    BlockEntry,
    BlockList,
    EncryptedPage,
    EndOfSection,
    Format,
    HelperPage,
    PlainPage,
    Record,
    SharedRegions,
    StatusBitmap,
    ZeroPage,
    page_word,
    split_word,
)
from guestemu.host.qemu.stream_reader import StreamLimits, StreamReader
from guestemu.host.qemu.stream_writer import StreamWriter, write_record
from guestemu.host.qemu.wire import StreamError

RAM = 0x40000
LIMITS = StreamLimits({"pc.ram": RAM, "vga.vram": 0x4000}, RAM >> 12)
PACKET = SevPacket(b"h" * 52, b"t" * 4096)
START = SendStart(1, b"P" * 2084, b"S" * 128)


class Sink:
    """A channel into memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        self.data += data


def written(records: list[Record], wire: Format) -> bytes:
    sink = Sink()
    writer = StreamWriter(sink, wire)
    for record in records:
        write_record(writer, record)
    return bytes(sink.data)


def read(data: bytes, wire: Format, *, repaired: bool = True) -> list[Record]:
    return list(StreamReader(wire, LIMITS, is_repaired=repaired).read(data))


def refused(data: bytes, wire: Format = Format.BITMAP, *, repaired: bool = True) -> StreamError:
    with pytest.raises(StreamError) as caught:
        read(data, wire, repaired=repaired)
    assert "\n" not in str(caught.value)
    return caught.value


def u32(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def u64(*values: int) -> bytes:
    return struct.pack(f">{len(values)}Q", *values)


def name(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def common(status: Record) -> list[Record]:
    return [
        BlockList(RAM + 0x4000, (BlockEntry("pc.ram", RAM), BlockEntry("vga.vram", 0x4000))),
        EndOfSection(),
        EncryptedPage("pc.ram", 0x3000, START, PACKET),
        EncryptedPage("pc.ram", 0x4000, None, PACKET),
        PlainPage("vga.vram", 0x1000, bytes(range(256)) * 16),
        ZeroPage("vga.vram", 0x2000, 0),
        EndOfSection(),
        status,
        EndOfSection(),
    ]


BITMAP = StatusBitmap((BitmapRange(0, 64, b"\xff" * 8),))
CASES = {
    Format.FLAGS_2019_V2: common(BITMAP),
    Format.BITMAP: [
        *common(StatusBitmap((*BITMAP.ranges, BitmapRange(0x3000, 3, b"\x05" + bytes(7))))),
        HelperPage("pc.ram", 0x5000, PACKET),
    ],
    Format.LIST: common(SharedRegions(((1, 4), (0x20, 0xFFFFFFFF)))),
}


@pytest.mark.parametrize("wire", Format)
@pytest.mark.parametrize("repaired", [True, False])
def test_what_is_written_is_read(wire: Format, repaired: bool) -> None:
    records = CASES[wire]
    assert read(written(records, wire), wire, repaired=repaired) == records


@pytest.mark.parametrize("wire", Format)
def test_reading_in_pieces_and_from_a_pipe(wire: Format) -> None:
    """One reader keeps block, offset and the state of SEND_START from piece to piece."""

    class Pipe(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self.inner = io.BytesIO(data)

        def read(self, size: int = -1) -> bytes:
            return self.inner.read(size)

    reader = StreamReader(wire, LIMITS)
    pieces: list[bytes] = []

    class Pieces:
        def write(self, data: bytes) -> None:
            pieces.append(data)

    writer = StreamWriter(Pieces(), wire)
    for record in CASES[wire]:
        write_record(writer, record)
    found = [record for piece in pieces for record in reader.read(Pipe(piece))]
    assert found == CASES[wire]
    assert reader.offset == sum(map(len, pieces))


def test_the_layout_of_2020() -> None:
    """D12: flag 0x200, be32 subtype; start data on the first page; CONTINUE drops the name."""
    records: list[Record] = [
        EncryptedPage("pc.ram", 0x3000, SendStart(7, b"pp", b"sss"), SevPacket(b"hh", b"d")),
        EncryptedPage("pc.ram", 0x4000, None, SevPacket(b"h", b"dd")),
        StatusBitmap((BitmapRange(0x1000, 2, b"\x01" + bytes(7)),)),
    ]
    assert written(records, Format.BITMAP) == (
        u64(0x3200) + name("pc.ram") + u32(1)
        + u32(7) + u32(2) + b"pp" + u32(3) + b"sss" + u32(2) + b"hh" + u32(1) + b"d"
        + u64(0x4220) + u32(1) + u32(1) + b"h" + u32(2) + b"dd"
        + u64(0x220) + u32(2) + u32(1) + u64(0x1000, 2, 8) + b"\x01" + bytes(7) + u32(2)
    )  # fmt: skip


def test_the_layout_of_2019_v2() -> None:
    """D8b: no subtype; the bitmap under a flag of its own, without a block."""
    records: list[Record] = [
        EncryptedPage("pc.ram", 0x1000, SendStart(7, b"p", b"s"), SevPacket(b"h", b"d")),
        BITMAP,
    ]
    assert written(records, Format.FLAGS_2019_V2) == (
        u64(0x1200) + name("pc.ram")
        + u32(7) + u32(1) + b"p" + u32(1) + b"s" + u32(1) + b"h" + u32(1) + b"d"
        + u64(0x400, 0, 64, 8) + b"\xff" * 8
    )  # fmt: skip


def test_the_layout_of_plain_records_and_the_list() -> None:
    records: list[Record] = [
        BlockList(0x4000, (BlockEntry("vga.vram", 0x4000),)),
        ZeroPage("vga.vram", 0x3000, 0),
        SharedRegions(((1, 4),)),
        EndOfSection(),
    ]
    sink = Sink()
    writer = StreamWriter(sink, Format.LIST)
    for record in records:
        write_record(writer, record, block="vga.vram")
    assert bytes(sink.data) == (
        u64(0x4004) + name("vga.vram") + u64(0x4000)
        + u64(0x3002) + name("vga.vram") + b"\0"
        + u64(0x220) + u32(2) + u32(1, 1, 4, 2)
        + u64(0x10)
    )  # fmt: skip


def test_flag_0x400_is_an_address_bit_of_1_kib_pages() -> None:
    """M75, Gilbert: with the smallest target page the flag cannot be told from an offset."""
    assert split_word(page_word(0, 0x400), 12) == (0, 0x400)
    assert split_word(page_word(0, 0x400, 10), 10) == (0x400, 0)
    reader = StreamReader(Format.FLAGS_2019_V2, LIMITS, page_bits=10)
    bitmap = written([BITMAP], Format.FLAGS_2019_V2)
    with pytest.raises(StreamError, match="unknown combination 0x0"):
        list(reader.read(bitmap))


@pytest.mark.parametrize("wire", Format)
def test_every_truncation_is_refused_with_the_place(wire: Format) -> None:
    data = written(CASES[wire], wire)
    starts = [0]
    sink = Sink()
    writer = StreamWriter(sink, wire)
    for record in CASES[wire]:
        write_record(writer, record)
        starts.append(len(sink.data))
    for cut in (*range(0, 400, 3), *range(len(data) - 400, len(data))):
        if cut in starts:
            read(data[:cut], wire)
            continue
        error = refused(data[:cut], wire)
        assert error.fault.offset <= cut
        assert "the stream ends after" in str(error)


HUGE = 1 << 63


@pytest.mark.parametrize(
    ("data", "field", "value", "limit"),
    [
        (u64(0x200) + name("pc.ram") + u32(1, 0, 0xFFFFFFFF), "PDH length", 0xFFFFFFFF, 0x4000),
        (u64(0x200) + name("pc.ram") + u32(1, 0, 0), "PDH length", 0, 0x4000),
        (u64(0x200) + name("pc.ram") + u32(3), "subtype", 3, 0),
        (u64(0x200) + name("pc.ram") + u32(2, 1) + u64(0, 64, HUGE), "bitmap size", HUGE, 8),
        (u64(0x200) + name("pc.ram") + u32(2, 1) + u64(0, 64, 16), "bitmap size", 16, 8),
        (u64(0x200) + name("pc.ram") + u32(2, 1) + u64(0, HUGE, 8), "bitmap npages", HUGE, 64),
        (u64(0x200) + name("pc.ram") + u32(2, 1) + u64(0, 0, 0), "bitmap npages", 0, 64),
        (u64(0x200) + name("pc.ram") + u32(2, 1) + u64(8, 1, 8), "bitmap base GPA", 8, 0xFFF),
        (u64(0x200) + name("pc.ram") + u32(2, 9), "bitmap marker", 9, 2),
        (u64(0x40008) + name("pc.ram"), "page offset", RAM, RAM),
        (u64(0x8) + name("pc.rom"), "block name", 0, 0),
        (u64(0x28), "flags", 0x28, 0),
        (u64(0xA) + name("pc.ram"), "flags", 0xA, 0),
        (u64(0x40), "flags", 0x40, 0),
        (u64(HUGE | 4) + name("pc.ram") + u64(HUGE), "length of block 'pc.ram'", HUGE, RAM),
        (u64(RAM * 2 | 4) + (name("pc.ram") + u64(RAM)) * 2, "block list", RAM, 0),
    ],
)
def test_hostile_fields_are_named(data: bytes, field: str, value: int, limit: int) -> None:
    fault = refused(data).fault
    assert (fault.field, fault.value, fault.limit) == (field, value, limit)
    assert 0 <= fault.offset < len(data)


def test_hostile_region_lists() -> None:
    head = u64(0x200) + name("pc.ram") + u32(2)
    assert refused(head + u32(1, 5, 5, 2), Format.LIST).fault.field == "region"
    assert refused(head + u32(1, 5, 9, 1, 4, 6, 2), Format.LIST).fault.field == "region"
    assert refused(head + u32(1, 5, 9, 3), Format.LIST).fault.field == "region marker"
    many = refused(head + u32(1, 0, 1) * 10_000, Format.LIST).fault
    assert (many.value, many.limit) == (64 + 4096 + 1, 64 + 4096)


def test_the_posted_reader_believes_and_the_harm_is_noted() -> None:
    """M75: malloc of what the wire says; npages to KVM unchecked; nothing of ours grows."""
    head = u64(0x400)
    reader = StreamReader(Format.FLAGS_2019_V2, LIMITS, is_repaired=False)
    (record,) = reader.read(head + u64(4, 1 << 20, 8) + bytes(8))
    assert record == StatusBitmap((BitmapRange(4, 1 << 20, bytes(8)),))
    kinds = [(f.kind, f.amount) for f in reader.findings]
    assert kinds == [
        (FindingKind.OUT_OF_BOUNDS, (1 << 17) - 8),
        (FindingKind.OUT_OF_BOUNDS, 0),
    ]
    reader = StreamReader(Format.FLAGS_2019_V2, LIMITS, is_repaired=False)
    with pytest.raises(StreamError, match="malloc of 9223372036854775808 bytes"):
        list(reader.read(head + u64(0, 64, HUGE)))
    assert [(f.kind, f.amount) for f in reader.findings] == [(FindingKind.HOST_MEMORY, HUGE)]


@pytest.mark.parametrize("repaired", [True, False])
def test_memory_stays_bounded(repaired: bool) -> None:
    """A 4 GiB packet length and a 2^63 bitmap cost no more than the bytes that are there."""
    hostile = [
        u64(0x200) + name("pc.ram") + u32(1, 0, 0xFFFFFFFF) + bytes(1000),
        u64(0x200) + name("pc.ram") + u32(2, 1) + u64(0, HUGE, HUGE) + bytes(1000),
        u64(0xFFFF_FFFF_FFFF_F004) + name("pc.ram") + u64(0xFFFF_FFFF_FFFF_F000),
    ]
    tracemalloc.start()
    for data in hostile:
        refused(data, repaired=repaired)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_an_endless_source_ends_for_the_posted_reader_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A list or a bitmap without end is refused at a bound, and noted."""

    monkeypatch.setattr(status_fields, "REGION_BOUND", 5000)

    class Endless(io.RawIOBase):
        def __init__(self, head: bytes, body: bytes) -> None:
            self.head = head
            self.body = body

        def read(self, size: int = -1) -> bytes:
            while len(self.head) < size:
                self.head += self.body
            data, self.head = self.head[:size], self.head[size:]
            return data

    head = u64(0x200) + name("pc.ram") + u32(2)
    reader = StreamReader(Format.LIST, LIMITS, is_repaired=False)
    with pytest.raises(StreamError, match="more than 5000 regions"):
        list(reader.read(Endless(head, u32(1, 0, 1))))
    assert reader.findings[0].amount == 40 * 5001
    reader = StreamReader(Format.BITMAP, LIMITS, is_repaired=False)
    one = u32(1) + u64(0, 8 << 16, 1 << 16) + bytes(1 << 16)
    with pytest.raises(StreamError, match="bytes together"):
        list(reader.read(Endless(head, one)))
    page = u64(0x200) + name("pc.ram") + u32(1, 0, 0xFFFFFFFF)
    reader = StreamReader(Format.BITMAP, LIMITS, is_repaired=False)
    with pytest.raises(StreamError, match="QEMU waits for 4294967295 bytes"):
        list(reader.read(io.BytesIO(page)))
    assert [finding.amount for finding in reader.findings] == [0xFFFFFFFF]


@pytest.mark.parametrize("wire", Format)
@pytest.mark.parametrize("repaired", [True, False])
def test_random_damage_never_escapes_the_error_tree(wire: Format, repaired: bool) -> None:
    """1000 damaged streams: records or a StreamError, and nothing else."""
    data = written(CASES[wire], wire)
    rng = random.Random(5)
    refusals = 0
    for _ in range(1000):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 5)):
            damaged[rng.randrange(200) - rng.choice((0, 200))] = rng.choice((0, 1, 0x80, 0xFF))
        try:
            read(bytes(damaged), wire, repaired=repaired)
        except StreamError:
            refusals += 1
    assert refusals > 200


def test_the_writer_refuses_what_the_format_lacks() -> None:
    sink = Sink()
    writer = StreamWriter(sink, Format.LIST)
    with pytest.raises(InputError, match="16 TiB"):
        writer.shared_regions([(0, 1 << 32)], "pc.ram")
    with pytest.raises(InputError, match="list of regions"):
        writer.status_bitmap([], "pc.ram")
    with pytest.raises(InputError, match="bitmap"):
        StreamWriter(Sink(), Format.BITMAP).shared_regions([], "pc.ram")
    with pytest.raises(InputError, match="subtypes"):
        StreamWriter(Sink(), Format.FLAGS_2019_V2).helper_page("pc.ram", 0, PACKET)
    with pytest.raises(InputError, match="not a multiple"):
        writer.zero_page("pc.ram", 0x10)
    assert not sink.data


def test_a_posted_list_loses_the_upper_half_of_a_gfn() -> None:
    """D22, M55."""
    sink = Sink()
    StreamWriter(sink, Format.LIST, wide_gfns=True).shared_regions([(1, (1 << 32) + 9)], "pc.ram")
    assert read(bytes(sink.data), Format.LIST) == [SharedRegions(((1, 9),))]
