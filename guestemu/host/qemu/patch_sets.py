# SPDX-License-Identifier: GPL-2.0-or-later
"""The posted patch sets, their defects, and the order of steps in a pass.

A patch set has the defects of its time; `repaired` takes some out. Source: facts D1 to D25, H.3.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.host.qemu.stream_format import Format


class QemuDefect(enum.Enum):
    """A defect as posted; its value is the switch that repairs it."""

    SLOT_SECTION = "slot-section"
    """D2, M49: bitmap sized and fetched by KVM slot, stored by memory section."""
    ZERO_WORD = "zero-word"
    """D4, D10, M45: a word of 64 shared pages is not stored; they stay encrypted."""
    TAIL_BITS = "tail-bits"
    """D4: the last word is stored whole; pages behind the range get its bits."""
    UNALIGNED_STRIDE = "unaligned-stride"
    """D5, M46: one page per word of 64, whole words exchanged, no shift."""
    WORD_TEST = "word-test"
    """D6, M47: a page counts as encrypted if any page of its word is."""
    CLEAR_STATUS = "clear-status"
    """D7, M48: clearing a range's dirty bits (RAM block resize) also clears its status."""
    INT_PAGES = "int-pages"
    """D8: page counts are int; 2^31 pages and more are negative."""
    OPPOSITE_DEFAULTS = "defaults"
    """D1, M51: the global map starts as shared, the maps of the blocks as encrypted."""
    DEVICE_RAM = "device-ram"
    """D8c, M76: device RAM without a notification is sent as private."""
    UNCHECKED_WIRE = "unchecked-wire"
    """D8b, M75: lengths and counts of the stream are believed."""
    MASK = "mask"
    """D10, M50: mask ~0 >> n instead of ~0 >> (64 - n)."""
    BYTE_PAGE = "byte-page"
    """D10, M50: position from the byte address, cursor moved by pages as if they were bytes."""
    VALUE_SHIFT = "value-shift"
    """D10: the bits are not shifted to their position in the word."""
    RETURN_OVERWRITTEN = "return-overwritten"
    """D12: the result of the last page loop is overwritten by that of the status record."""
    FINISH_ON_FAILURE = "finish-on-failure"
    """D16, M52: SEND_FINISH instead of SEND_CANCEL when a migration failed."""
    DANGLING_HEADER = "dangling-header"
    """D16, M52: the packet header buffer is freed, its pointer kept."""
    LIST_LOAD = "list-load"
    """D22, M55: an incoming list is appended to what is there."""
    LIST_WIDTH = "list-width"
    """D22, M55: gfns are cut to 32 bits on the wire."""
    LIST_RESET = "list-reset"
    """D22, M55: the list survives a system reset."""
    BLOCK_GFN = "block-gfn"
    """D23, M56: the gfn of a page is taken from the address of its block's memory region."""


class StepKind(enum.Enum):
    """A step of a pass; the letters are those of `guestemu explore`."""

    FETCH = "D"
    """KVM_GET_DIRTY_LOG that clears: into the migration bitmap."""
    GET = "G"
    """KVM_GET_DIRTY_LOG that does not clear (manual protect)."""
    CLEAR = "C"
    """KVM_CLEAR_DIRTY_LOG of all that GET found."""
    STATUS = "E"
    """The page status into QEMU's copy."""
    SEND = "S"
    """One page of the migration bitmap, by the copied status."""
    SEND_LIVE = "L"
    """The same, by the status as it is now."""


Order = tuple[StepKind, ...]


def parse_order(text: str) -> Order:
    """An order from its letters, such as "DES"; `InputError` names the bad one.

    D clears the log by itself, so it cannot be joined with G or C; exactly one step, the last,
    sends.
    """
    letters = {kind.value: kind for kind in StepKind}
    bad = [letter for letter in text if letter not in letters]
    if bad:
        raise InputError(f"order {text!r}: no step {bad[0]!r}; steps are D G C E S L")
    order = tuple(letters[letter] for letter in text)
    if not order or text[-1] not in "SL" or any(letter in "SL" for letter in text[:-1]):
        raise InputError(f"order {text!r}: must end with S or L and hold it once")
    if ("D" in text) == ("G" in text) or ("D" in text and "C" in text):
        raise InputError(f"order {text!r}: fetch with D alone, or with G and then C or lazily")
    return order


