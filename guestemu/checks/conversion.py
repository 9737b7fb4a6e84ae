# SPDX-License-Identifier: GPL-2.0-or-later
"""After a completed conversion, host and page tables agree on the range, and nothing else changed.

Completed means that the function returned 0: a kernel caller then relies on the new status. A
conversion that failed is not judged here (facts A19: the generations fail in opposite directions).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from bitarray import bitarray

from guestemu.abi.addresses import gpa_text, gpas_text
from guestemu.abi.regions import Region
from guestemu.checks.base import CONVERSION_KINDS, OpView, Oracle, Violation, not_as_told
from guestemu.program.ops import OpKind

_FACT = "H.4 item 1"
_ALIAS = Region.V


def _word(private: bool) -> str:
    return "private" if private else "shared"


def _first_difference(found: bitarray, expected: bitarray) -> tuple[int, int]:
    """The first frame at which two maps differ and how many do."""
    difference = found ^ expected
    return difference.index(1), difference.count()


class ConversionCheck(Oracle):
    """Host status = PTE C-bit = what was asked for, for every page of the range."""

    name = "status"
    kinds: frozenset[OpKind] | None = CONVERSION_KINDS
    demands: ClassVar[Mapping[str, str]] = {
        "status": (
            "After a conversion that returned 0, page tables and host's record say what was "
            "asked for, for every page of the range."
        ),
    }
    explanations: ClassVar[Mapping[str, str]] = {
        "status": (
            "The host migrates a page by its own record: a private page that it takes for "
            "shared (or the reverse) arrives as garbage."
        ),
    }

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the module's docstring."""
        if view.frames is None or view.outcome.value != 0:
            return ()
        found: list[Violation] = []
        first, count = view.frames
        end = min(first + count, len(view.private_before))
        private = view.wants_private
        leaf_map = view.guest.leaf_map
        told = [(first, end, private)]
        if not leaf_map.became(first, end, private):
            after = leaf_map.private
            expected = not_as_told(after, view.private_before, told)
            if expected is not None:
                found.append(self._explain(view, "page tables", after, expected, first, end))
        if view.host.records_conversions:
            after = view.host.private_map()
            expected = not_as_told(after, view.host_before, told, view.host.open_frames)
            if expected is not None:
                found.append(self._explain(view, "host", after, expected, first, end))
        if view.region is _ALIAS:
            page = view.op.page
            bits = view.guest.leaf_map.alias[page : page + count]
            if bits.count(private) != len(bits):
                message = (
                    f"alias mapping: {len(bits) - bits.count(private)} of {len(bits)} pages of the "
                    f"range are not {_word(private)}, its frames are"
                )
                found.append(Violation(self.name, view.index, message, "A25, M68"))
        return found

    def _explain(
        self,
        view: OpView,
        who: str,
        found: bitarray,
        expected: bitarray,
        first: int,
        end: int,
    ) -> Violation:
        frame, total = _first_difference(found, expected)
        where = "inside" if first <= frame < end else "outside"
        return Violation(
            self.name,
            view.index,
            f"{who}: {gpa_text(frame)} is {_word(bool(found[frame]))}, expected "
            f"{_word(bool(expected[frame]))} ({where} the converted range "
            f"{gpas_text(first, end)}; {total} frame{'s differ' if total > 1 else ' differs'})",
            _FACT,
        )


class MappingCheck(Oracle):
    """A conversion leaves every page mapped to the frame it had (A26c, M71)."""

    name = "frames"
    kinds: frozenset[OpKind] | None = CONVERSION_KINDS
    demands: ClassVar[Mapping[str, str]] = {
        "frames": "A conversion leaves every page mapped to the frame that it had.",
    }
    explanations: ClassVar[Mapping[str, str]] = {
        "frames": (
            "A page of the range now maps another frame; a caller that clears its buffer "
            "overwrites foreign memory."
        ),
    }

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        moved = view.guest.leaf_map.moved
        if view.frames is None or len(moved) <= view.moved_before:
            return ()
        message = (
            f"{len(moved) - view.moved_before} pages now map another frame than before the "
            f"conversion, the first at {min(moved):#x}: a hole in the range was populated"
        )
        return (Violation(self.name, view.index, message, "A26c, M71"),)
