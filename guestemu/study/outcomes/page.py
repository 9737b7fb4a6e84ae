# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/tdx.md: access table, conversion table and findings, from runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from guestemu.machine.sept import ACCEPTED, PENDING, SHARED, AccessEnd, AccessKind, SecureEpt
from guestemu.study.outcomes.td_findings import FindingResult
from guestemu.study.outcomes.td_table import RowResult

_HEAD: Final = """# TDX guests

`sev tdx` in a program, or `--sev tdx`, runs a guest as an Intel TD: real kernels (6.12 to 7.3), \
`snippet:6.12` and `snippet:7.3`. The guest half is real: an unmodified kernel boots on the \
emulated CPU and \
executes TDCALL. The TDX module, KVM and user space are models, written from their sources \
(facts/tdx-guest.md). KVM's part of MapGPA is host/kvm/tdx_map_gpa.py; what it asks user space \
reaches the same hosts and plug-ins as a SEV guest's hypercall. \
CPUID of the hypervisor's leaves, IN, OUT, HLT, MSRs that the CPU does not keep and MMIO raise \
#VE in a real kernel and its modules, CPUID also in user space; the kernel's own handler asks by \
TDG.VP.VMCALL (`guestemu kernel boot --sev tdx` and `kernel run --sev tdx` count them). String I/O \
raises it, and the handler refuses it, as it does what no process may ask for. The console's ports \
raise it with `--console-ve` only: 16,000 accesses in a boot. \
`--host hostile-hypervisor:mapgpa-LIE` is a VMM whose R10 or R11 is a lie; in a program \
`hypervisor_lie` has it begin to lie. corpora/tdx has a program for each lie and each attack on a \
page.

This page is made by `guestemu outcomes page`.
"""

_ACCESS: Final = """## What an access comes to

The private alias of a page is its address with the shared bit clear. SEPT_VE_DISABLE is the TD \
attribute that Linux wants; without it a pending page raises #VE. A host that gets \
KVM_EXIT_MEMORY_FAULT converts the page, as QEMU does, and its record says so, or stops \
(`--host stop-at-fault`); corpora/tdx has a program for either.
"""

_TABLE: Final = """## What a conversion comes to

Every row starts from the same state. *decrypt* is set_memory_decrypted() of private pages, \
*encrypt* set_memory_encrypted() of pages that were decrypted before. Answers are R10 of MapGPA; \
"converted" is what the host did. Entries are P (private) or S (shared); states are a (accepted), \
p (pending), s (shared), with the number of pages. The last column is what a store to the middle \
of the range then comes to, under a host that converts on a memory fault.
"""


def td_page(tables: Mapping[str, Sequence[RowResult]], findings: Sequence[FindingResult]) -> str:
    """The page. `tables` are the results by guest; `findings` of every kernel."""
    parts = [_HEAD, _ACCESS, access_table(), _TABLE, conversion_table(tables)]
    if findings:
        parts += ["## Findings\n", *(_finding(name, findings) for name in _names(findings))]
    return "\n".join(parts)


def access_table() -> str:
    """The table T12 as the model of the Secure EPT answers it."""
    lines = ["| alias | state | load, store | fetch |", "| --- | --- | --- | --- |"]
    for private in (True, False):
        for state in (ACCEPTED, PENDING, SHARED):
            sept = SecureEpt(1)
            if state != ACCEPTED:
                sept.make_shared(0, 1)
            if state == PENDING:
                sept.make_private(0, 1)
            data, fetch = (
                sept.access(0, private, kind) for kind in (AccessKind.WRITE, AccessKind.FETCH)
            )
            alias = "private" if private else "shared"
            lines.append(f"| {alias} | {sept.describe(0)} | {data.value} | {fetch.value} |")
    lines.append(f"| shared | no memory slot | {AccessEnd.VE.value} (MMIO) | |")
    return "\n".join(lines) + "\n"


def conversion_table(tables: Mapping[str, Sequence[RowResult]]) -> str:
    """The rows of the first guest, and where the others differ."""
    first, *others = tables
    rows = tables[first]
    lines = [
        f"{len(rows)} rows, run on {', '.join(tables)}.",
        "",
        "| | pages | answer | value | entries | host | MapGPA | ACCEPT | next store |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_row(row) for row in rows),
        "",
    ]
    for name in others:
        different = [
            f"{_row(row)} {first} has: {_row(base)}"
            for base, row in zip(rows, tables[name], strict=True)
            if base != row
        ]
        lines.append(f"{name}: {len(different) or 'no'} rows differ from {first}.")
        lines += different
    return "\n".join(lines) + "\n"


def _row(row: RowResult) -> str:
    direction = "encrypt" if row.to_private else "decrypt"
    value = f"**{row.value}** WARN" if row.warned else row.value
    entries, states = (
        text.replace("*", "\N{MULTIPLICATION SIGN}") for text in (row.entries, row.states)
    )
    cells = (direction, row.pages, row.title, value, entries, states)
    counts = (row.map_gpa_calls, row.accepts, row.next_store)
    return f"| {' | '.join(map(str, (*cells, *counts)))} |"


def _names(findings: Iterable[FindingResult]) -> list[str]:
    return list(dict.fromkeys(finding.name for finding in findings))


def _finding(name: str, findings: Iterable[FindingResult]) -> str:
    found = [finding for finding in findings if finding.name == name]
    lines = [f"### {found[0].title[0].upper()}{found[0].title[1:]}", ""]
    lines += [f"`guestemu outcomes findings --only {name}` ({found[0].facts})", ""]
    for one in found:
        lines += [f"{one.kernel}: {'yes' if one.holds else 'no'}", "", "```"]
        lines += [*one.lines, "```", ""]
    return "\n".join(lines)
