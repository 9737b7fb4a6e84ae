# SPDX-License-Identifier: GPL-2.0-or-later
"""Races of page conversions on two CPUs of a real kernel.

Two calls begin at a checkpoint in user space, one on each CPU (two_calls.py), and an order of turns
decides who executes when: basic blocks, up to a hypercall, an IPI, a function or an instruction.
Each CPU keeps its translations until it drops them itself, and each holds one of every page of the
experiment at first, as an MMU that walks ahead may. Orders come from the user or are drawn by seed
and number.

`PLANTS` are defects that are put into the kernel from outside, for the checks to find: conversions
that do not take mem_enc_lock, and flushes that stay on the CPU that converts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import product
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa, Gva, gpas_text
from guestemu.abi.errors import InputError
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED
from guestemu.abi.names import nearest
from guestemu.events.base import Event
from guestemu.events.exits import HypercallExit
from guestemu.guest.linux.boot import kind_of
from guestemu.guest.linux.kernel import Kernel
from guestemu.guest.linux.userland.complaints import printed_warnings
from guestemu.guest.linux.userland.cpus import HYPERCALL, IPI, Turn
from guestemu.guest.linux.userland.invalidations import watch_invalidations
from guestemu.guest.linux.userland.rules import SHARED
from guestemu.guest.linux.userland.running import Ended, RunningKernel
from guestemu.guest.linux.userland.two_calls import RETURN, KernelCall, TwoCalls
from guestemu.machine.paging import Leaf, walk
from guestemu.report.race import HOST, Race, RaceStep

BUDGET: Final = 2_000_000
"""Basic blocks of an experiment; two conversions take 30,000, taking a CPU off 400,000."""

HELD: Final = "held"
FLUSH, LOCK = "flush", "lock"
PLANTS: Final = {
    FLUSH: "flushes of set_memory.c stay on the CPU that converts",
    LOCK: "conversions do not take mem_enc_lock",
}

_DECRYPT: Final = "set_memory_decrypted"
_ENCRYPT: Final = "set_memory_encrypted"
_STOP: Final = "set_memory_enc_stop_conversion"
_REMOVE: Final = "remove_cpu"
_LOCK: Final = "mem_enc_lock"
_OOPS: Final = "oops_in_progress"
_ALLOCATE: Final = ("__get_free_pages", "get_free_pages_noprof")
_GFP_ZEROED: Final = 0xDC0
"""GFP_KERNEL | __GFP_ZERO."""

_PAGES: Final = 2
_PRIVATE_STATES: Final = ("validated", "accepted")
"""Of an SNP guest's page, and of a TD's."""

_EBUSY: Final = -16
_FLUSHES: Final = ("__cpa_flush_tlb", "__cpa_flush_all", "do_flush_tlb_all")
_EVENTS: Final = (HYPERCALL, IPI, RETURN)
_MOST_TURNS: Final = 64
_LONGEST: Final = 11
"""Drawn turns have up to 2 to this power basic blocks."""


class RaceScenario(msgspec.Struct, frozen=True, kw_only=True):
    """What the CPUs call: `first` on CPU 0, `second` on CPU 1; `page` is the page (0 or 1) that a
    conversion is of, or the argument of another function. `before` and `after` are called alone on
    CPU 0. `is_oops` sets oops_in_progress first."""

    text: str
    first: tuple[str, int]
    second: tuple[str, int]
    before: tuple[tuple[str, int], ...] = ()
    after: tuple[tuple[str, int], ...] = ()
    is_oops: bool = False


SCENARIOS: Final = {
    "neighbours": RaceScenario(
        text="two pages of one page table become shared",
        first=(_DECRYPT, 0),
        second=(_DECRYPT, 1),
    ),
    "back": RaceScenario(
        text="a page becomes shared while its neighbour becomes private again",
        first=(_DECRYPT, 0),
        second=(_ENCRYPT, 1),
        before=((_DECRYPT, 1),),
    ),
    "stop": RaceScenario(
        text="conversions are stopped while one is made (mem_enc_lock)",
        first=(_DECRYPT, 0),
        second=(_STOP, 1),
    ),
    "stop-try": RaceScenario(
        text="the same with oops_in_progress (the try form of the lock)",
        first=(_DECRYPT, 0),
        second=(_STOP, 0),
        is_oops=True,
    ),
    "offline": RaceScenario(
        text="CPU 1 is taken off and comes back while it makes a page shared",
        first=(_REMOVE, 1),
        second=(_DECRYPT, 0),
        after=(("add_cpu", 1),),
    ),
}


class RaceExperiment(msgspec.Struct, frozen=True, kw_only=True):
    """One experiment: its number (-1 for a named order), the order, what the calls returned (None:
    not), and what is wrong: `key` names the check, "held" if all hold, `text` is one line; `race`
    draws a finding, a lane for each CPU."""

    number: int
    order: str
    returned: tuple[int | None, int | None]
    key: str
    text: str
    race: Race | None = None

    @property
    def is_finding(self) -> bool:
        """Whether a check did not hold."""
        return self.key != HELD


def missing(kernel: Kernel, scenario: str, sev: str = "sev") -> str:
    """Why `kernel`, as a guest of the kind `sev`, cannot run a scenario of `SCENARIOS`; empty if it
    can."""
    if sev == "tdx" and SCENARIOS[scenario].first[0] == _REMOVE:
        return "a TD's mailbox starts a CPU once: the kernel takes none off"
    calls = (SCENARIOS[scenario].first, SCENARIOS[scenario].second)
    absent = [name for name, _ in calls if name not in kernel.symbols]
    return f"{kernel.version} has no {', '.join(absent)}" if absent else ""


class Races:
    """Experiments of one scenario on a kernel with two CPUs whose PID 1 is idle."""

    def __init__(self, running: RunningKernel, scenario: str, plant: str = "") -> None:
        """Prepares the calls and takes the checkpoint. Raises `InputError` for what is unknown or
        what the kernel lacks."""
        for what, name, known in (("scenario", scenario, SCENARIOS), ("plant", plant, PLANTS)):
            if name and name not in known:
                raise InputError(f"{what} {name}: {nearest(name, known)}")
        self.scenario = SCENARIOS[scenario]
        kernel = running.kernel
        sev = kind_of(running.machine.config)
        if why := missing(kernel, scenario, sev):
            raise InputError(f"scenario {scenario}: {why}")
        self._running = running
        self._wrong: list[tuple[str, str]] = []
        self._steps: list[RaceStep] = []
        self._is_under_way = False
        if plant:
            (self._plant_flush if plant == FLUSH else self._plant_lock)()
        self._translations = watch_invalidations(kernel, running.machine)
        self._calls = TwoCalls(running)
        self._calls.on_enter = self._on_enter
        self._calls.on_return = self._on_return
        running.listeners.append(self._hear)
        allocate = next((name for name in _ALLOCATE if name in kernel.symbols), _ALLOCATE[0])
        self._base = self._calls.call(allocate, _GFP_ZEROED, _PAGES - 1)
        for name, argument in self.scenario.before:
            self._calls.call(*self._as_call(name, argument))
        self._calls.start_thread()
        for page in range(_PAGES):
            for cpu in (0, 1):
                self._translations.hold(self._walk(page), cpu)
        if self.scenario.is_oops:
            machine = running.machine
            machine.current.write_memory(Gva(kernel.address(_OOPS)), b"\1\0\0\0")
        self._calls.checkpoint()
        self._private = [self._is_private(page) for page in range(_PAGES)]
        self._stopped_at: int | None = None

    def _gva(self, page: int) -> Gva:
        return Gva(self._base + page * PAGE_SIZE)

    def _as_call(self, name: str, argument: int) -> tuple[str, int, int]:
        if name in {_DECRYPT, _ENCRYPT}:
            return name, self._gva(argument), 1
        return name, argument, 0

    # Orders -----------------------------------------------------------------------------------

    def parse(self, order: str) -> list[Turn]:
        """Turns from text, `CPU:WHERE[,CPU:WHERE...]`. WHERE is a number of basic blocks,
        "hypercall", "ipi", "return", or FUNCTION[+OFFSET]. Raises `InputError`."""
        turns = []
        for part in order.split(","):
            cpu, colon, where = part.strip().partition(":")
            if cpu not in {"0", "1"} or not colon or not where:
                raise InputError(f"order {part!r}: CPU:WHERE, such as 0:200 or 1:hypercall")
            turns.append(self._turn(int(cpu), where))
        if len(turns) > _MOST_TURNS:
            raise InputError(f"order: {len(turns)} turns, {_MOST_TURNS} at most")
        return turns

    def _turn(self, cpu: int, where: str) -> Turn:
        if where.isdecimal():
            blocks = int(where)
            if not 0 < blocks <= BUDGET:
                raise InputError(f"order {cpu}:{where}: 1 to {BUDGET} basic blocks")
            return Turn(cpu, blocks)
        if where in _EVENTS:
            return Turn(cpu, event=where)
        function, _, offset = where.partition("+")
        try:
            address = self._running.kernel.address(function) + int(offset or "0", 0)
        except ValueError:
            raise InputError(f"order {cpu}:{where}: the offset is no number") from None
        self._running.intercept(address)
        return Turn(cpu, address=address)

    @staticmethod
    def draw(seed: int, number: int) -> str:
        """The order of experiment `number`."""
        source = random.Random(f"{seed}:{number}")
        cpu = source.randrange(2)
        parts = []
        for _ in range(source.randint(1, 8)):
            where = source.choice((*_EVENTS[:2], "", "", "", ""))
            parts.append(f"{cpu}:{where or int(2 ** source.uniform(0, _LONGEST))}")
            cpu ^= 1
        return ",".join([*parts, f"{cpu}:{RETURN}"])

    # Experiments ------------------------------------------------------------------------------

    def run(self, seed: int, numbers: range) -> Iterator[RaceExperiment]:
        """The experiments `numbers`; each depends on seed and number only."""
        for number in numbers:
            yield self.one(self.draw(seed, number), number)

    def every(self, turns: int) -> Iterator[RaceExperiment]:
        """All orders of one to `turns` turns that end at an event, numbered from 0."""
        steps = [f"{cpu}:{event}" for cpu in (0, 1) for event in _EVENTS]
        orders = (
            ",".join(parts)
            for count in range(1, turns + 1)
            for parts in product(steps, repeat=count)
        )
        for number, order in enumerate(orders):
            yield self.one(order, number)

    def reduce(self, found: RaceExperiment) -> RaceExperiment:
        """The same finding by an order with fewer turns, then with fewer basic blocks, as far as
        leaving out one turn or halving one number goes; `found` where no other order shows it."""
        best, is_smaller = found, True
        while is_smaller:
            is_smaller = False
            for order in _smaller(best.order):
                other = self.one(order)
                if other.key == found.key:
                    best, is_smaller = other, True
                    break
        return best

    def one(self, order: str, number: int = -1) -> RaceExperiment:
        """One experiment with the order in the text. Raises `InputError`."""
        turns = self.parse(order)
        running, calls = self._running, self._calls
        printed = len(running.console.text)
        self._wrong.clear()
        self._steps.clear()
        self._stopped_at = None
        self._is_under_way = True
        try:
            first, second = (
                KernelCall(name, self._as_call(name, argument)[1:])
                for name, argument in (self.scenario.first, self.scenario.second)
            )
            ended = calls.run((first, second), turns, BUDGET)
            returned = self._returned()
            self._judge(ended, returned, printed)
        finally:
            self._is_under_way = False
            calls.rollback()
        key, text = self._wrong[0] if self._wrong else (HELD, "")
        return RaceExperiment(
            number=number,
            order=order,
            returned=returned,
            key=key,
            text=text,
            race=Race(steps=tuple(self._steps)) if self._wrong else None,
        )

    def _returned(self) -> tuple[int | None, int | None]:
        first, second = self._calls.returned
        return (
            None if first is None else first.number,
            None if second is None else self._number(second.number),
        )

    def _number(self, value: int) -> int:
        """A bool is the lowest byte of RAX."""
        return value & 0xFF if self.scenario.second[0] == _STOP else value

    def _judge(self, ended: Ended, returned: tuple[int | None, int | None], printed: int) -> None:
        running = self._running
        if ended.reason != "until":
            self._note("progress" if ended.reason == "budget" else ended.reason, ended.text)
        else:
            for name, argument in self.scenario.after:
                try:
                    value = self._finish(name, argument)
                except InputError as error:
                    self._note("progress", str(error))
                else:
                    if value:
                        self._note("result", f"{name}({argument}) returned {value}")
            self._judge_pages(returned)
            if self._stopped_at is not None and self._told() > self._stopped_at:
                self._note(
                    "conversion-after-stop",
                    f"page-status calls after {_STOP} had returned true: "
                    f"{self._told() - self._stopped_at}",
                )
        for line in printed_warnings(running.console.text, printed):
            self._note("warning", line)

    def _finish(self, name: str, argument: int) -> int:
        """PID 1 comes back from its call, then makes another one."""
        running = self._running
        ended = running.run(BUDGET)
        if ended.reason != "idle":
            raise InputError(f"PID 1 did not come back: {ended.text}")
        return self._calls.call(name, argument) & 0xFFFFFFFF

    def _judge_pages(self, returned: tuple[int | None, int | None]) -> None:
        wanted = list(self._private)
        for (name, page), value in zip(
            (self.scenario.first, self.scenario.second), returned, strict=True
        ):
            if name not in {_DECRYPT, _ENCRYPT}:
                if name != _STOP and value:
                    self._note("result", f"{name}({page}) returned {value}")
                continue
            if value == 0:
                wanted[page] = name == _ENCRYPT
            elif value != _EBUSY or self._stopped_at is None:
                self._note("result", f"{name}() returned {value}")
        for page, is_private in enumerate(wanted):
            self._judge_page(page, is_private)

    def _judge_page(self, page: int, is_private: bool) -> None:
        gpa, in_tables = self._translated(page)
        host = gpa >> PAGE_SHIFT not in self._running.rules.shared
        if in_tables != is_private or host != is_private:
            self._note(
                "page-status",
                f"page {page} (GPA {gpa:#x}) should be {_view(is_private)}: page tables say "
                f"{_view(in_tables)}, the host {_view(host)}",
            )
        state = self._running.rules.page_state(gpa >> PAGE_SHIFT)
        if state is not None and state not in (_PRIVATE_STATES if is_private else (SHARED,)):
            self._note(
                "page-state",
                f"page {page} (GPA {gpa:#x}) should be {_view(is_private)}: its state is {state}",
            )
        self._judge_translations(page)

    def _judge_translations(self, page: int) -> None:
        machine, cpus = self._running.machine, self._running.hardware.cpus
        gpa, in_tables = self._translated(page)
        for cpu in (0, 1):
            leaf = self._translations.find(self._gva(page), cpu)
            if leaf is None or (cpus is not None and not cpus.is_on(cpu)):
                continue
            if machine.bit.is_private(leaf.entry) != in_tables:
                self._note(
                    "stale-translation",
                    f"CPU {cpu} still translates page {page} (GPA {gpa:#x}) as "
                    f"{_view(not in_tables)}; the page tables say {_view(in_tables)}",
                )

    def _step(self, lane: str, text: str) -> None:
        self._steps.append(RaceStep(len(self._steps), lane, text, 0, ()))

    def _on_enter(self, which: int) -> None:
        """A call begins."""
        if self._is_under_way:
            name, argument = (self.scenario.first, self.scenario.second)[which]
            of = f"page {argument}" if name in {_DECRYPT, _ENCRYPT} else f"argument {argument}"
            self._step(_lane(which), f"{name} begins, {of}")

    def _hear(self, event: Event) -> None:
        """The guest tells the host of a page."""
        if (
            self._is_under_way
            and isinstance(event, HypercallExit)
            and event.nr == KVM_HC_MAP_GPA_RANGE
        ):
            gpa, pages, attributes = event.args[:3]
            told = gpas_text(gpa >> PAGE_SHIFT, (gpa >> PAGE_SHIFT) + pages)
            view = _view(bool(attributes & MAP_GPA_RANGE_ENCRYPTED))
            self._step(_lane(self._running.machine.current.index), f"tells: {told} is {view}")
            self._step(HOST, f"records it, answers {event.ret}")

    def _on_return(self, which: int) -> None:
        """A call has returned: what it converted is in force on every CPU from now on."""
        if not self._is_under_way:
            return
        name, page = (self.scenario.first, self.scenario.second)[which]
        returned = self._calls.returned[which]
        if returned is None:
            return
        value = self._number(returned.number) if which else returned.number
        self._step(_lane(which), f"{name} returns {value}")
        if name == _STOP and returned.number & 0xFF:
            self._stopped_at = self._told()
        elif name in {_DECRYPT, _ENCRYPT} and not returned.number:
            self._judge_translations(page)

    def _note(self, key: str, text: str) -> None:
        self._wrong.append((key, text))
        if self._steps:
            last = self._steps[-1]
            self._steps[-1] = msgspec.structs.replace(last, effects=(*last.effects, text))

    def _told(self) -> int:
        """How many page-status calls the host has answered."""
        return sum(
            isinstance(told, HypercallExit) and told.nr == KVM_HC_MAP_GPA_RANGE
            for told in self._running.recorder.exits
        )

    def _walk(self, page: int) -> Leaf:
        machine = self._running.machine
        root = Gpa(machine.current.read_register("cr3") & ~0xFFF & ~machine.pte_cbit)
        return walk(machine.ram, machine.bit.mask, root, self._gva(page))

    def _translated(self, page: int) -> tuple[Gpa, bool]:
        found = self._running.machine.current.translate(self._gva(page))
        if found is None:
            raise InputError(f"page {page} of the experiment is not mapped")
        return found

    def _is_private(self, page: int) -> bool:
        return self._translated(page)[1]

    # Planted defects --------------------------------------------------------------------------

    def _intercept(self, function: str, action: Callable[[], None]) -> None:
        def planted() -> None:
            if self._is_under_way:
                action()

        self._running.intercept(self._running.kernel.address(function), planted)

    def _plant_flush(self) -> None:
        """on_each_cpu() of a flush calls it on this CPU only."""
        symbols = self._running.kernel.symbols
        flushes = {symbols[name] for name in _FLUSHES if name in symbols}

        def action() -> None:
            vcpu = self._running.machine.current
            function = vcpu.read_register("rsi")
            if function in flushes:
                vcpu.write_register("rdi", vcpu.read_register("rdx"))
                vcpu.write_register("rip", function)

        self._intercept("on_each_cpu_cond_mask", action)

    def _plant_lock(self) -> None:
        """down_read_trylock(&mem_enc_lock) succeeds and takes nothing."""
        lock = self._running.kernel.address(_LOCK)

        def skip() -> None:
            vcpu = self._running.machine.current
            if vcpu.read_register("rdi") != lock:
                return
            stack = vcpu.read_register("rsp")
            back = vcpu.read_memory(Gva(stack), 8) or b""
            vcpu.write_register("rax", 1)
            vcpu.write_register("rsp", stack + 8)
            vcpu.write_register("rip", int.from_bytes(back, "little"))

        for function in ("down_read_trylock", "up_read"):
            self._intercept(function, skip)


def _lane(cpu: int) -> str:
    return f"guest CPU {cpu}"


def _smaller(order: str) -> Iterator[str]:
    parts = order.split(",")
    for place in range(len(parts)):
        if len(parts) > 1:
            yield ",".join(parts[:place] + parts[place + 1 :])
    for place, part in enumerate(parts):
        cpu, _, where = part.partition(":")
        if where.isdecimal() and int(where) > 1:
            yield ",".join([*parts[:place], f"{cpu}:{int(where) // 2}", *parts[place + 1 :]])


def _view(is_private: bool) -> str:
    return "private" if is_private else "shared"
