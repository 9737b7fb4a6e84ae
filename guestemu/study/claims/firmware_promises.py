# SPDX-License-Identifier: GPL-2.0-or-later
"""What the SEV firmware's commands do and do not protect: C14, C30, C31.

Run on the model of AMD's published firmware (docs/firmware.md). Facts E1, E2, E7, E11, E12, E15,
E32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.sev_firmware import Command, Status
from guestemu.host.firmware.buffers import ActivateBuffer, CommandBuffer, CopyBuffer, HandleBuffer
from guestemu.host.firmware.dispatch import execute
from guestemu.program.ops import Op, OpKind, canonical_op
from guestemu.study.claims.cache_lines import CACHED, Copied, LineViews, copy_page, look_at_lines
from guestemu.study.claims.claim import Claim, Lab
from guestemu.study.claims.platforms import (
    GUEST_BASE,
    MODEL,
    SOURCE_ASID,
    TARGET_ASID,
    Transfer,
    TransportPacket,
    must,
)
from guestemu.study.claims.result import ClaimResult, ClaimWitness, Evidence, decide
from guestemu.study.claims.witness_text import program_witness

Execute = Callable[[Transfer, Command, CommandBuffer], Status]
"""Runs a command on the source; a test may put a defect in between."""

_DATA_BITS: Final = 512
"""Bits of a packet's data that are flipped one by one, spread over the page."""


def _on_source(transfer: Transfer, command: Command, buffer: CommandBuffer) -> Status:
    return execute(transfer.source, command, buffer)


def cloning(_lab: Lab, run: Execute = _on_source) -> ClaimResult:
    """C14: after SEND_FINISH, what the source's guest can still do."""
    transfer = Transfer()
    transfer.finish()
    handle = transfer.source_handle
    guest = transfer.source.guests[handle]
    runs_at_once = guest.is_active
    successor_runs = transfer.target.guests[transfer.target_handle].is_active
    cancel = run(transfer, Command.SEND_CANCEL, HandleBuffer(handle))
    must(transfer.source, Command.DEACTIVATE, HandleBuffer(handle))
    runs_after_deactivate = guest.is_active
    transfer.source.asids.wbinvd()
    transfer.source.asids.df_flush()
    again = run(transfer, Command.ACTIVATE, ActivateBuffer(handle, SOURCE_ASID))
    is_shut = Status.SUCCESS not in (cancel, again) and not runs_after_deactivate
    return ClaimResult(
        verdict=decide(
            confirmed=not runs_at_once and is_shut,
            refuted=runs_at_once and successor_runs and not is_shut,
            conditional=runs_at_once and successor_runs and is_shut,
        ),
        condition=(
            "the host, which is not trusted, issues DEACTIVATE: until then both guests can run; "
            "after it the old one cannot be activated again"
        ),
        evidence=(
            Evidence("source can run right after SEND_FINISH", _word(runs_at_once), how="ASID"),
            Evidence("target can run", _word(successor_runs), how="after RECEIVE_FINISH"),
            Evidence("SEND_CANCEL after SEND_FINISH", cancel.name, how="firmware status"),
            Evidence("source can run after DEACTIVATE", _word(runs_after_deactivate)),
            Evidence("ACTIVATE of the sent guest", again.name, how="after WBINVD and DF_FLUSH"),
        ),
        guests=(MODEL,),
        witnesses=(
            ClaimWitness(
                "SEND_START, SEND_UPDATE_DATA for each page, SEND_FINISH; no DEACTIVATE, and VMRUN "
                "with the same ASID goes on"
            ),
        ),
    )


