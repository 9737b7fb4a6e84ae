# SPDX-License-Identifier: GPL-2.0-or-later
"""A program run with every instruction recorded, for `guestemu show`."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

import msgspec

from guestemu.checks.base import Violation
from guestemu.guest.base import Guest
from guestemu.machine.watchdog import Watchdog
from guestemu.program.program import Program
from guestemu.report.strip import Strip
from guestemu.report.trace.calltree import TreeLine, build_tree, fold, tree_lines
from guestemu.report.trace.instructions import Decoder, InstructionRecorder
from guestemu.report.trace.places import Places
from guestemu.report.trace.run import Run, VmStop, add_time_up, check_program, seconds_for, step_in
from guestemu.report.trace.strips import StripRecorder
from guestemu.report.trace.symbols import SITE_TEXT, Symbols, symbols_of
from guestemu.runner.testbed import OpResult, Outcome, build_testbed


class CodeLine(msgspec.Struct, frozen=True):
    """One executed instruction: where it is ("function+0x12"), its text, and what it is for a host
    (a value of `symbols.SITE_TEXT`) or empty."""

    address: int
    where: str
    text: str
    site: str


class ShownOp(msgspec.Struct, frozen=True):
    """What one operation executed: number of instructions, folded calls, the first instructions;
    the strip after it where it touched a frame."""

    instructions: int
    calls: tuple[TreeLine, ...]
    code: tuple[CodeLine, ...]
    strip: Strip | None = None


def show_program(
    program: Program, depth: int, first: int, seconds: float | None = None
) -> tuple[Run, tuple[ShownOp, ...]]:
    """Runs `program` and gives, for each operation that ran, calls to `depth` and the `first`
    instructions. It may take `seconds` of CPU time (see `run_in`). Raises `InputError` for a
    configuration that cannot be."""
    check_program(program)
    testbed = build_testbed(program.header)
    limit = seconds_for(program.header) if seconds is None else seconds
    try:
        guest = testbed.guest
        strips = StripRecorder(testbed)
        places = Places(guest.regions)
        recorder = InstructionRecorder(guest, testbed.recorder)
        recorded: list[tuple[int, array[int]]] = []
        results: list[OpResult] = []
        violations: list[Violation] = []
        stop: VmStop | None = None
        with Watchdog(lambda: testbed.guest.machine, limit) as watchdog:
            testbed.reset()
            for index in range(len(program.ops)):
                recorder.begin()
                stop = step_in(testbed, program, index, results, violations)
                recorded.append((recorder.count, recorder.addresses))
                add_time_up(violations, index, watchdog)
                if stop is not None or watchdog.is_up:
                    break
        run = Run(program, Outcome(tuple(results), tuple(violations)), places, stop)
        shown = [
            msgspec.structs.replace(op, strip=strips.strip_of(index, places))
            for index, op in enumerate(_shown(guest, recorded, depth, first))
        ]
        return run, tuple(shown)
    finally:
        testbed.close()


def _shown(
    guest: Guest, recorded: Iterable[tuple[int, array[int]]], depth: int, first: int
) -> Iterator[ShownOp]:
    """What is printed of the instructions that each operation ran: how many, and the addresses."""
    symbols = symbols_of(guest)
    decoder = Decoder(guest)
    is_snippet = guest.name.startswith("snippet:")
    for count, addresses in recorded:
        if not is_snippet:
            for address in set(addresses):
                symbols.learn(address, decoder.at(address).text)
        tree = fold(build_tree(addresses, decoder, symbols))
        code = _code(addresses[:first], decoder, symbols)
        yield ShownOp(count, tuple(tree_lines(tree, depth)), tuple(code))


def _code(addresses: Iterable[int], decoder: Decoder, symbols: Symbols) -> Iterator[CodeLine]:
    for address in addresses:
        site = SITE_TEXT.get(symbols.sites.get(address, ""), "")
        yield CodeLine(address, symbols.name(address), decoder.at(address).text, site)