ORDERS: Final[dict[str, Order]] = {
    name: parse_order(text)
    for name, text in (
        ("1", "DES"),
        ("2", "EDS"),
        ("3", "GECS"),
        ("4", "GCES"),
        ("5", "DL"),
        ("6", "GCL"),
        ("lazy", "GES"),
        ("lazy-live", "GL"),
    )
}
"""Rows 1 to 6 of facts G.2, and the two that QEMU has with a manual-protect log: the clear comes
chunk by chunk, right before a page of the chunk is sent (D32)."""


class PatchSet(msgspec.Struct, frozen=True):
    """One posted version. `wire` is its stream format; `order` its steps with an auto-clear log;
    `forces_flash`: code flash counts as encrypted, variable flash as plain (D13); `resets_status`:
    a reset of the boot CPU makes every page encrypted (D15); `downtime_ms` its downtime limit
    (D14)."""

    name: str
    summary: str
    wire: Format
    order: Order
    defects: frozenset[QemuDefect]
    forces_flash: bool = False
    resets_status: bool = False
    downtime_ms: int = 300


_D: Final = QemuDefect
_IN_2019: Final = frozenset(
    {
        _D.SLOT_SECTION,
        _D.ZERO_WORD,
        _D.TAIL_BITS,
        _D.UNALIGNED_STRIDE,
        _D.WORD_TEST,
        _D.CLEAR_STATUS,
        _D.INT_PAGES,
        _D.OPPOSITE_DEFAULTS,
        _D.DEVICE_RAM,
        _D.UNCHECKED_WIRE,
    }
)
_IN_2020: Final = frozenset(
    {
        _D.ZERO_WORD,
        _D.MASK,
        _D.BYTE_PAGE,
        _D.VALUE_SHIFT,
        _D.RETURN_OVERWRITTEN,
        _D.FINISH_ON_FAILURE,
        _D.DANGLING_HEADER,
        _D.DEVICE_RAM,
        _D.UNCHECKED_WIRE,
    }
)
_IN_2021: Final = frozenset(
    {
        _D.LIST_LOAD,
        _D.LIST_WIDTH,
        _D.LIST_RESET,
        _D.BLOCK_GFN,
        _D.DEVICE_RAM,
        _D.UNCHECKED_WIRE,
    }
)

PATCH_SETS: Final[dict[str, PatchSet]] = {
    patch_set.name: patch_set
    for patch_set in (
        PatchSet(
            "2019-v2",
            "July 2019: bitmap from KVM, flags 0x200 and 0x400",
            Format.FLAGS_2019_V2,
            ORDERS["1"],
            _IN_2019,
        ),
        PatchSet(
            "2019-v3",
            "August 2019: the same with subtypes",
            Format.BITMAP,
            ORDERS["1"],
            _IN_2019,
        ),
        PatchSet(
            "2020-v1",
            "May 2020: bitmap from KVM, status once at the end",
            Format.BITMAP,
            ORDERS["1"],
            _IN_2020,
            forces_flash=True,
            resets_status=True,
            downtime_ms=1000,
        ),
        PatchSet(
            "2021-v4",
            "August 2021: list of shared regions in QEMU, looked up at each page",
            Format.LIST,
            ORDERS["5"],
            _IN_2021,
            forces_flash=True,
            downtime_ms=1000,
        ),
    )
}


def patch_set(name: str) -> PatchSet:
    """The patch set `name`, or `InputError`."""
    if name not in PATCH_SETS:
        raise InputError(f"QEMU patch set {name!r}: unknown; there are {', '.join(PATCH_SETS)}")
    return PATCH_SETS[name]


def defects_left(version: PatchSet, repaired: Iterable[str]) -> frozenset[QemuDefect]:
    """The defects of `version` without those in `repaired`; `InputError` for a switch that the
    version does not have."""
    names = frozenset(repaired)
    own = {defect.value for defect in version.defects}
    unknown = sorted(names - own)
    if unknown:
        raise InputError(
            f"repair switch {unknown[0]!r}: {version.name} has only {', '.join(sorted(own))}"
        )
    return frozenset(defect for defect in version.defects if defect.value not in names)
