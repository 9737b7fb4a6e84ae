# SPDX-License-Identifier: GPL-2.0-or-later
"""Interleavings of an SNP guest's round trip with what a hostile hypervisor does to its page.

One page becomes shared and private again, in the kernel's order (N17); the hypervisor attacks it
(page_attacks.py) between any two steps, as often as asked for. The RMP is the machine's own
(machine/rmp.py, N27 to N32), KVM answers #NPFs as it does (N16). A sequence is broken if the page
has two validated frames in the end, or if the guest reads what it did not write (N55).

Each step is atomic; there is one page beside its neighbour, which some attacks use, and no TLB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations, product
from typing import Final

import msgspec

from guestemu.machine.page_attacks import ATTACKS
from guestemu.machine.rmp import SHARED, VALIDATED, Rmp, RmpOutcome, What

ROUND_TRIP: Final = ("PV-", "PSC-", "PTE-", "t1!", "PTE+", "PSC+", "PV+", "t2!", "read")
"""PVALIDATE(clear), page-state change, C-bit, a store; and back; a store and a load."""

GOES_ON: Final = "goes on"
ENDS: Final = "ends itself"
STANDS_STILL: Final = "stands still"
TWO_FRAMES: Final = "two validated frames"
OLD_CONTENT: Final = "reads old content"
BROKEN: Final = (TWO_FRAMES, OLD_CONTENT)

MAX_ACTS: Final = 3
_MOST_FAULTS: Final = 4
_PAGE: Final = 0


class GuestCode(msgspec.Struct, frozen=True):
    """A guest: its steps, and what it does otherwise than Linux. `forgives`: PVALIDATE that changed
    nothing is taken for success; `revalidates`: its #VC handler validates the page."""

    name: str
    text: str
    steps: tuple[str, ...] = ROUND_TRIP
    forgives: bool = False
    revalidates: bool = False


GUESTS: Final = (
    GuestCode("linux", "Linux 6.1 to 7.3 (N17)"),
    GuestCode("no-rescind", "no PVALIDATE(clear) (N17)", ROUND_TRIP[1:]),
    GuestCode("forgives-double", "PVALIDATE without effect is success (N19)", forgives=True),
    GuestCode("vc-validates", "the #VC handler validates the page (N23)", revalidates=True),
)


class PageStatesResult(msgspec.Struct, frozen=True, kw_only=True):
    """All sequences of one guest with `acts` attacks: how many came to what; `first` is the first
    broken one, "" without one."""

    guest: str
    acts: int
    sequences: int
    outcomes: dict[str, int]
    first: str

    @property
    def is_broken(self) -> bool:
        """Whether a sequence is."""
        return bool(self.first)


class _Page:
    """The guest's page and its neighbour: an `Attacked`. `content` is by system frame."""

    def __init__(self) -> None:
        self.rmp = Rmp(2, spare=2)
        self.attacked: set[int] = set()
        self.content: dict[int, int] = {}
        self.attributes = [True, True]

    def convert(self, gfn: int, pages: int, private: bool) -> None:
        """User space converts frames."""
        self.attributes[gfn] = private
        if not private:
            self.rmp.release(gfn, pages)

    def remap(self, gfn: int, sfn: int) -> None:
        """Other memory behind a frame, with what it holds."""
        self.rmp.map(gfn, sfn)

    def fault(self, private: bool) -> bool:
        """npf_interception(): whether the instruction is executed again."""
        rmp = self.rmp
        if self.attributes[_PAGE] != private:
            self.convert(_PAGE, 1, private)
            if not private:
                self.content[rmp.system_frame(_PAGE)] = 0
            return True
        if private and rmp.state(_PAGE) == SHARED:
            rmp.assign(_PAGE, 1)
            return True
        return False


class _Run:
    """One sequence; `end` is how the guest ended, "" while it runs."""

    def __init__(self, guest: GuestCode) -> None:
        self.end = ""
        self._guest = guest
        self._page = _Page()
        self._private = True
        self._written = 0

    def step(self, step: str) -> None:
        """The guest's next step."""
        kind, sign = step[:-1], step[-1]
        if kind == "PV":
            self._pvalidate(sign == "+")
        elif kind == "PSC":
            self._page.convert(_PAGE, 1, sign == "+")
        elif kind == "PTE":
            self._private = sign == "+"
        elif step == "read":
            self._read()
        else:
            self._write(int(kind[1:]))

    def attack(self, name: str) -> None:
        """The hypervisor's."""
        ATTACKS[name].carry_out(self._page, _PAGE)

    def outcome(self) -> str:
        """What the whole sequence came to."""
        if self._page.rmp.validated_twice():
            return TWO_FRAMES
        return self.end or GOES_ON

    def _pvalidate(self, validate: bool) -> None:
        rmp = self._page.rmp
        for _fault in range(_MOST_FAULTS):
            outcome = rmp.pvalidate(_PAGE, False, validate)
            if outcome.what is What.RESULT:
                if outcome.code or (outcome.carry and not self._guest.forgives):
                    self.end = ENDS
                return
            if not self._page.fault(private=True):
                break
        self.end = STANDS_STILL

    def _access(self, kind: str) -> RmpOutcome | None:
        """The access by the guest's leaf; None where it did not happen."""
        rmp = self._page.rmp
        for _fault in range(_MOST_FAULTS):
            outcome = rmp.access(_PAGE, kind, self._private)
            if outcome.what is What.VC:
                if not self._guest.revalidates:
                    self.end = ENDS
                    return None
                self._pvalidate(validate=True)
                if self.end:
                    return None
            elif outcome.what is not What.NPF:
                return outcome
            elif not self._page.fault(self._private):
                break
        self.end = STANDS_STILL
        return None

    def _write(self, token: int) -> None:
        if self._access("write") is not None:
            self._written = token
            self._page.content[self._page.rmp.system_frame(_PAGE)] = token

    def _read(self) -> None:
        if self._access("read") is None:
            return
        rmp = self._page.rmp
        found = self._page.content.get(rmp.system_frame(_PAGE), 0)
        if self._private and rmp.state(_PAGE) == VALIDATED and found != self._written:
            self.end = OLD_CONTENT


def explore_page_states(guest: GuestCode, acts: int) -> PageStatesResult:
    """Every sequence of `guest` with exactly `acts` attacks, each anywhere."""
    outcomes: Counter[str] = Counter()
    first = ""
    for sequence in _sequences(guest.steps, acts):
        run = _Run(guest)
        for step in sequence:
            if run.end:
                break
            if step in ATTACKS:
                run.attack(step)
            else:
                run.step(step)
        outcome = run.outcome()
        outcomes[outcome] += 1
        if outcome in BROKEN and not first:
            first = " ".join(sequence)
    return PageStatesResult(
        guest=guest.name,
        acts=acts,
        sequences=outcomes.total(),
        outcomes=dict(sorted(outcomes.items())),
        first=first,
    )


def _sequences(steps: tuple[str, ...], acts: int) -> Iterator[tuple[str, ...]]:
    total = len(steps) + acts
    for places in combinations(range(total), acts):
        for attacks in product(ATTACKS, repeat=acts):
            ours, theirs = iter(steps), iter(attacks)
            yield tuple(next(theirs) if place in places else next(ours) for place in range(total))
