# SPDX-License-Identifier: GPL-2.0-or-later
"""What one host did with one operation, in terms that hosts of every generation share.

Representations differ (a bitmap, a list, user space's own record), so they are not compared. What
is: the answers the guest saw, how the operation ended, the status of every frame of RAM, and
whether the guest has allowed migration.
"""

from __future__ import annotations

from functools import cached_property

import msgspec
from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, U32_MASK
from guestemu.events.exits import AnsweredExit, WrmsrExit
from guestemu.events.lines import answer_of
from guestemu.guest.base import CallOutcome, GuestOops
from guestemu.host.base import Host
from guestemu.host.handler import HandlerHost
from guestemu.host.kvm.historic import HistoricHost
from guestemu.host.kvm.host import MergedHost
from guestemu.host.kvm.kernels import KvmKernel
from guestemu.host.native.host import NativeHost
from guestemu.machine.exits import ExceptionExit
from guestemu.program.ops import Op
from guestemu.report.trace.words import op_word, value_of

PLUGIN = "plugin"


class Traits(msgspec.Struct, frozen=True):
    """A host as the table of known differences sees it.

    `label` is what the user called it, `name` its registered name (`PLUGIN` for a user's own);
    `repaired` its switches; `number` its status hypercall, `kernel` the KVM below a merged one,
    `opt_in_msrs` the numbers of a historic one's opt-in MSR. `is_users`: its user space is the
    user's own code; `serves_msr`: MSR_KVM_MIGRATION_CONTROL is served. `open_frames` has start and
    end in gfns of what its slots leave open (`Host.open_frames`), `hot_plug` of what can be
    plugged.
    """

    label: str
    name: str
    repaired: frozenset[str]
    number: int
    kernel: KvmKernel | None
    opt_in_msrs: frozenset[int]
    is_users: bool = False
    serves_msr: bool = True
    open_frames: tuple[tuple[int, int], ...] = ()
    hot_plug: tuple[tuple[int, int], ...] = ()

    @property
    def is_historic(self) -> bool:
        """Whether the status hypercall is answered in the kernel (v1 to v10)."""
        return self.kernel is None and self.name != PLUGIN

    def lacks(self, switch: str) -> bool:
        """Whether the defect that `switch` repairs is there, for a host that has such a switch."""
        return switch not in self.repaired


def traits_of(label: str, host: Host) -> Traits:
    """The traits of `host`, which the user called `label`."""
    if isinstance(host, HistoricHost):
        return Traits(label, host.name, host.repaired, host.number, None, host.opt_in_msrs)
    is_merged = isinstance(host, MergedHost)
    return Traits(
        label,
        host.name if is_merged else PLUGIN,
        host.repaired if is_merged else frozenset(),
        12,
        host.kernel if isinstance(host, MergedHost) else None,
        frozenset(),
        not is_merged or isinstance(host, HandlerHost | NativeHost),
        host.serves_migration_control,
        host.open_frames,
        tuple((slot.gpa >> PAGE_SHIFT, slot.end >> PAGE_SHIFT) for slot in host.pluggable),
    )


class StatusCall(msgspec.Struct, frozen=True):
    """A hypercall exit at CPL 0 as a range: number and arguments in the width of its mode."""

    nr: int
    gpa: int
    pages: int
    status: int
    ret: int | None
    is_truncated: bool
    """Whether bits of RAX above the mode's width were dropped."""

    @property
    def first(self) -> int:
        """The first gfn."""
        return self.gpa >> PAGE_SHIFT

    @property
    def end(self) -> int:
        """The gfn behind the last page, not wrapped."""
        return self.first + self.pages


class Side(msgspec.Struct, frozen=True, dict=True):
    """One operation on one host; maps have one bit for each frame, 1 = private.

    `is_stopped`: user space ended the VM during the operation. `poisoned` are the gfns that the
    program made untranslatable so far.
    """

    traits: Traits
    op: Op
    exits: tuple[AnsweredExit, ...]
    outcome: CallOutcome
    before: bitarray
    after: bitarray
    ready_before: bool
    ready: bool
    is_stopped: bool
    poisoned: frozenset[int]

    @cached_property
    def rax(self) -> list[int | None]:
        """RAX of every hypercall, unsigned; None where the guest got an exception."""
        return [record.ret for record in self.exits if record.is_hypercall]

    @cached_property
    def answers(self) -> tuple[int | None, ...]:
        """RAX of every hypercall, signed; None where the guest got an exception."""
        return tuple([answer_of(record) for record in self.exits if record.is_hypercall])

    @property
    def end(self) -> str:
        """How the operation ended, with the vector of an exception."""
        if self.is_stopped:
            return "vm-stopped"
        word = op_word(self.outcome)
        end = self.outcome.end
        return f"{word} {end.vector}" if isinstance(end, ExceptionExit | GuestOops) else word

    @property
    def value(self) -> int | None:
        """What the operation returned."""
        return value_of(self.op, self.outcome)

    def calls(self) -> tuple[StatusCall, ...]:
        """Its hypercalls at CPL 0."""
        return self._calls

    @cached_property
    def _calls(self) -> tuple[StatusCall, ...]:
        return tuple(
            [_call_of(record) for record in self.exits if record.is_hypercall and not record.cpl]
        )

    @cached_property
    def own_calls(self) -> list[StatusCall]:
        """Those that notify this host of a status."""
        number = self.traits.number
        return [call for call in self._calls if call.nr == number]

    def msr_writes(self) -> list[tuple[int, int]]:
        """(index, value) of its WRMSR exits."""
        return [
            (record.nr, record.args[0]) for record in self.exits if isinstance(record, WrmsrExit)
        ]

    def msrs(self) -> list[int]:
        """The indices of its MSR exits."""
        return [record.nr for record in self.exits if not record.is_hypercall]


def _call_of(record: AnsweredExit) -> StatusCall:
    ret = answer_of(record)
    gpa, pages, status = record.args[:3]
    nr = record.nr
    if record.is_64bit:
        return StatusCall(nr, gpa, pages, status, ret, False)
    if ret is not None and ret >> 31 & 1:
        ret -= 1 << 32
    mask = U32_MASK
    return StatusCall(nr & mask, gpa & mask, pages & mask, status & mask, ret, nr > mask)
