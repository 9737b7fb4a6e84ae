# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a migrated guest reads what it wrote: `lost_strict` and `lost_defined` (H.4, 4).

The check keeps, for the pages a migration is about, what the guest wrote last, byte by byte, and
which of it is still defined: written after the last change of the page's C-bit. When the guest
reads such a page at the destination, the whole page as the guest's present mapping shows it is
compared. `lost_strict`: it differs, whatever flips came after the write. `lost_defined`: a byte
differs that is still defined. A private send of plain bytes and a plain send of ciphertext end
here; whether a loss by `lost_strict` alone is a loss is what the debate was about (C7, C15b).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa, Gva, gpa_text
from guestemu.abi.x86 import PTE_ADDRESS_MASK
from guestemu.checks.base import OpView, Oracle, Violation
from guestemu.guest.base import Guest
from guestemu.machine.cache import peek
from guestemu.machine.paging import translate
from guestemu.program.ops import OpKind

LOST_STRICT: Final = "lost_strict"
LOST_DEFINED: Final = "lost_defined"

_MAX_PAGES: Final = 64
"""Pages of MIGRATE_START whose content is kept from the start; others from their first store on."""


_ONES: Final = bytes((0, *(1,) * 255))
"""Every byte but 0 becomes 1."""


@dataclass(slots=True)
class _Written:
    """A page as the guest believes it to be: its bytes, and 1 for each that is defined."""

    content: bytearray
    defined: bytearray


class LostCheck(Oracle):
    """The ledger of one migration. The migration's operations put it in place and remove it."""

    name = "lost"
    kinds: frozenset[OpKind] | None = None
    demands: ClassVar[Mapping[str, str]] = {
        LOST_STRICT: "At the destination the guest reads the bytes that it wrote last.",
        LOST_DEFINED: (
            "At the destination the guest reads the bytes that it wrote last, where no change "
            "of the C-bit came after."
        ),
    }
    explanations: ClassVar[Mapping[str, str]] = {
        LOST_STRICT: (
            "The destination does not hold what the guest wrote last: the page was sent with "
            "another status than it had, or not sent again."
        ),
        LOST_DEFINED: (
            "The destination does not hold what the guest wrote last, and no change of the C-bit "
            "came after that write, so the guest may rely on it."
        ),
    }

    def __init__(self) -> None:
        self._pages: dict[int, _Written] = {}
        self._is_moved = False

    def after(self, view: OpView) -> Iterable[Violation]:
        """Notes stores and flips; judges a READ at the destination."""
        op = view.op
        kind = op.kind
        if kind is OpKind.MIGRATE_START or kind is OpKind.MIGRATE_HANDLER:
            for page in range(op.page, op.page + min(op.arguments[0], _MAX_PAGES)):
                self._note(view, view.guest.gva(op.region, page))
        elif kind is OpKind.MIGRATE_STOP:
            self._is_moved = view.outcome.value == 0
        for flip in view.flips:
            self._undefine(flip.gfn, flip.pages)
        if view.outcome.value is None:
            if kind is OpKind.WRITE:  # who knows how far it came
                self._pages.clear()
        elif kind is OpKind.WRITE:
            self._store(view)
        elif kind is OpKind.READ and self._is_moved:
            return self._judge(view)
        return ()

    def _undefine(self, gfn: int, pages: int) -> None:
        for frame, written in self._pages.items():
            if gfn <= frame < gfn + pages:
                written.defined[:] = bytes(PAGE_SIZE)

    def _note(self, view: OpView, gva: int) -> None:
        """The page at `gva` is as it should be now."""
        found = _read_page(view.guest, gva)
        if found is not None:
            gfn, content, _ = found
            self._pages[gfn] = _Written(bytearray(content), bytearray(b"\1" * PAGE_SIZE))

    def _store(self, view: OpView) -> None:
        value, offset, size = view.op.arguments
        start = view.guest.gva(view.op.region, view.op.page) + offset
        end = start + size
        for page in range(start >> PAGE_SHIFT, (end - 1 >> PAGE_SHIFT) + 1):
            gva = page << PAGE_SHIFT
            gfn = _frame(view.guest, gva)
            if gfn not in self._pages:
                self._note(view, gva)
                continue
            first, last = max(start - gva, 0), min(end - gva, PAGE_SIZE)
            written = self._pages[gfn]
            written.content[first:last] = bytes([value]) * (last - first)
            written.defined[first:last] = b"\1" * (last - first)

    def _judge(self, view: OpView) -> Iterable[Violation]:
        gva = view.guest.gva(view.op.region, view.op.page)
        found = _read_page(view.guest, gva)
        if found is None or found[0] not in self._pages:
            return
        gfn, content, is_private = found
        written = self._pages[gfn]
        if content == written.content:
            return
        wrong = _difference(content, written.content)
        place = PAGE_SIZE - len(wrong.lstrip(b"\0"))
        mapping = "private" if is_private else "shared"
        message = (
            f"{gpa_text(gfn)}, read through a {mapping} PTE at the destination: byte {place:#x} is "
            f"{content[place]:#04x}, the guest wrote {written.content[place]:#04x} "
            f"({sum(wrong)} bytes differ)"
        )
        yield Violation(LOST_STRICT, view.index, message, "H.4 item 4")
        if int.from_bytes(wrong) & int.from_bytes(written.defined):
            yield Violation(LOST_DEFINED, view.index, message, "H.4 item 4")


def _difference(content: bytes, expected: bytes | bytearray) -> bytes:
    """1 for each byte of a page that differs, else 0."""
    differing = int.from_bytes(content) ^ int.from_bytes(expected)
    return differing.to_bytes(PAGE_SIZE).translate(_ONES)


def _frame(guest: Guest, gva: int) -> int:
    found = _translate(guest, gva)
    return -1 if found is None else found[0] >> PAGE_SHIFT


def _translate(guest: Guest, gva: int) -> tuple[Gpa, bool] | None:
    """GPA and C-bit of `gva` by the tables that CR3 names, whatever mode the CPU is in."""
    machine = guest.machine
    root = Gpa(machine.current.read_register("cr3") & PTE_ADDRESS_MASK & ~machine.pte_cbit)
    return translate(machine.ram, machine.bit, root, Gva(gva))


def _read_page(guest: Guest, gva: int) -> tuple[int, bytes, bool] | None:
    """Frame, content and C-bit of the page at `gva`; None where nothing is mapped."""
    found = _translate(guest, gva)
    ram = guest.machine.ram
    if found is None or found[0] >> PAGE_SHIFT >= ram.frames:
        return None
    gpa, is_private = found
    return gpa >> PAGE_SHIFT, peek(ram, gpa, PAGE_SIZE, is_private), is_private
