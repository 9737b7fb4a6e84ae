# SPDX-License-Identifier: GPL-2.0-or-later
"""What real kernels did, as documents: calls, opt-ins through EFI variables, accepted memory,
kexec."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from guestemu.abi.hypercalls import answer_text, hypercall_text
from guestemu.abi.names import plural
from guestemu.kernel.call import CallReport
from guestemu.kernel.calltree import FunctionLine
from guestemu.kernel.efi import OptIn
from guestemu.kernel.kexec import KexecMoment, KexecReport
from guestemu.kernel.unaccepted import AcceptStep
from guestemu.report.document import Bullets, Document, Item

MAX_LINES: Final = 16
"""Lines of one kind in a terminal; of more, the number is said."""


def calls_document(reports: Sequence[CallReport]) -> Document:
    """Each call with its result, and what it did below."""
    return Document("", lead=tuple(_below(_call(one), _effects(one)) for one in reports))


def opt_ins_document(rows: Sequence[OptIn]) -> Document:
    """What a kernel made of each variable."""
    return Document("", lead=tuple(map(_opt_in, rows)))


def accept_document(steps: Sequence[AcceptStep]) -> Document:
    """Each call with what host and guest did."""
    return Document("", lead=tuple(map(_accepted, steps)))


def kexec_document(report: KexecReport) -> Document:
    """What the host had on record at each moment, and what does not fit."""
    cpus = f" with {report.cpus} CPUs" if report.cpus > 1 else ""
    title = f"{report.old}{cpus} -> {report.new} on {report.host}"
    return Document(title, lead=(Bullets(tuple(_kexec_lines(report))),))


def _kexec_lines(report: KexecReport) -> Iterator[str]:
    yield f"the old kernel runs: {_moment(report.running)}"
    yield f"jump: {_moment(report.at_jump)}"
    yield f"first hypercall of the new kernel: {_moment(report.before_reset)}"
    yield f"the new kernel runs: {_moment(report.after)}"
    written = ", ".join(f"{value:#x}" for value in report.msr) or "not written"
    yield f"MIGRATION_CONTROL: {written}"
    for call in report.refused[:MAX_LINES]:
        yield f"{hypercall_text(call.nr, call.args)} -> {answer_text(call.ret)}"
    yield from _runs("stale", report.stale, "shared for the host, private in the guest")
    yield from _runs("missing", report.missing, "private for the host, shared in the guest")
    foreign = "mapped private and not validated or accepted"
    yield from _runs("unusable", report.unusable, foreign)
    if report.unshared:
        yield "the old kernel made its memory private before the jump"
    for left in report.vmsas:
        use = "in use: no access to it returns" if left.is_in_use else "in use by no vCPU"
        yield f"a VMSA is left at GPA {left.gfn << 12:#x}, {use}"
    yield f"the new kernel: {report.end}"
    if report.has_booted and not report.stale and not report.missing:
        yield "the host's record agrees with the new kernel's page tables"


def _moment(moment: KexecMoment) -> str:
    ready = "may migrate" if moment.migration_ready else "may not migrate"
    return f"the host has {moment.shared} pages as shared and {ready}"


def _runs(name: str, runs: Sequence[tuple[int, int]], meaning: str) -> Iterator[str]:
    lines = [
        f"{name}: {pages} pages from GPA {first << 12:#x} on, {meaning}" for first, pages in runs
    ]
    yield from shown(lines, "")


def shown(lines: Sequence[str], what: str) -> Iterator[str]:
    """The first of `lines`, and how many more there are; `what` names them."""
    yield from lines[:MAX_LINES]
    if len(lines) > MAX_LINES:
        yield f"and {len(lines) - MAX_LINES} more{what}; --json lists them"


def _below(text: str, lines: Iterator[str]) -> Item:
    return Item(text, (Bullets(tuple(lines)),), indent=0)


def _call(report: CallReport) -> str:
    given = ", ".join(map(str, report.arguments))
    value = "void" if report.returned is None else _number(report.returned)
    return f"{report.function}({given}): {report.oops or value}"


def _effects(report: CallReport) -> Iterator[str]:
    leaves = [
        f"{leaf.gva:#x} (GPA {leaf.gpa:#x}), {plural(leaf.pages, 'page')}: "
        f"{'private' if leaf.private else 'shared'}"
        for leaf in report.ptes
    ]
    yield from shown(leaves, " changed leaves")
    calls = [
        f"{hypercall_text(call.nr, call.args)} -> {answer_text(call.ret)}"
        for call in report.hypercalls
    ]
    yield from shown(calls, " hypercalls")
    yield from (f"WRMSR {write.msr:#x} = {write.value:#x}" for write in report.msrs)
    yield from (f"WARN {warning}" for warning in report.warnings)
    yield from (f"| {line}" for line in report.console)
    yield f"{report.instructions} instructions"
    yield from map(_node, report.tree)


def _node(node: FunctionLine) -> str:
    """Instructions of the function with all that it called, then its own."""
    indent = "  " * node.depth
    times = f" ({node.times} times)" if node.times > 1 else ""
    if node.is_exit:
        return f"{'':>9} {'':>8}  {indent}* {node.name}{times}"
    return f"{node.total:>9} {node.own:>8}  {indent}{node.name}{times}"


def _number(value: int) -> str:
    return str(value) if -4096 < value < 4096 else f"{value & 0xFFFF_FFFF_FFFF_FFFF:#x}"


def _opt_in(row: OptIn) -> Item:
    asked = ", ".join(row.asked) or "nothing"
    written = ", ".join(f"{value:#x}" for value in row.migration_control) or "not written"
    text = f"{row.variable}: asked for {asked}; MIGRATION_CONTROL {written}"
    return _below(text, (f"| {line}" for line in row.console))


def _accepted(step: AcceptStep) -> Item:
    heard = ", ".join(f"{pages} pages from {first:#x} on" for first, pages in step.told)
    done = ", ".join(f"{count} x {what}" for what, count in step.accepted.items())
    lines = (
        f"host: {heard or 'hears nothing'}",
        f"guest: {done or 'accepts nothing'}; bitmap {step.bitmap}",
    )
    return _below(f"{step.what}: {step.call}: {step.result}", iter(lines))
