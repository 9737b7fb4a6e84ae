# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD's conversion: the order of its steps, the page states that it leaves, why it may fail.

Source: __set_memory_enc_pgtable(), tdx_enc_status_changed() (Linux 6.12 to 7.3); T16, T17, T18.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Final

from guestemu.abi import tdx
from guestemu.abi.addresses import PAGE_SHIFT, gpa_text
from guestemu.abi.errno import EAGAIN, EIO
from guestemu.checks.base import OpView, Oracle, Violation, vmm_lies
from guestemu.checks.page_enc import NUMBERS
from guestemu.events.exits import MapGpaRangeExit
from guestemu.events.tdx import Accept, MapGpaCall
from guestemu.guest.td import Td
from guestemu.host.base import Host
from guestemu.machine.sept import ACCEPTED, SHARED
from guestemu.program.ops import OpKind, Region

_MAX_STALLS: Final = 3
TWICE: Final = "accepted-twice"


class TdCheck(Oracle):
    """Judges set_memory_encrypted() and set_memory_decrypted() of a TD.

    * No entry is private while its page is not accepted: MapGPA and ACCEPT come before the entries
      of an encryption change, and after those of a decryption (load_unaligned_zeropad, T16).
    * After a conversion that returned 0 every page of the range is accepted or shared.
    * -EIO has a reason: an answer other than 0, three retries without progress, a failed ACCEPT, or
      pages that were not all in the other state before.
    * No page is accepted a second time: the VMM may have put an empty one in its place (T14).

    A page that the VMM attacked is judged by the last rule only, as is every page of a TD whose VMM
    lies at MapGPA.
    """

    name = "td"
    kinds: frozenset[OpKind] | None = frozenset(
        {OpKind.SET_MEMORY_ENCRYPTED, OpKind.SET_MEMORY_DECRYPTED}
    )

    demands: ClassVar[Mapping[str, str]] = {
        "td": (
            "After a conversion that returned 0, page tables and Secure EPT say the same of "
            "every page of the range."
        ),
        TWICE: "A TD accepts a page once: a second ACCEPT that succeeds is of another page.",
    }
    explanations: ClassVar[Mapping[str, str]] = {
        "td": (
            "Page tables and Secure EPT differ: an access to the page ends the VM or loses what it "
            "held."
        ),
        TWICE: "The VMM can put an empty page in place of what the guest wrote.",
    }

    @classmethod
    def applies(cls, host: Host) -> bool:
        """Hosts of the merged ABI."""
        return host.contract not in NUMBERS

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        td = view.guest.td
        if td is None or view.frames is None:
            return ()
        value = view.outcome.value
        steps = [event for _, event in view.emitted if isinstance(event, MapGpaCall | Accept)]
        messages: list[str] = []
        if not vmm_lies(view):
            messages += self._order(view, steps)
            if value == 0:
                messages += self._states(view, td, *view.frames)
            elif value == -EIO and not td.attacked and self._is_unprovoked(view, *view.frames):
                messages.append("-EIO, and nothing was refused: the range keeps its shared entries")
        found = [Violation(self.name, view.index, message, "T16, T17") for message in messages]
        twice = self._accepted_twice(steps) if view.wants_private else []
        if twice:
            message = f"{gpa_text(twice[0])} was accepted twice ({len(twice)} such frames)"
            found.append(Violation(TWICE, view.index, message, "T14"))
        return found

    @staticmethod
    def _accepted_twice(steps: Sequence[MapGpaCall | Accept]) -> list[int]:
        accepted = [
            event.gpa >> PAGE_SHIFT
            for event in steps
            if isinstance(event, Accept) and event.result == tdx.SUCCESS
        ]
        if len(set(accepted)) == len(accepted):
            return []
        return sorted(gfn for gfn, count in Counter(accepted).items() if count > 1)

    def _order(self, view: OpView, steps: Sequence[MapGpaCall | Accept]) -> Iterable[str]:
        if view.wants_private and any(step.table_writes for step in steps):
            yield "a private entry before its page was accepted"
        if not view.wants_private and view.flips and steps and not steps[0].table_writes:
            yield "the host converted pages that are still mapped private"

    def _states(self, view: OpView, td: Td, first: int, count: int) -> Iterable[str]:
        wanted = ACCEPTED if view.wants_private else SHARED
        wrong = [
            gfn
            for gfn in range(first, min(first + count, td.sept.frames))
            if td.sept.state(gfn) != wanted and gfn not in td.attacked
        ]
        if wrong:
            word = "accepted" if view.wants_private else "shared"
            yield (
                f"{gpa_text(wrong[0])} is {td.sept.describe(wrong[0])}, expected {word} "
                f"({len(wrong)} of {count} pages)"
            )

    def _is_unprovoked(self, view: OpView, first: int, count: int) -> bool:
        before = view.host_before[first : first + count]
        if not count or len(before) != count or view.region is Region.V:
            return False
        if before.count(not view.wants_private) != count:
            return False
        stalls: list[int] = []
        for exit_ in view.exits:
            if not isinstance(exit_, MapGpaRangeExit):
                continue
            if exit_.ret == EAGAIN:
                gpa = exit_.args[0]
                stalls = [*stalls, gpa] if gpa in stalls else [gpa]
                if len(stalls) >= _MAX_STALLS:
                    return False
            elif exit_.ret:
                return False
        return not any(
            isinstance(event, Accept) and not event.level and event.result == tdx.OPERAND_BUSY
            for _, event in view.emitted
        )
