# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes in, outcome out: one warm testbed per process."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

import msgspec

from guestemu.abi.errors import InputError, TimeUp
from guestemu.campaign.feedback import Feedback
from guestemu.campaign.targets import Target
from guestemu.checks.base import CONVERSION_KINDS, Violation
from guestemu.guest.base import Guest
from guestemu.host.base import Host
from guestemu.host.userspace.base import VmStopped
from guestemu.machine.memory import GuestRam
from guestemu.machine.watchdog import Watchdog
from guestemu.program.binary import RECORD_SIZE, OpDecoder
from guestemu.program.ops import Op, OpKind, Region
from guestemu.program.program import Header
from guestemu.program.values import extra_values
from guestemu.replay.lockstep.check import in_step, judged_testbed
from guestemu.runner.testbed import TIME_UP, Testbed

_MSR_KINDS: Final = frozenset({OpKind.RDMSR, OpKind.WRMSR})
_PLAIN_KEPT: Final = 1 << 15
"""Ops whose plain form is remembered."""


class Executor:
    """Runs programs of one target under one header, counting into `feedback`.

    `kinds` are the ops allowed; `host` replaces the one that `header` names, `testbed` guest and
    host at once. Raises what `build_testbed` raises. A host that stops the VM (`VmStopped`) ends
    the program without a violation; whatever else it raises passes through. `heartbeat`, if set, is
    called before every run; `bound`, if set, bounds the time of each. A program on which the scout
    dies outside of the host's code does not run. RIP need not be right at each load and store of a
    guest as long as nothing is wrong: a program with a violation runs once more, with a right RIP.
    """

    def __init__(
        self,
        target: Target,
        header: Header,
        kinds: frozenset[OpKind],
        feedback: Feedback,
        host: Host | None = None,
        testbed: Testbed | None = None,
    ) -> None:
        self.target = target
        self.header = header = in_step(header)
        self.kinds = kinds
        self.heartbeat: Callable[[], None] | None = None
        self.bound: Watchdog | None = None
        self._is_lawful = kinds.isdisjoint(target.fault_kinds)
        self._ignored = target.ignored
        self.max_size = target.max_ops * RECORD_SIZE
        self.testbed: Testbed = testbed or judged_testbed(header, host)
        self._feedback = feedback
        is_own = not header.plugin and host is None and testbed is None
        has_calls = not CONVERSION_KINDS.isdisjoint(kinds)  # else it saves nothing
        self._may_lack_rip = has_calls and is_own and _is_plain(self.testbed.guest)
        has_giant = Region.G in self.testbed.guest.regions
        numbers, frames = self.testbed.host.numbers(), self.testbed.host.borders()
        extra = extra_values(numbers, frames) if numbers or frames else {}
        self.decoder = OpDecoder(header.vcpus, has_giant, kinds, extra)
        self.plain = lru_cache(_PLAIN_KEPT)(self._plain)
        feedback.attach(self.testbed)

    def decode(self, data: bytes) -> tuple[Op, ...]:
        """The program that `data` stands for on this target."""
        ops = self.decoder.decode(data if len(data) <= self.max_size else data[: self.max_size])
        limit = self.target.limit
        return ops if limit is None else limit(ops, self._is_lawful)

    def _plain(self, op: Op) -> Op:
        """An op that does what `op` does, the same one for all that do (`Host.plain`); above CPL 0
        an MSR access is #GP, whatever it is about."""
        if op.cpl and op.kind in _MSR_KINDS:
            return msgspec.structs.replace(op, arguments=(0,) * len(op.arguments))
        return self.testbed.host.plain(op)

    def allows(self, ops: tuple[Op, ...]) -> bool:
        """Whether `ops` are a program of this target: within its limits as they are."""
        limit = self.target.limit
        return limit is None or limit(ops, self._is_lawful) == ops

    def run(self, ops: tuple[Op, ...]) -> list[Violation]:
        """Runs `ops` from the first state; the violations, in order."""
        if self.heartbeat is not None:
            self.heartbeat()
        testbed = self.testbed
        if testbed.scout is not None and not testbed.scout.try_out(ops):
            return []
        if not self._may_lack_rip:
            return self._play(ops)
        with testbed.guest.machine.hooks.rip_by_block():
            violations = self._play(ops)
        if violations:
            counters = self._feedback.save()
            violations = self._play(ops)
            self._feedback.load(counters)
        return violations

    def _play(self, ops: tuple[Op, ...]) -> list[Violation]:
        testbed = self.testbed
        violations: list[Violation] = []
        bound = self.bound
        if bound is not None:
            bound.renew()
        index = 0
        try:
            testbed.reset()
            for index, op in enumerate(ops):
                testbed.step(index, op, None, violations)
        except VmStopped:
            testbed.guest.machine.hooks.clear()
        except TimeUp as error:
            testbed.guest.machine.hooks.clear()
            violations.append(Violation(TIME_UP, index, str(error)))
        except NotImplementedError as error:
            raise InputError(f"--faults: {error}; leave --faults out") from error
        if bound is not None:
            bound.rest()
        if self._ignored and violations:
            return [found for found in violations if found.check not in self._ignored]
        return violations


def _is_plain(guest: Guest) -> bool:
    """Whether nothing that `guest` does at a load or store depends on RIP: no page states, no
    devices, no page walk of our own."""
    machine = guest.machine
    is_bare = machine.tlb is None and not machine.devices and guest.td is None
    return is_bare and type(machine.ram) is GuestRam and not machine.hooks.reflects_vmmcall
