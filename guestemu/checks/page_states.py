# SPDX-License-Identifier: GPL-2.0-or-later
"""What no hypervisor may reach in its SNP guest or TD, whatever it does (N55; T12, T14).

* No guest frame has two validated system frames. With two, the hypervisor can show the guest old
  content in place of new at any time, and neither the RMP nor the guest notices. A guest gets there
  only if it validates a page for a second time after other memory was put behind it.
* The plaintext of a validated page is in the private view of its own frame only: not in what a C=0
  access or the host reads, and not behind another guest frame that the guest could read.
* A guest that goes on goes on right: it reads what it wrote last, as long as it has not converted
  the page since, and a page that it was told is private is validated.

Of a TD only the last is judged: its module keeps the frames and their plaintext from the VMM, and
what a second ACCEPT of a page comes to is `accepted-twice` (td.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Final, Protocol, runtime_checkable

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa, gpa_text
from guestemu.abi.regions import Region
from guestemu.checks.base import OpView, Oracle, Violation
from guestemu.checks.psc import sev_of
from guestemu.events.tdx import MapGpaCall
from guestemu.guest.linux.snp import Snp
from guestemu.host.base import Host
from guestemu.machine.rmp import VALIDATED, Rmp, What, host_access
from guestemu.program.ops import OpKind

PLAINTEXT: Final = "page-plaintext"
CONTENT: Final = "page-content"

_WORD: Final = 8


@runtime_checkable
class HasRmp(Protocol):
    """A guest that runs under SNP."""

    @property
    def rmp(self) -> Rmp | None:
        """The reverse map table; None for a guest without SNP."""


class PageStateCheck(Oracle):
    """No guest frame of an SNP guest has two validated system frames, and only its guest reads a
    validated page (N55). An SNP guest or a TD that goes on reads what it wrote.

    Encrypting a page that is already private validates it a second time: a caller's defect, which
    a hypervisor can use, and not judged. A guest that did not come back from an
    operation is not judged any more: what a program calls in it afterwards cannot happen.
    """

    name = "page-states"
    kinds: frozenset[OpKind] | None = None

    demands: ClassVar[Mapping[str, str]] = {
        "page-states": "No frame of the guest has two system frames that are validated for it.",
        PLAINTEXT: "The plaintext of a validated page is only in the private view of its frame.",
        CONTENT: "A guest that goes on reads what it wrote last, in pages that are validated.",
    }
    explanations: ClassVar[Mapping[str, str]] = {
        "page-states": "The hypervisor can show the guest old content in place of new at any time.",
        PLAINTEXT: "The host or another frame's reader has what the guest takes for private.",
        CONTENT: "The guest goes on with content that it did not write.",
    }

    def __init__(self) -> None:
        self._is_over = False
        self._content: dict[int, bytes] = {}
        self._excused: set[int] = set()

    @classmethod
    def applies(cls, host: Host) -> bool:
        """Only a hypervisor that lies maps a page to other memory."""
        return bool(host.lie)

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        sev = sev_of(view.guest)
        if not view.index:
            self._is_over = False
            self._content.clear()
            self._excused.clear()
        snp = None if sev is None else sev.snp
        if (snp is None and view.guest.td is None) or self._is_over:
            return
        self._is_over = view.outcome.end is not None
        if snp is None:
            yield from self._contents(view)
            return
        yield from self._states(view, snp)
        yield from self._contents(view)
        for gfn in sorted(snp.attacked):
            yield from self._secrecy(view, snp, gfn)

    def _states(self, view: OpView, snp: Snp) -> Iterator[Violation]:
        rmp = snp.rmp
        if view.op.kind is OpKind.SET_MEMORY_ENCRYPTED and view.outcome.value == 0 and view.frames:
            first, pages = view.frames
            for gfn in range(first, min(first + pages, rmp.frames)):
                if gfn not in snp.attacked and rmp.state(gfn) != VALIDATED:
                    message = f"{gpa_text(gfn)} was encrypted and is {rmp.describe(gfn)}"
                    yield Violation(self.name, view.index, message, "N55")
                    break
        if view.op.kind is OpKind.SET_MEMORY_ENCRYPTED and view.frames:
            first, pages = view.frames
            private = view.private_before
            end = min(first + pages, rmp.frames)
            self._excused.update(gfn for gfn in range(first, end) if private[gfn])
        twice = [gfn for gfn in rmp.validated_twice() if gfn not in self._excused]
        if not twice:
            return
        message = (
            f"{gpa_text(twice[0])} has two validated system frames ({len(twice)} such frames): the "
            "hypervisor can bring its old content back"
        )
        yield Violation(self.name, view.index, message, "N55")

    def _contents(self, view: OpView) -> Iterator[Violation]:
        """Keeps what private pages hold after a store, and compares a load with it."""
        for flip in view.flips:
            self._forget(flip.gfn, flip.pages)
        for _, event in view.emitted:
            if isinstance(event, MapGpaCall):
                self._forget(event.gpa >> PAGE_SHIFT, event.size >> PAGE_SHIFT)
        if view.outcome.value is None:
            return
        if view.op.kind is OpKind.WRITE:
            self._note_store(view)
        elif view.op.kind is OpKind.READ and view.op.region is not Region.V:
            gfn = view.guest.gpa(view.op.region, view.op.page) >> PAGE_SHIFT
            offset = view.op.arguments[0]
            known = self._content.get(gfn, b"")[offset : offset + _WORD]
            written = int.from_bytes(known, "little")
            if len(known) == _WORD and written != view.outcome.value:
                found = view.outcome.value
                message = f"{gpa_text(gfn)} reads as {found:#x}, and {written:#x} was there"
                yield Violation(CONTENT, view.index, message, "N55")

    def _forget(self, first: int, pages: int) -> None:
        """The guest gave these frames away or took them back: they may hold anything."""
        for gfn in [gfn for gfn in self._content if first <= gfn < first + pages]:
            del self._content[gfn]

    def _note_store(self, view: OpView) -> None:
        op, guest = view.op, view.guest
        _value, offset, size = op.arguments
        start = guest.gpa(op.region, op.page) + offset
        for gfn in range(start >> PAGE_SHIFT, start + size + PAGE_SIZE - 1 >> PAGE_SHIFT):
            self._content.pop(gfn, None)
            if op.region is not Region.V and guest.leaf_map.private[gfn]:
                content = guest.machine.ram.read(Gpa(gfn << PAGE_SHIFT), PAGE_SIZE)
                self._content[gfn] = content

    def _secrecy(self, view: OpView, snp: Snp, gfn: int) -> Iterator[Violation]:
        """Who else could read a frame that was attacked, now."""
        rmp, ram = snp.rmp, view.guest.machine.ram
        if rmp.state(gfn) != VALIDATED:
            return
        sfn = rmp.system_frame(gfn)
        gpa = Gpa(gfn << PAGE_SHIFT)
        if ram.read(gpa, PAGE_SIZE) == ram.read(gpa, PAGE_SIZE, private=False):
            message = f"{gpa_text(gfn)}: an access with C=0 reads the plaintext of a validated page"
            yield Violation(PLAINTEXT, view.index, message, "N30, N55")
        if host_access(rmp.entry(sfn), is_write=False).what is What.PLAIN:
            message = f"{gpa_text(gfn)}: the host reads the plaintext of a validated page"
            yield Violation(PLAINTEXT, view.index, message, "N28, N55")
        for other in rmp.guest_frames(sfn):
            if other != gfn and snp.reads_plain(other):
                message = f"{gpa_text(other)} reads the plaintext of the validated {gpa_text(gfn)}"
                yield Violation(PLAINTEXT, view.index, message, "N52, N55")
