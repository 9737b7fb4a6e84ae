# SPDX-License-Identifier: GPL-2.0-or-later
"""What a check sees, and what it says.

A check is an object with `name` and `after(view)`. It reads the operation that just ended, the
guest's page tables as `LeafMap` has them and the host's record, and yields violations. It never
changes anything, and a violation is a value, not an exception.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

import msgspec
from bitarray import bitarray

from guestemu.abi.regions import Region
from guestemu.guest.base import CallOutcome, Guest
from guestemu.host.base import Host
from guestemu.machine.leafmap import Flip
from guestemu.program.ops import Op, OpKind


class Violation(msgspec.Struct, frozen=True):
    """A property that does not hold.

    `check` names it, `op` is the index of the operation after which it was seen, `message` says
    what was expected and what there is, `fact` the item of the reference that demands it.
    """

    check: str
    op: int
    message: str
    fact: str = ""


class ExitRecord(msgspec.Struct, frozen=True, gc=False):
    """One answered exit of an operation.

    `kind` is "hypercall", "rdmsr" or "wrmsr"; `nr` the hypercall or MSR number; `args` a0 to a3, or
    (value,) of a WRMSR; `ret` RAX or the MSR's value, None where the guest got an exception.
    `table_writes` is the number of page-table stores of the operation before this exit.
    `origin` is empty for an instruction of the guest; an SNP guest's page-state change is a
    "hypercall" with number 12 that KVM made of it, and `origin` is that of `MapGpaRange`.
    """

    kind: str
    nr: int
    args: tuple[int, ...]
    ret: int | None
    table_writes: int
    cpl: int = 0
    is_64bit: bool = True
    origin: str = ""


class OpView(msgspec.Struct):
    """One finished operation.

    The `*_before` maps are copies from before the operation; the maps after it are the guest's and
    the host's own. `frames` is the range (first frame, count) that a conversion was asked for;
    `injected` the answer that user space was told to give and how often; `free_frames` the frames
    in the page allocator (after DMA operations only).
    """

    index: int
    op: Op
    outcome: CallOutcome
    guest: Guest
    host: Host
    exits: list[ExitRecord]
    flips: list[Flip]
    host_before: bitarray
    private_before: bitarray
    moved_before: int
    frames: tuple[int, int] | None
    wants_private: bool
    region: Region
    ready_before: bool
    injected: tuple[int, int]
    free_frames: bitarray | None


CONVERSION_KINDS: Final = frozenset(
    {
        OpKind.SET_MEMORY_ENCRYPTED,
        OpKind.SET_MEMORY_DECRYPTED,
        OpKind.EARLY_SET_MEMORY_ENCRYPTED,
        OpKind.EARLY_SET_MEMORY_DECRYPTED,
    }
)
"""The operations that convert a range of their own (`OpView.frames`)."""


class Check(Protocol):
    """One property."""

    name: str

    @property
    def kinds(self) -> frozenset[OpKind] | None:
        """The kinds of op that it can say something about (None: every kind)."""

    def after(self, view: OpView) -> Iterable[Violation]:
        """The violations that the operation caused."""
