# SPDX-License-Identifier: GPL-2.0-or-later
"""A program run with every instruction recorded, for `guestemu show`."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from guestemu.checks.base import Violation
from guestemu.program.program import Program
from guestemu.report.strip import Strip
from guestemu.testbed import OpResult, Outcome, build_testbed
from guestemu.trace.calltree import TreeLine, build_tree, fold, tree_lines
from guestemu.trace.instructions import Decoder, InstructionRecorder
from guestemu.trace.places import Places
from guestemu.trace.run import Run, VmStop, check_program, step_in
from guestemu.trace.strips import StripRecorder
from guestemu.trace.symbols import SITE_TEXT, Symbols, symbols_of


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


def show_program(program: Program, depth: int, first: int) -> tuple[Run, tuple[ShownOp, ...]]:
    """Runs `program` and gives, for each operation that ran, calls to `depth` and the `first`
    instructions. Raises `InputError` for a configuration that cannot be."""
    check_program(program)
    testbed = build_testbed(program.header)
    guest = testbed.guest
    try:
        strips = StripRecorder(testbed)
        places = Places(guest.regions)
        symbols = symbols_of(guest)
        is_snippet = guest.name.startswith("snippet:")
        recorder = InstructionRecorder(guest, testbed.recorder)
        decoder = Decoder(guest)
        results: list[OpResult] = []
        violations: list[Violation] = []
        shown: list[ShownOp] = []
        stop: VmStop | None = None
        testbed.reset()
        for index in range(len(program.ops)):
            recorder.begin()
            stop = step_in(testbed, program, index, results, violations)
            if not is_snippet:
                for address in set(recorder.addresses):
                    symbols.learn(address, decoder.at(address).text)
            tree = fold(build_tree(recorder.addresses, decoder, symbols))
            shown.append(
                ShownOp(
                    recorder.count,
                    tuple(tree_lines(tree, depth)),
                    tuple(_code(recorder, decoder, symbols, first)),
                    strips.strip_of(index, places),
                )
            )
            if stop is not None:
                break
        outcome = Outcome(tuple(results), tuple(violations))
        return Run(program, outcome, places, stop), tuple(shown)
    finally:
        testbed.close()


def _code(
    recorder: InstructionRecorder, decoder: Decoder, symbols: Symbols, first: int
) -> Iterator[CodeLine]:
    for address in recorder.addresses[:first]:
        site = SITE_TEXT.get(symbols.sites.get(address, ""), "")
        yield CodeLine(address, symbols.name(address), decoder.at(address).text, site)
