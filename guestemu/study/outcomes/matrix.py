# SPDX-License-Identifier: GPL-2.0-or-later
"""The same conversions under every guest kind: what is propagated, what is lost, what is left.

One host (the reference user space) answers once with a value of its own and records nothing; what
KVM and the guest make of that differs by guest kind (C19, C20, C21, T35).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.errno import EAGAIN, EINVAL
from guestemu.abi.regions import Region
from guestemu.checks.page_states import HasRmp
from guestemu.guest.base import CallOutcome, Guest
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.images import find_image
from guestemu.guest.linux.load import LOADER
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.machine.exits import Terminated
from guestemu.runner.testbed import Testbed
from guestemu.study.outcomes.cells import Key
from guestemu.study.outcomes.guests import has_kind, outcome_guest
from guestemu.study.outcomes.store import CellStore, store_of

KINDS: Final = ("sev", "es", "snp", "tdx")
ANSWERS: Final = (0, EINVAL, -EINVAL, EAGAIN)
_DMA_SIZE: Final = 4096
_PAGE: Final = 8
_NOTHING: Final = CallOutcome(0)


class MatrixCell(msgspec.Struct, frozen=True, kw_only=True):
    """One operation under one answer. `result` is what the caller reads, or how the guest ended;
    `entry` and `host` are "private" or "shared", `module` the page's state in RMP or Secure EPT;
    `entry` is empty for kexec, whose new kernel has tables of its own.

    `is_told`: the caller reads a failure. `is_lost`: entry and host differ and it reads success.
    """

    guest: str
    kind: str
    operation: str
    answer: int
    result: str
    warned: bool
    entry: str
    host: str
    module: str
    is_told: bool
    is_lost: bool

    @property
    def word(self) -> str:
        """ok, told, ends or lost."""
        if self.is_lost:
            return "lost"
        if not self.is_told:
            return "ok"
        return "told" if self.result.lstrip("-").isdigit() else "ends"


def _decrypt(guest: Guest) -> CallOutcome:
    return guest.set_memory_decrypted(guest.gva(Region.D, _PAGE), 1)


def _encrypt(guest: Guest) -> CallOutcome:
    return guest.set_memory_encrypted(guest.gva(Region.D, _PAGE), 1)


def _dma(guest: Guest) -> CallOutcome:
    return guest.dma_alloc_coherent(_DMA_SIZE, True)


def _kexec(guest: Guest) -> CallOutcome:
    """Up to the jump of kexec: conversions stop, and what is shared is made private (N25, T24)."""
    vendor = "tdx" if guest.td is not None else "snp"
    if not isinstance(guest, LinuxGuest):
        return _NOTHING
    begun = guest.call(f"{vendor}_kexec_begin")
    outcome = guest.call(f"{vendor}_kexec_finish") if begun.end is None else begun
    return _NOTHING if outcome.end is None else outcome


def _has_kexec(name: str, kind: str) -> bool:
    """A kernel that makes its memory private before it jumps; others leave it (A45)."""
    family, _, image = name.partition(":")
    if family != "linux" or kind not in {"snp", "tdx"}:
        return False
    return f"{kind}_kexec_finish" in LOADER.kernel(find_image(image)).symbols


OPERATIONS: Final[tuple[tuple[str, Callable[[Guest], CallOutcome]], ...]] = (
    ("set_memory_decrypted", _decrypt),
    ("set_memory_encrypted", _encrypt),
    ("dma_alloc_coherent", _dma),
    ("kexec", _kexec),
)


def run_matrix(
    names: Iterable[str],
    kinds: Sequence[str] = KINDS,
    done: Callable[[], None] | None = None,
) -> list[MatrixCell]:
    """Every cell for the guests `names`, measured or from the store of the guest's kernel; kinds
    that a guest does not have are left out."""
    cells: list[MatrixCell] = []
    for name in names:
        store = store_of(name)
        for kind in kinds:
            if not has_kind(name, kind):
                continue
            cells += _of_kind(store, name, kind)
            if done is not None:
                done()
    return cells


def run_refusals(names: Iterable[str], kinds: Sequence[str] = KINDS) -> list[MatrixCell]:
    """Of `run_matrix` the conversions of a page that user space refuses with EINVAL."""
    return [
        cell
        for name in names
        for kind in kinds
        if has_kind(name, kind)
        for cell in _of_kind(store_of(name), name, kind, OPERATIONS[:2], (EINVAL,))
    ]


def _of_kind(
    store: CellStore,
    name: str,
    kind: str,
    operations: Sequence[tuple[str, Callable[[Guest], CallOutcome]]] = OPERATIONS,
    answers: Sequence[int] = ANSWERS,
) -> Iterator[MatrixCell]:
    testbed: Testbed | None = None
    for operation, answer in product(operations, answers):
        title, call = operation
        if call is _kexec and not _has_kexec(name, kind):
            continue
        key = Key(kind, f"outcomes matrix {title}", str(answer))
        cell = store.recall(key, MatrixCell)
        if cell is None:
            if testbed is None:
                testbed = Testbed(outcome_guest(name, kind), MapGpaRangeHost())
            cell = _cell(testbed, name, kind, operation, answer)
            store.keep(key, name, cell.word, cell)
        yield msgspec.structs.replace(cell, guest=name)
    if testbed is not None:
        testbed.reset()


def _cell(
    testbed: Testbed,
    name: str,
    kind: str,
    operation: tuple[str, Callable[[Guest], CallOutcome]],
    answer: int,
) -> MatrixCell:
    testbed.reset()
    guest, host = testbed.guest, testbed.host
    title, call = operation
    if call in {_encrypt, _kexec}:
        _decrypt(guest)
    if answer:
        host.inject_answer(answer, 1)
    outcome = call(guest)
    host.inject_answer(0, 0)
    guest.leaf_map.update(guest.machine.ram.table_writes())
    value = outcome.value
    gfn = guest.gpa(Region.D, _PAGE) >> PAGE_SHIFT
    if call is _dma and value is not None and value > 0:
        gfn = value >> PAGE_SHIFT
    entry = bool(guest.leaf_map.private[gfn])
    at_host = bool(host.private_map()[gfn])
    # After kexec the tables are the new kernel's, which maps everything private.
    is_told = value is None or value < 0
    return MatrixCell(
        guest=name,
        kind=kind,
        operation=title,
        answer=answer,
        result=result_of(outcome, call),
        warned=bool(outcome.warnings),
        entry="" if call is _kexec else _word(entry),
        host=_word(at_host),
        module=_module(guest, gfn),
        is_told=is_told,
        is_lost=not is_told and (True if call is _kexec else entry) != at_host,
    )


def _module(guest: Guest, gfn: int) -> str:
    """What the hardware has of a page: the Secure EPT of a TD, the RMP of an SNP guest."""
    if guest.td is not None:
        return guest.td.sept.describe(gfn)
    rmp = guest.rmp if isinstance(guest, HasRmp) else None
    return "" if rmp is None else rmp.describe(gfn)


def result_of(outcome: CallOutcome, call: Callable[[Guest], CallOutcome] | None = None) -> str:
    """What the caller of an operation reads, or how the guest ended."""
    value = outcome.value
    if value is not None and call is _kexec:
        return "returns"
    if value is not None:
        return "a buffer" if call is _dma and value > 0 else str(value)
    end = outcome.end
    if isinstance(end, Terminated):
        return f"terminates {end.reason_set}/{end.reason_code}"
    return "the VM ends"


def _word(private: bool) -> str:
    return "private" if private else "shared"


def matrix_page(cells: Sequence[MatrixCell], stops: Iterable[str]) -> str:
    """The cells as a table, and the verdicts of C19 and C21 by guest kind; `stops` are the lines
    about C20."""
    guests = " ".join(f"--guest {name}" for name in dict.fromkeys(cell.guest for cell in cells))
    lines = [
        "# One answer, four guest kinds",
        "",
        "`guestemu outcomes matrix` runs the same operations in a plain SEV guest, a SEV-ES guest, "
        "an SNP guest and a TD, each an unmodified kernel or the snippet, and the reference user "
        "space answers one exit with `answer` and records nothing. *told*: the caller reads a "
        "failure, or the guest ends. *lost*: it reads success, and entry and host differ. *kexec* "
        "is the old kernel's part up to the jump, after a page was shared; only kernels that "
        "unshare for SNP (6.16 on) or TDX have it. A DMA buffer may come from memory that was "
        "shared before; then user space is not asked.",
        "",
        f"This page is made by `guestemu outcomes matrix {guests} --page docs/guest-kinds.md`.",
        "",
        "## Verdicts",
        "",
        "Refused conversions and DMA buffers are counted, by answer 22; *kexec*, whose function "
        "returns nothing, stands among the runs: a TD's refusal is lost there.",
        "",
        *verdicts(cells),
        "",
        *stops,
        "",
        "## Runs",
        "",
        "| guest | kind | operation | answer | result | entry | host | Secure EPT, RMP | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in cells:
        verdict = "told" if cell.is_told else "**lost**" if cell.is_lost else ""
        result = f"{cell.result} WARN" if cell.warned else cell.result
        lines.append(
            f"| {cell.guest} | {cell.kind} | {cell.operation} | {cell.answer} | {result} | "
            f"{cell.entry} | {cell.host} | {cell.module} | {verdict} |"
        )
    return "\n".join(lines) + "\n"


def verdicts(cells: Sequence[MatrixCell]) -> Iterator[str]:
    """C19 and C21 for each guest kind, from the refused operations (EINVAL) among the cells."""
    c19 = "C19: a WARN is not enough"
    c21 = "C21: the error cannot be propagated"
    yield f"| kind | refused | told | ends | lost | WARN | {c19} | {c21} |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for kind in dict.fromkeys(cell.kind for cell in cells):
        refused = [
            cell
            for cell in cells
            if cell.kind == kind and cell.answer == EINVAL and cell.operation != "kexec"
        ]
        lost = sum(cell.word == "lost" for cell in refused)
        ends = sum(cell.word == "ends" for cell in refused)
        told = sum(cell.word == "told" for cell in refused)
        warned = sum(cell.warned for cell in refused)
        if lost:
            enough, ignored = f"confirmed: {lost} lost", "true here: no caller reads one"
        elif told:
            enough, ignored = "met: the error is propagated", f"false here: {told} told"
        else:
            enough, ignored = "does not arise: the guest ends", "does not arise: the guest ends"
        counts = (len(refused), told, ends, lost, warned)
        yield f"| {kind} | {' | '.join(map(str, counts))} | {enough} | {ignored} |"
