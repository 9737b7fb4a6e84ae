# SPDX-License-Identifier: GPL-2.0-or-later
"""Claim C20 by guest kind: what follows a refusal in the middle of a range.

1000 pages with leaves of their own are decrypted by one call, and user space refuses the second
exit. Does the guest, or KVM for it, report the rest, and what is converted afterwards?
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar, Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.errno import EINVAL
from guestemu.abi.regions import Region
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.machine.exits import Hypercall
from guestemu.runner.testbed import Testbed
from guestemu.study.outcomes.cells import Key
from guestemu.study.outcomes.guests import has_kind, outcome_guest
from guestemu.study.outcomes.matrix import KINDS, result_of
from guestemu.study.outcomes.store import store_of

PAGES: Final = 1000
_REFUSED: Final = 2


class StopCell(msgspec.Struct, frozen=True, kw_only=True):
    """`exits` are those of the call, `converted` the pages that the host has as shared afterwards,
    `mapped` those whose entry is shared; `result` is what the caller reads, or how the guest
    ended."""

    guest: str
    kind: str
    exits: int
    converted: int
    mapped: int
    result: str

    @property
    def word(self) -> str:
        """Whether the rest is reported after the refusal."""
        return "goes on" if self.exits > _REFUSED else "stops"


class SecondRefused(MapGpaRangeHost):
    """The reference user space, which refuses the second exit with EINVAL and records nothing of
    it. `exits` counts them."""

    name: ClassVar[str] = "second-refused"
    exits = 0

    def hypercall(self, call: Hypercall) -> int:
        """Counts, and refuses one; exits of SNP guests and TDs also come here."""
        self.exits += 1
        return EINVAL if self.exits == _REFUSED else super().hypercall(call)


def run_stops(
    names: Iterable[str],
    kinds: Sequence[str] = KINDS,
    done: Callable[[], None] | None = None,
) -> list[StopCell]:
    """A cell for each of the guests `names` and kind, measured or from the store of the guest's
    kernel; kinds that a guest does not have are left out."""
    cells = []
    for name in names:
        store = store_of(name)
        for kind in kinds:
            if not has_kind(name, kind):
                continue
            key = Key(kind, "outcomes matrix stops", str(EINVAL))
            cell = store.recall(key, StopCell)
            if cell is None:
                cell = _measure(name, kind)
                store.keep(key, name, cell.word, cell)
            cells.append(msgspec.structs.replace(cell, guest=name))
            if done is not None:
                done()
    return cells


def _measure(name: str, kind: str) -> StopCell:
    host = SecondRefused()
    testbed = Testbed(outcome_guest(name, kind), host)
    testbed.reset()
    host.exits = 0
    guest = testbed.guest
    outcome = guest.set_memory_decrypted(guest.gva(Region.D, 1), PAGES)
    guest.leaf_map.update(guest.machine.ram.table_writes())
    first = guest.gpa(Region.D, 1) >> PAGE_SHIFT
    frames = slice(first, first + PAGES)
    cell = StopCell(
        guest=name,
        kind=kind,
        exits=host.exits,
        converted=host.private_map()[frames].count(0),
        mapped=guest.leaf_map.private[frames].count(0),
        result=result_of(outcome),
    )
    testbed.reset()
    return cell


def stop_lines(cells: Sequence[StopCell]) -> Iterator[str]:
    """The part of the page about C20: a table of the cells."""
    yield "## C20: after one refused page it is of no use to report the others"
    yield ""
    yield (
        "`set_memory_decrypted()` of 1000 pages, each with a leaf of its own; user space refuses "
        "the second exit with 22. A SEV guest makes an exit of each leaf and reports the rest "
        "whatever the answer was: of use, as all others are converted, and one page is lost. A "
        "TD's kernel makes one MapGPA, of which KVM asks in chunks of 2 MiB; KVM stops at the "
        "refusal, the rest is not asked for, and the caller reads it. An SNP guest asks in "
        "requests of many pages, and ends itself at the refusal."
    )
    yield ""
    yield "| guest | kind | exits | reported after the refusal | entries | host | caller reads |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for cell in cells:
        went_on = "yes" if cell.word == "goes on" else "no"
        yield (
            f"| {cell.guest} | {cell.kind} | {cell.exits} | {went_on} | {cell.mapped} shared | "
            f"{cell.converted} shared | {cell.result} |"
        )