def moving_pages(
    _lab: Lab,
    views: Callable[[], LineViews] = look_at_lines,
    copy: Callable[[bool], Copied] = copy_page,
) -> ClaimResult:
    """C30: an encrypted page moved on its host by COPY, and by copying its bytes; the VMM's mapping
    of it and COPY on a CPU with incoherent caches, with and without CLFLUSH."""
    transfer = Transfer()
    platform = transfer.source
    content = bytes(range(256)) * (PAGE_SIZE // 256)
    first, by_command, by_bytes = (GUEST_BASE + index * PAGE_SIZE for index in range(3))
    platform.keys.write(SOURCE_ASID, first, content)
    order = CopyBuffer(transfer.source_handle, PAGE_SIZE, first, by_command)
    status = execute(platform, Command.COPY, order)
    platform.memory.write(by_bytes, platform.memory.read(first, PAGE_SIZE))
    copied = platform.keys.read(SOURCE_ASID, by_command, PAGE_SIZE) == content
    moved = platform.keys.read(SOURCE_ASID, by_bytes, PAGE_SIZE) == content
    seen, flushed, unflushed = views(), copy(True), copy(False)
    can_copy = status is Status.SUCCESS and copied and flushed.kept == PAGE_SIZE
    can_look = seen.mapping_flushed == PAGE_SIZE
    needs_flush = seen.mapping < PAGE_SIZE and unflushed.kept < PAGE_SIZE
    return ClaimResult(
        verdict=decide(
            confirmed=not can_copy or not can_look,
            refuted=can_copy and can_look and not moved and needs_flush,
        ),
        evidence=(
            Evidence("COPY to another page", status.name, how="firmware status, guest active"),
            Evidence("page after COPY", _word(copied, "as before", "changed"), how="guest's key"),
            Evidence(
                "page after a copy of its DRAM bytes",
                _word(moved, "as before", "changed"),
                how="the same key at the new address: the tweak differs (E31)",
            ),
            *_line_evidence(seen, flushed, unflushed),
        ),
        guests=(MODEL,),
        witnesses=(
            ClaimWitness("ACTIVATE, COPY of one page to a free frame, read with the guest's key"),
            program_witness(CACHED, _STALE, "the second look is as the first, the third is not"),
        ),
        remark=(
            "The command exists; KVM up to 7.1 never issues it (read in the source), so pages stay "
            "pinned there. The VMM's mapping shows old bytes until its own lines are flushed, also "
            "when the guest's have reached DRAM: incoherent, but one CLFLUSH away from right."
        ),
    )


_STALE: Final = tuple(
    map(
        canonical_op,
        (
            Op(OpKind.HOST_READ, (0,), has_page=True),
            Op(OpKind.WRITE, (0x22, 0, PAGE_SIZE)),
            Op(OpKind.EVICT, (1, 1), has_page=True),
            Op(OpKind.HOST_READ, (0,), has_page=True),
            Op(OpKind.EVICT, (1, 0), has_page=True),
            Op(OpKind.HOST_READ, (0,), has_page=True),
        ),
    )
)
"""The VMM's view of a private page: stale until its own lines are gone."""


def _line_evidence(
    seen: LineViews, flushed: Copied, unflushed: Copied
) -> tuple[Evidence, Evidence, Evidence, Evidence, Evidence]:
    """What caches do to the VMM's view and to COPY."""
    unit, how = "bytes of the guest's ciphertext", "of 4096; incoherent cache, page was read before"
    kept = "of 4096; the host had cleared the frame"
    return (
        Evidence("VMM's mapping (C=0) of a page that the guest wrote", seen.mapping, unit, how),
        Evidence("the same after CLFLUSH of the mapping", seen.mapping_flushed, unit, how),
        Evidence(
            "the firmware's view of the page, dirty in the cache", seen.firmware, "bytes", "of 4096"
        ),
        Evidence("COPY to a frame with CLFLUSH before", flushed.kept, "bytes kept", kept),
        Evidence("COPY to a frame without", unflushed.kept, "bytes kept", kept),
    )


def tampering(_lab: Lab) -> ClaimResult:
    """C31: packets changed, and packets left as they are but used otherwise."""
    transfer = Transfer()
    pages = [GUEST_BASE + index * PAGE_SIZE for index in range(3)]
    for index, page in enumerate(pages):
        transfer.source.keys.write(SOURCE_ASID, page, bytes([index + 1]) * PAGE_SIZE)
    packets = [transfer.send(page) for page in pages]
    keys = transfer.target.keys
    before = keys.read(TARGET_ASID, pages[0], PAGE_SIZE)
    tried, accepted = _flip_bits(transfer, packets[0], pages[0])
    written = int(keys.read(TARGET_ASID, pages[0], PAGE_SIZE) != before)
    in_order = transfer.receive(packets[2], pages[2]) is Status.SUCCESS
    uses = {"at another page": 0, "a second time": 1, "an old one over a newer": 2}
    misused = {
        name: transfer.receive(packets[1], pages[index]) is Status.SUCCESS
        and keys.read(TARGET_ASID, pages[index], PAGE_SIZE) == b"\2" * PAGE_SIZE
        for name, index in uses.items()
    }
    holds = not accepted and not written
    everything = all(misused.values()) and in_order
    return ClaimResult(
        verdict=decide(
            confirmed=holds and not any(misused.values()) and not in_order,
            refuted=accepted > 0 or written > 0,
            conditional=holds and everything,
        ),
        condition=(
            "tampering means changing the bytes of a packet; which packet becomes which page, how "
            "often and in which order, or not at all, is the hypervisor's choice"
        ),
        evidence=(
            Evidence(
                "packets with one bit flipped",
                tried,
                "packets",
                "every header bit but the compressed flag, and 512 data bits",
            ),
            Evidence("of these accepted", accepted, "packets", "RECEIVE_UPDATE_DATA"),
            Evidence("page changed by them", written, "pages"),
            *(
                Evidence(f"unchanged packet used {name}", _word(done, "accepted", "refused"))
                for name, done in (*misused.items(), ("in another order", in_order))
            ),
        ),
        guests=(MODEL,),
        witnesses=(
            ClaimWitness("SEND_UPDATE_DATA of page 1, RECEIVE_UPDATE_DATA of its packet to page 0"),
        ),
    )


def _flip_bits(transfer: Transfer, packet: TransportPacket, page: int) -> tuple[int, int]:
    """Packets tried and accepted. Bit 0 of the header, the compressed flag, is left out: it is
    refused as unsupported, before the MAC is looked at (E9)."""
    header_bits = range(1, 8 * len(packet.header))
    step = 8 * len(packet.data) // _DATA_BITS
    changed = [TransportPacket(_flip(packet.header, bit), packet.data) for bit in header_bits]
    changed += [
        TransportPacket(packet.header, _flip(packet.data, number * step + number % step))
        for number in range(_DATA_BITS)
    ]
    accepted = sum(transfer.receive(each, page) is Status.SUCCESS for each in changed)
    return len(changed), accepted


def _flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit >> 3] ^= 1 << (bit & 7)
    return bytes(changed)


def _word(value: bool, yes: str = "yes", no: str = "no") -> str:
    return yes if value else no


CLAIMS: Final = (
    Claim(
        "C14",
        "SEND_FINISH makes the source VM non-runnable, which protects it against cloning.",
        "Ashish Kalra, 13 Feb 2020: 'make the VM non-runnable to protect it against cloning'",
        cloning,
        real_test="The SEV firmware of an EPYC host, with SEND_FINISH, then VMRUN of the source",
    ),
    Claim(
        "C30",
        "Encrypted pages cannot be moved on their host, so they have to stay pinned for the "
        "guest's life.",
        "the practice that Andy Lutomirski criticised, 12 Feb 2020: 'we apparently can't even "
        "migrate them to a different NUMA node'",
        moving_pages,
        real_test="The SEV firmware of an EPYC host, with COPY and SWAP on a running guest's pages",
    ),
    Claim(
        "C31",
        "The hypervisor cannot tamper with migrated pages, thanks to the HMAC.",
        "a reading of the SEND/RECEIVE design in Ashish Kalra's cover letter, Feb 2020",
        tampering,
        real_test="The SEV firmware of two EPYC hosts, with packets changed on their way",
    ),
)
