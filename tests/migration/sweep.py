# SPDX-License-Identifier: GPL-2.0-or-later
"""A snippet guest that is migrated before any instruction of a list of calls.

The source is a machine that only steps; at every stop the destination takes the guest over, runs
the call to its end and the calls that are left, and is compared with a guest that never moved.
"""

from __future__ import annotations

from migration_world import KEY, host_for, snippet

from guestemu.abi.addresses import Gfn, Gpa
from guestemu.guest.base import Guest
from guestemu.guest.snippet.guest import SnippetGuest
from guestemu.guest.snippet.memory_map import STACK_SIZE, STACKS
from guestemu.host.base import Host
from guestemu.machine.engine import RegisterBatch
from guestemu.machine.exits import Halt
from guestemu.migration.endpoints import Destination, Source, bulk_packets
from guestemu.migration.handler_link import HandlerLink, handler_link
from guestemu.migration.links import PlainSender, Sender
from guestemu.migration.stepping import Stepper
from guestemu.runner.exit_recorder import ExitRecorder

Call = tuple[str, tuple[int, ...]]
REGISTERS = (
    "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags cr0 cr3 cr4"
).split()


class Side:
    """A guest over its host, with the log of what the host heard."""

    def __init__(self, guest: SnippetGuest, host: Host) -> None:
        self.guest = guest
        self.host = host
        self.recorder = ExitRecorder(host, guest)
        guest.machine.hooks.handler = self.recorder
        self._batch = RegisterBatch(guest.machine.engine, REGISTERS)

    def registers(self) -> list[int]:
        return list(self._batch.read())

    def log(self) -> list[tuple[int, tuple[int, ...], int | None]]:
        return [(r.nr, r.args, r.ret) for r in self.recorder.records]


def content(guest: Guest, gfn: int) -> bytes:
    """A frame as the direct map shows it."""
    leaf_map = guest.leaf_map
    leaf_map.update(guest.machine.ram.table_writes())
    return guest.machine.ram.read(Gpa(gfn << 12), 4096, bool(leaf_map.private[gfn]))


def finish(side: Side, calls: list[Call]) -> list[list[int]]:
    """Runs the call that the CPU is in to its end, then `calls`; the registers after each."""
    guest = side.guest
    vcpu = guest.machine.current
    found = []
    end = vcpu.run(vcpu.read_register("rip"), guest.budget)
    assert isinstance(end, Halt), end
    assert end.rip == guest._return_rip
    found.append(side.registers())
    for name, arguments in calls:
        assert guest.call(name, *arguments).end is None
        found.append(side.registers())
    return found


class Sweep:
    """Migrates `calls` at every `every`-th instruction. `defined` says of a frame how many of its
    first bytes are defined at the end; all are of the others (C7). `by_handler`: private pages go
    through migration handlers, whose own frames are not compared."""

    def __init__(
        self,
        calls: list[Call],
        defined: dict[int, int],
        generation: str = "6.1",
        by_handler: bool = False,
    ) -> None:
        self.calls = calls
        self._by_handler = by_handler
        self._handlers: HandlerLink | None = None
        self.defined = defined
        self.generation = generation
        self.points = 0
        target = snippet(KEY, generation)
        self.destination = Destination(target, host_for(target))
        self.destination.take_bulk(bulk_packets(snippet(None, generation)))
        self.reference = self._reference()

    def _reference(self) -> tuple[Side, list[list[int]]]:
        guest = snippet(None, self.generation)
        side = Side(guest, host_for(guest))
        registers = []
        for name, arguments in self.calls:
            assert guest.call(name, *arguments).end is None
            registers.append(side.registers())
        return side, registers

    def run(self, every: int = 1) -> list[str]:
        """The differences, each with the place where the guest was moved."""
        guest = snippet(None, self.generation)
        guest.machine.engine.flush_blocks()
        side = Side(guest, host_for(guest))
        stepper = Stepper(guest.machine)
        found: list[str] = []
        for number, (name, arguments) in enumerate(self.calls):
            guest._context.restore()
            guest.machine.engine.flush_tlb()
            start = dict(zip(("rdi", "rsi", "rdx", "rcx"), arguments, strict=False))
            start |= {"rip": guest._symbols[name], "rsp": STACKS + STACK_SIZE - 8}
            for register, value in start.items():
                guest.machine.current.write_register(register, value)
            while stepper.rip != guest._return_rip - 1:
                if stepper.index % every == 0:
                    found += self._migrate(side, number, stepper.index)
                stepper.to(stepper.index + 1)
        return found

    def _migrate(self, source: Side, number: int, index: int) -> list[str]:
        self.points += 1
        destination = self.destination
        destination.reset()
        guest = destination.guest
        assert isinstance(guest, SnippetGuest)
        sender, own = self._sender(source)
        handover = Source(source.guest, source.host, sender, (), destination.deliver, own).finish()
        destination.resume(handover)
        side = Side(guest, destination.host)
        registers = finish(side, self.calls[number + 1 :])
        return self._compare(side, source, registers, f"call {number}, instruction {index}")

    def _sender(self, source: Side) -> tuple[Sender, frozenset[int]]:
        """The source's end of the link, and the frames that stay."""
        machine, target = source.guest.machine, self.destination.guest.machine
        if not self._by_handler:
            return PlainSender(machine.ram), frozenset()
        if self._handlers is None:
            self._handlers = handler_link(machine, target)
        else:
            self._handlers.open()
        self.destination.use(self._handlers.receiver, target.config.key)
        return self._handlers.sender, self._handlers.frames

    def _compare(
        self, side: Side, source: Side, registers: list[list[int]], where: str
    ) -> list[str]:
        reference, expected = self.reference
        found = []
        if registers != expected[len(expected) - len(registers) :]:
            found.append(f"{where}: registers")
        if source.log() + side.log() != reference.log():
            found.append(f"{where}: hypercalls")
        if side.host.private_map() != reference.host.private_map():
            found.append(f"{where}: status")
        frames = reference.guest.machine.ram.dirty_frames() | side.guest.machine.ram.dirty_frames()
        own = frozenset() if self._handlers is None else self._handlers.frames
        for gfn in sorted(frames - own):
            size = self.defined.get(gfn, 4096)
            if content(side.guest, gfn)[:size] != content(reference.guest, gfn)[:size]:
                found.append(f"{where}: frame {Gfn(gfn):#x}")
        return found
