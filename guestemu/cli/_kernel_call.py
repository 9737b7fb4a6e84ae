# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel call` does."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.hypercalls import answer_text, hypercall_text
from guestemu.abi.names import plural
from guestemu.cli import console

if TYPE_CHECKING:
    from guestemu.kernel.call import CallReport
    from guestemu.kernel.calltree import FunctionLine

_MAX_LINES = 16


class CallRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to call in which guest: `calls` are a function and its arguments each. `memory` in MiB,
    `budget` in basic blocks, `depth` in levels of the tree of calls (0: none), `at` the function to
    which the kernel is booted."""

    image: str
    calls: tuple[tuple[str, ...], ...]
    memory: int
    cbit: int
    sev: str
    answer: int
    budget: int
    depth: int
    at: str


def call_image(request: CallRequest) -> tuple[CallReport, ...]:
    """Boots and calls. Raises `InputError`."""
    from guestemu.guest.linux.boot import DEFAULT_COMMAND_LINE, INITCALLS, STOP_AT
    from guestemu.guest.linux.images import find_image
    from guestemu.guest.linux.load import LOADER, linux_config
    from guestemu.kernel.call import Called, call_functions

    config = linux_config(request.memory, request.cbit, request.sev)
    image = find_image(request.image)
    command_line = DEFAULT_COMMAND_LINE
    if request.at != STOP_AT:
        command_line += f" {INITCALLS}"
    guest = LOADER.guest(image, config, request.budget, command_line, request.at)
    calls = [Called(function, tuple(arguments)) for function, *arguments in request.calls]
    return call_functions(guest, calls, request.answer, request.depth)


def split_call(text: str) -> tuple[str, ...]:
    """Function and arguments of `--then`. Raises `InputError`."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise InputError(f"--then {text!r}: {error}") from None
    if not words:
        raise InputError("--then: give a function and its arguments")
    return words


def tell(report: CallReport) -> None:
    """For people."""
    given = ", ".join(map(str, report.arguments))
    value = "void" if report.returned is None else _number(report.returned)
    console.emit(f"{report.function}({given}): {report.oops or value}")
    for leaf in report.ptes[:_MAX_LINES]:
        what = "private" if leaf.private else "shared"
        pages = plural(leaf.pages, "page")
        console.emit(f"  {leaf.gva:#x} (GPA {leaf.gpa:#x}), {pages}: {what}")
    _more(len(report.ptes), "changed leaves")
    for call in report.hypercalls[:_MAX_LINES]:
        console.emit(f"  {hypercall_text(call.nr, call.args)} -> {answer_text(call.ret)}")
    _more(len(report.hypercalls), "hypercalls")
    for write in report.msrs:
        console.emit(f"  WRMSR {write.msr:#x} = {write.value:#x}")
    for warning in report.warnings:
        console.emit(f"  WARN {warning}")
    for line in report.console:
        console.emit(f"  | {line}")
    console.emit(f"  {report.instructions} instructions")
    for node in report.tree:
        console.emit(_node(node))


def _node(node: FunctionLine) -> str:
    """Instructions of the function with all that it called, then its own."""
    indent = "  " * node.depth
    times = f" ({node.times} times)" if node.times > 1 else ""
    if node.is_exit:
        return f"  {'':>9} {'':>8}  {indent}* {node.name}{times}"
    return f"  {node.total:>9} {node.own:>8}  {indent}{node.name}{times}"


def _more(count: int, what: str) -> None:
    if count > _MAX_LINES:
        console.emit(f"  and {count - _MAX_LINES} more {what}; --json lists them")


def _number(value: int) -> str:
    return str(value) if -4096 < value < 4096 else f"{value & 0xFFFF_FFFF_FFFF_FFFF:#x}"
