# SPDX-License-Identifier: GPL-2.0-or-later
"""A real kernel's conversion, attacked before each of its instructions.

One run is one attack before one instruction: the kernel converts two pages, the hypervisor injects
an event or attacks the first of them on the way, then the guest writes to that page and reads it.
The guest has to go on right, to end itself, or to stand still (N55; for a TD T10 to T14). What it
must not do is said by the checks: two validated frames, a page accepted twice, plaintext that
another party reads, content that the guest did not write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from guestemu.abi.addresses import Gva
from guestemu.abi.errors import InputError
from guestemu.abi.names import nearest
from guestemu.checks.base import Violation
from guestemu.guest.base import CallOutcome
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.load import LOADER, linux_config
from guestemu.host.registry import load_host
from guestemu.machine.callbacks import CodeHook
from guestemu.machine.engine import HOOK_CODE, REGISTERS
from guestemu.machine.exits import Exit, Terminated
from guestemu.machine.page_attacks import ATTACKS
from guestemu.machine.sept_attacks import SEPT_ATTACKS
from guestemu.machine.vcpu import Vcpu
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header, Program, SevKind
from guestemu.program.text import format_text
from guestemu.report.trace.words import op_word
from guestemu.runner.testbed import OpResult, Testbed
from guestemu.study.outcomes.cells import table_line

OPERATIONS: Final = ("decrypt", "encrypt")
KINDS: Final = ("snp", "tdx")
NOT_REACHED: Final = "not reached"

_HOST: Final = "hostile-hypervisor:far"
_MEMORY: Final = 128
_BIT: Final = 39
_BUDGET: Final = 2_000_000
_PAGE: Final = 3
_PAGES: Final = 2
_NEVER: Final = 1 << 40
_DECRYPT: Final = Op(OpKind.SET_MEMORY_DECRYPTED, (_PAGES, 0), page=_PAGE)
_ENCRYPT: Final = Op(OpKind.SET_MEMORY_ENCRYPTED, (_PAGES, 0), page=_PAGE)
_HYPERVISORS: Final = frozenset({OpKind.HYPERVISOR_INJECT, OpKind.HYPERVISOR_PAGE})
_BEFORE: Final = {"decrypt": (), "encrypt": (_DECRYPT,)}
_CONVERT: Final = {"decrypt": _DECRYPT, "encrypt": _ENCRYPT}
_AFTER: Final = (Op(OpKind.WRITE, (1, 0, 8), page=_PAGE), Op(OpKind.READ, (0,), page=_PAGE))

_EVENTS: Final = {
    "snp": {
        "#VC 0x404": (29, 0x404),
        "#VC 0x72": (29, 0x72),
        "#PF": (14, 0),
        "NMI": (2, 0),
        "interrupt 0x80": (0x80, 0),
        "interrupt 0xec": (0xEC, 0),
    },
    "tdx": {"NMI": (2, 0), "interrupt 0x80": (0x80, 0), "interrupt 0xec": (0xEC, 0)},
}
"""Vector and error code of what a hypervisor may inject: no exceptions into a TD."""


RowKey: TypeAlias = tuple[str, str, str, str]
"""Kernel, guest kind, conversion, attack."""


class AttackRun(msgspec.Struct, frozen=True, kw_only=True):
    """One attack before instruction `at` of the conversion, which is in the kernel's `function`;
    `outcome` says what the guest made of it, and `program` shows a violation ("" without one)."""

    kernel: str
    kind: str
    operation: str
    attack: str
    at: int
    function: str
    outcome: str
    program: str = ""

    @property
    def key(self) -> RowKey:
        """Which row it belongs to."""
        return self.kernel, self.kind, self.operation, self.attack


class Stretch(msgspec.Struct, frozen=True):
    """Instructions `first` to `last`, as far as they were tried, with one outcome; in `function`
    is the first."""

    first: int
    last: int
    outcome: str
    function: str


class AttackRow(msgspec.Struct, frozen=True, kw_only=True):
    """One attack at all the instructions that were tried, of the `instructions` that the conversion
    has; `program` shows the first violation ("" without one)."""

    kernel: str
    kind: str
    operation: str
    attack: str
    instructions: int
    outcomes: dict[str, int]
    stretches: tuple[Stretch, ...]
    program: str

    @property
    def is_wrong(self) -> bool:
        """Whether a check found what the guest must not do."""
        return bool(self.program)


def attacks_of(kind: str) -> tuple[str, ...]:
    """The attacks and events for guests of `kind`."""
    pages = ATTACKS if kind == "snp" else SEPT_ATTACKS
    return (*pages, *_EVENTS[kind])


def check_attacks(names: Iterable[str], kinds: Iterable[str]) -> None:
    """Raises `InputError` for a guest kind without attacks, or an attack that none of `kinds`
    has."""
    known: list[str] = []
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"--sev {kind}: {nearest(kind, KINDS)}")
        known += attacks_of(kind)
    for name in names:
        if name not in known:
            raise InputError(f"--attack {name!r}: {nearest(name, dict.fromkeys(known))}")


class AttackedKernel:
    """The kernel in `image`, called `name`, as a guest of `kind` ("snp" or "tdx")."""

    def __init__(self, name: str, image: Path, kind: str) -> None:
        self.name = name
        self.kind = kind
        config = linux_config(_MEMORY, _BIT, kind)
        self.guest: LinuxGuest = LOADER.guest(image, config, _BUDGET)
        self._testbed = Testbed(self.guest, load_host(_HOST))
        self._reached = 0
        self._is_quiet = False
        engine = self.guest.machine.engine
        for symbol in _PRINTERS & self.guest.kernel.symbols.keys():
            address = self.guest.kernel.address(symbol)
            engine.add_hook(HOOK_CODE, CodeHook(self._skip), begin=address, end=address)
        engine.flush_blocks()

    def _skip(self, _uc: object, _rip: int, _size: int, _user: object) -> None:
        """A function that prints returns 0 at once: a WARN's stack trace takes the emulated CPU
        seconds, and changes nothing."""
        if not self._is_quiet:
            return
        machine = self.guest.machine
        stack = machine.engine.read(REGISTERS["rsp"])
        data = machine.current.read_memory(Gva(stack), 8)
        if data is not None:
            machine.engine.write(REGISTERS["rax"], 0)
            machine.engine.write(REGISTERS["rsp"], stack + 8)
            machine.engine.write(REGISTERS["rip"], int.from_bytes(data, "little"))

    def instructions(self, operation: str) -> int:
        """How many instructions the conversion begins."""
        testbed = self._testbed
        testbed.reset()
        violations: list[Violation] = []
        for index, op in enumerate(_BEFORE[operation]):
            testbed.step(index, op, None, violations)
        machine = self.guest.machine
        machine.intervene(_NEVER, _do_nothing)
        assert machine.interventions is not None
        before = machine.interventions.begun
        testbed.step(len(_BEFORE[operation]), _CONVERT[operation], None, violations)
        return machine.interventions.begun - before

    def row(
        self,
        operation: str,
        attack: str,
        places: Sequence[int],
        known: Iterable[AttackRun] = (),
        note: Callable[[AttackRun], None] | None = None,
    ) -> AttackRow:
        """`attack` before each of the instructions `places`, beside the runs that are `known`;
        `note` is told of each new one."""
        runs = {run.at: run for run in known}
        for at in places:
            if at not in runs:
                runs[at] = run = self.run(operation, attack, at)
                if note is not None:
                    note(run)
        ordered = [runs[at] for at in sorted(runs)]
        outcomes: dict[str, int] = {}
        for run in ordered:
            outcomes[run.outcome] = outcomes.get(run.outcome, 0) + 1
        return AttackRow(
            kernel=self.name,
            kind=self.kind,
            operation=operation,
            attack=attack,
            instructions=self.instructions(operation),
            outcomes=outcomes,
            stretches=tuple(_stretches(ordered)),
            program=next((run.program for run in ordered if run.program), ""),
        )

    def run(self, operation: str, attack: str, at: int) -> AttackRun:
        """`attack` before instruction `at`."""
        self._is_quiet = True
        try:
            return self._run(operation, attack, at)
        finally:
            self._is_quiet = False

    def _run(self, operation: str, attack: str, at: int) -> AttackRun:
        testbed = self._testbed
        testbed.reset()
        self._reached = 0
        results: list[OpResult] = []
        violations: list[Violation] = []
        outcome = ""
        for index, op in enumerate(_ops(self.kind, operation, attack, at)):
            if op.kind in _HYPERVISORS:
                self.guest.machine.intervene(at, self._note)
            testbed.step(index, op, results, violations)
            outcome = self._word(results[-1].outcome)
            if outcome:
                break
        if violations:
            outcome = f"violation: {violations[0].check}"
        where = self.guest.location(self._reached).partition("+")[0] if self._reached else ""
        return AttackRun(
            kernel=self.name,
            kind=self.kind,
            operation=operation,
            attack=attack,
            at=at,
            function=where,
            outcome=(outcome or "goes on") if self._reached else NOT_REACHED,
            program=format_text(self._program(operation, attack, at)) if violations else "",
        )

    def _note(self, vcpu: Vcpu) -> Exit | None:
        self._reached = vcpu.read_register("rip")
        return None

    @staticmethod
    def _word(outcome: CallOutcome) -> str:
        """How a guest ended in an operation, "" where it returned."""
        if outcome.value is not None:
            return "" if outcome.value >= 0 else f"returns {outcome.value}"
        end = outcome.end
        if isinstance(end, Terminated):
            return f"terminates {end.reason_set}/{end.reason_code}"
        return _WORDS.get(op_word(outcome), op_word(outcome))

    def _program(self, operation: str, attack: str, at: int) -> Program:
        header = Header(
            guest=f"linux:{self.name}",
            sev=SevKind(self.kind),
            memory=_MEMORY,
            cbit=_BIT,
            host=_HOST,
            budget=_BUDGET,
        )
        return Program(header, tuple(_ops(self.kind, operation, attack, at)))


_PRINTERS: Final = frozenset({"_printk", "__warn", "__warn_printk", "show_regs"})
_WORDS: Final = {
    "run-failed": "stands still",
    "shutdown": "triple fault",
    "no-progress": "loops",
    "stopped": "halts",
}


def _do_nothing(_vcpu: Vcpu) -> Exit | None:
    return None


def _ops(kind: str, operation: str, attack: str, at: int) -> Iterator[Op]:
    yield from _BEFORE[operation]
    event = _EVENTS[kind].get(attack)
    if event is not None:
        yield Op(OpKind.HYPERVISOR_INJECT, (*event, at))
    else:
        number = attacks_of(kind).index(attack)
        yield Op(OpKind.HYPERVISOR_PAGE, (number, at), page=_PAGE)
    yield _CONVERT[operation]
    yield from _AFTER


def _stretches(runs: Sequence[AttackRun]) -> Iterator[Stretch]:
    for outcome, group in groupby(runs, key=lambda run: run.outcome):
        found = list(group)
        yield Stretch(found[0].at, found[-1].at, outcome, found[0].function)


def places_in(instructions: int, every: int, first: int = 0) -> tuple[int, ...]:
    """The instructions that a sweep tries: each `every`th from `first` on, and the last one."""
    places = tuple(range(first, instructions, every))
    last = instructions - 1
    return (*places, last) if places and places[-1] != last else places


# The page ---------------------------------------------------------------------------------------

_MAX_STRETCHES: Final = 6


def attacks_page(rows: Sequence[AttackRow], every: int) -> str:
    """docs/attacks.md, of a sweep over each `every`th instruction; rows may hold more runs."""
    heads = dict.fromkeys((row.kernel, row.kind, row.operation) for row in rows)
    images = " ".join(f"--image {name}" for name in dict.fromkeys(head[0] for head in heads))
    kinds = " ".join(f"--sev {kind}" for kind in dict.fromkeys(head[1] for head in heads))
    command = f"guestemu outcomes attacks {images} {kinds} --every {every} --page docs/attacks.md"
    lines = [
        "# Conversions under attack",
        "",
        "A real kernel makes two pages shared, or private again. Before one of its instructions "
        "the hypervisor injects an event or attacks the first of the pages; then the guest writes "
        "to the page and reads it. Each cell counts the instructions at which the attack had that "
        "outcome. What must not be: a guest that goes on with two frames behind a page, with "
        "content that it did not write, or with a page whose plaintext another party reads (N55; a "
        "TD: with a page that it accepted twice, T14).",
        "",
        "*goes on*: the conversion returns 0, and the guest reads what it wrote. *stands still*: "
        "KVM_RUN fails, or the same #NPF comes again and again. Attacks are those of "
        "`hypervisor_page` and `hypervisor_inject` (program-format.md).",
        "",
        f"This page is made by `{command}`.{_sweeps(rows) if every > 1 else _SWEEP}",
    ]
    for kernel, kind, operation in heads:
        part = [
            row
            for row in rows
            if (row.kernel, row.kind, row.operation) == (kernel, kind, operation)
        ]
        lines += ["", f"## {kernel} as {kind}: {operation}", ""]
        lines += [f"{part[0].instructions} instructions.", ""]
        lines += [table_line(("attack", "tried", "outcomes", "where")), "| --- | --- | --- | --- |"]
        lines += [
            table_line((row.attack, _tried(row), outcome_words(row), stretch_words(row)))
            for row in part
        ]
    return "\n".join(lines) + "\n"


_SWEEP: Final = " With `--results FILE` the sweep may be interrupted, and goes on."


def _tried(row: AttackRow) -> str:
    tried = sum(row.outcomes.values())
    return "all" if tried == row.instructions else str(tried)


def _sweeps(rows: Sequence[AttackRow]) -> str:
    """How the rows came about in which every instruction was tried."""
    whole = {(row.kernel, row.kind, row.attack): "" for row in rows if _tried(row) == "all"}
    commands = [
        f"`guestemu outcomes attacks --image {kernel} --sev {kind} --attack {attack} --every 1`"
        for kernel, kind, attack in whole
    ]
    if not commands:
        return ""
    return (
        f" Every instruction was tried by {' and '.join(commands)}, with the same file of "
        "`--results`, which may be interrupted and goes on."
    )


def outcome_words(row: AttackRow) -> str:
    """Counts by outcome, the most frequent first."""
    ordered = sorted(row.outcomes.items(), key=lambda item: -item[1])
    return ", ".join(f"{outcome} {count}" for outcome, count in ordered)


def stretch_words(row: AttackRow) -> str:
    """Where the outcome changes, by instruction and kernel function."""
    if len(row.stretches) == 1:
        return "wherever tried"
    shown = [
        f"from {stretch.first} ({stretch.function}()): {stretch.outcome}"
        for stretch in row.stretches[:_MAX_STRETCHES]
    ]
    left = len(row.stretches) - _MAX_STRETCHES
    return "; ".join([*shown, f"{left} more"] if left > 0 else shown)
