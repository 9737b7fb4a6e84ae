# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a VM's memory slots lie: the header field `layout`, and `--memory`.

    slot@32M,hole@48M+1M,rom@50M+64K

Without a layout one slot covers all of RAM, from GPA 0 on. A word takes a part out: `slot@GPA`
begins another slot, `hole@GPA+SIZE` and `mmio@GPA+SIZE` have no slot, `rom@GPA+SIZE` is a read-only
slot and `plain@GPA+SIZE` one without guest_memfd. `plug@GPA+SIZE` has no slot until the operation
host_commit_slot plugs it: RAM with a guest_memfd of its own. The guest's CPU has RAM there all the
same: a layout says what its hypervisor has.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_MASK

RAM: Final = "slot"
ROM: Final = "rom"
PLAIN: Final = "plain"
PLUG: Final = "plug"
HOLES: Final = frozenset({"hole", "mmio", PLUG})
_KINDS: Final = (RAM, "hole", ROM, "mmio", PLAIN, PLUG)
_WORD: Final = re.compile(r"(?P<kind>[a-z]+)@(?P<gpa>\w+)(?:\+(?P<size>\w+))?")
_NUMBER: Final = re.compile(r"(0x[0-9a-fA-F]{1,16}|[0-9]{1,20})([KMG]?)")
_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30}
_MIB: Final = 20
MAX_WORDS: Final = 32


class Part(msgspec.Struct, frozen=True):
    """A part of a VM's memory: `gpa` and `size` in bytes."""

    kind: str
    gpa: int
    size: int

    @property
    def end(self) -> int:
        """First GPA behind it."""
        return self.gpa + self.size


def parts_of(layout: str, memory: int) -> list[Part]:
    """The parts of `memory` MiB from GPA 0 on, in order. Raises ValueError with a phrase that says
    which word is wrong, and what to write."""
    end = memory << _MIB
    words = [_part(word, end) for word in layout.split(",")] if layout else []
    if len(words) > MAX_WORDS:
        raise ValueError(f"layout has {len(words)} words; use at most {MAX_WORDS}")
    found: list[Part] = []
    place = 0
    for word in sorted(words, key=lambda part: (part.gpa, part.size)):
        if word.gpa < place:
            raise ValueError(f"layout: {word.kind}@{word.gpa:#x} lies in the part before it")
        if word.gpa > place:
            found.append(Part(RAM, place, word.gpa - place))
        place = word.gpa
        if word.kind != RAM:
            found.append(word)
            place = word.end
    if place < end:
        found.append(Part(RAM, place, end - place))
    return found


def _part(word: str, end: int) -> Part:
    match = _WORD.fullmatch(word)
    if match is None or match["kind"] not in _KINDS:
        others = ", ".join(_KINDS[1:])
        raise ValueError(f"layout word {word:.40}: write slot@GPA, or {others}@GPA+SIZE")
    gpa = _number(match["gpa"], word)
    has_size = match["size"] is not None
    size = _number(match["size"], word) if has_size else 0
    if has_size == (match["kind"] == RAM):
        raise ValueError(f"layout word {word:.40}: a slot has no size, every other part has one")
    if gpa & PAGE_MASK or size & PAGE_MASK or (has_size and not size):
        raise ValueError(f"layout word {word:.40}: use whole pages of 4096 bytes")
    if gpa + size > end or gpa >= end:
        raise ValueError(f"layout word {word:.40}: reaches the end of memory, {end:#x}")
    return Part(match["kind"], gpa, size)


def _number(text: str, word: str) -> int:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(
            f"layout word {word:.40}: {text:.20} is not a number with K, M or G behind it"
        )
    return int(match[1], 0) << _UNITS[match[2]]


def split_memory(text: str) -> tuple[int | None, str]:
    """`--memory`: a size in MiB (or with K, M or G) and the words of a layout, either of which may
    be missing. Raises ValueError as `parts_of` does."""
    size, _, layout = text.partition(",")
    if "@" in size:
        return None, text
    match = _NUMBER.fullmatch(size)
    if match is None:
        raise ValueError(f"{size:.20} is not a number of MiB; write 512, 512M or 2G")
    value = int(match[1], 0) << _UNITS[match[2]]
    if match[2] and value & ((1 << _MIB) - 1):
        raise ValueError(f"{size}: use whole MiB")
    return value >> _MIB if match[2] else value, layout
