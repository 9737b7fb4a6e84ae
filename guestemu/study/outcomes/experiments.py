# SPDX-License-Identifier: GPL-2.0-or-later
"""All experiments on one kernel, and measuring them: in this process, or in several.

An experiment is named by guest kind, row and answer (`Key`). The battery's rows and a few others
are run as each guest kind; the experiments of the known defects as SEV; the verbs of `kernel
matrix` that are not among them have no kind. What is measured once is kept (outcomes/store.py) for
all of `kernel test`, `kernel defects` and `kernel matrix`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, Gva, to_signed
from guestemu.abi.errno import EINVAL
from guestemu.abi.errors import GuestemuError, InputError
from guestemu.abi.names import nearest
from guestemu.events.exits import HypercallExit
from guestemu.guest.base import CallOutcome
from guestemu.guest.linux.boot import STOP_AT, boot_kernel, describe_end, lacking
from guestemu.guest.linux.cache import switched_off
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.load import LOADER, LinuxLoader, linux_config
from guestemu.guest.linux.printk import KernelLog
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.host.registry import load_host
from guestemu.kernel.efi import Variable, efi_opt_in
from guestemu.kernel.kexec import kexec
from guestemu.machine.exits import RunFailed, Terminated, Trap
from guestemu.replay.pool import run_batches
from guestemu.report.trace.words import op_word
from guestemu.runner.testbed import Testbed
from guestemu.study.outcomes.battery import ANSWERS, KINDS, ROWS, BatteryRow, FrameViews, run_row
from guestemu.study.outcomes.cells import ABSENT, FAILED, Cell, Key, Verdict, judge
from guestemu.study.outcomes.defects import DEFECTS, SEEN, measure
from guestemu.study.outcomes.known import find_known
from guestemu.study.outcomes.store import CellStore
from guestemu.study.outcomes.verbs import VERBS, Verb

RIGHT: Final = "right"
KNOWN_DEFECT: Final = "known defect"
WRONG: Final = "wrong"

MEMORY_MIB: Final = 128
BIT: Final = 39
_BUDGET: Final = 20_000_000
_BOOT: Final = "boot"
_ANNOUNCED: Final = {"sev": "SEV", "es": "SEV-ES", "snp": "SEV-SNP", "tdx": "TDX"}
_AREA_PAGES: Final = 3
_VMALLOC: Final = ("vmalloc", "vmalloc_noprof")


class Bed:
    """The kernel in `image` as one guest kind, booted when first asked for.

    `is_counted`: instructions are counted, which makes everything slow. `loader` boots it, by
    default the process's own, or one of its own where instructions are counted.
    """

    def __init__(
        self,
        image: Path,
        kind: str,
        is_counted: bool = False,
        loader: LinuxLoader | None = None,
    ) -> None:
        self.image = image
        self.kind = kind
        self.is_counted = is_counted
        self._loader = loader or (LinuxLoader() if is_counted else LOADER)
        self._testbed: Testbed | None = None

    @property
    def testbed(self) -> Testbed:
        """The guest over the reference host."""
        if self._testbed is None:
            self._testbed = Testbed(self.guest, MapGpaRangeHost())
        return self._testbed

    @property
    def guest(self) -> LinuxGuest:
        """The guest with a budget for long calls. Raises `InputError` for a kernel that does not
        boot so."""
        config = linux_config(MEMORY_MIB, BIT, self.kind)
        guest = self._loader.guest(self.image, config, _BUDGET)
        if self.is_counted:
            guest.count_instructions()
        return guest

    def run(self, row: BatteryRow, answer: str) -> Verdict:
        """One row of the battery."""
        guest = self.guest
        testbed = self.testbed
        guest.set_budget(row.budget)
        guest.instructions = 0
        wrong = run_row(testbed, row, answer)
        defect = find_known(Key(self.kind, row.name, answer), wrong.words)
        detail = f"{', '.join(wrong.words)}: {wrong.detail}" if wrong.words else wrong.detail
        counted = guest.instructions if self.is_counted else None
        return Verdict(WRONG if wrong.words else RIGHT, detail, defect, wrong.hypercalls, counted)


class Trial(msgspec.Struct, frozen=True):
    """What is done, and the kernel functions that it is about. `boots`: it boots a kernel of its
    own besides, as long as all rows of a kind together."""

    key: Key
    entry: str
    measure: Callable[[Bed], Verdict]
    boots: bool = False


def _booted(bed: Bed) -> Verdict:
    guest = bed.guest
    lines = [record.text for record in KernelLog(guest.kernel, guest.machine.ram).records()]
    text = "\n".join(lines) or guest.console.text
    active = [line for line in text.splitlines() if "Memory Encryption Features active" in line]
    words = active[0].partition("active:")[2].split() if active else []
    is_right = _ANNOUNCED[bed.kind] in words
    detail = f"the kernel announces {' '.join(words) or 'nothing'}"
    return Verdict(RIGHT if is_right else ABSENT, detail, "", len(guest.boot_exits))


def _refused_boot(bed: Bed) -> Verdict:
    """Every conversion of the boot is refused: swiotlb, per-CPU pages, .bss..decrypted."""
    kernel = LOADER.kernel(bed.image)
    handler = BootRecorder(-EINVAL if bed.kind != "tdx" else EINVAL)
    booted = boot_kernel(kernel, linux_config(MEMORY_MIB, BIT, bed.kind), handler)
    try:
        end = describe_end(booted)
        if isinstance(booted.end, Terminated | RunFailed):
            return Verdict(RIGHT, end)
        if not isinstance(booted.end, Trap):
            return Verdict(WRONG, f"shutdown: {end}", _refused_known(bed.kind, "shutdown"))
        lines = [record.text for record in KernelLog(kernel, booted.machine.ram).records()]
        text = "\n".join(lines) or booted.console.text
        said = [line for line in text.splitlines() if "Failed to decrypt" in line]
        if said:
            return Verdict(RIGHT, said[0].strip())
        is_told = any(isinstance(told, HypercallExit) for told in handler.exits)
        words = ("silent",) if is_told else ("silent", "untold")
        known = _refused_known(bed.kind, *words)
        return Verdict(WRONG, f"{', '.join(words)}: {end}, without a word", known)
    finally:
        booted.machine.close()


def _refused_known(kind: str, *words: str) -> str:
    return find_known(Key(kind, _BOOT, "-EINVAL"), words)


def _on_testbed(
    bed: Bed, row: str, do: Callable[[LinuxGuest], CallOutcome], wanted: int | None
) -> Verdict:
    """A call that no program can name, judged as the battery judges: `wanted` is what it returns
    (None: anything, and it may warn)."""
    testbed = bed.testbed
    guest = bed.guest
    testbed.reset()
    before = FrameViews(testbed)
    recorded = testbed.host.private_map().copy()
    guest.instructions = 0
    outcome = do(guest)
    guest.leaf_map.update(guest.machine.ram.table_writes())
    differing = FrameViews(testbed).since(before)
    words = [word for word, count in differing.items() if count]
    if outcome.value is None:
        words.append(op_word(outcome))
    elif wanted is not None and to_signed(outcome.value, 32) != wanted:
        words.append("value")
    if outcome.warnings and wanted is not None:
        words.append("warn")
    if differing["record"] and testbed.host.private_map() == recorded:
        words.append("untold")
    value = "does not return" if outcome.value is None else f"returns {outcome.value}"
    detail = f"{value}; {differing['record']} frames differ from the host's record"
    counted = guest.instructions if bed.is_counted else None
    if not words:
        return Verdict(RIGHT, detail, instructions=counted)
    known = find_known(Key(bed.kind, row), words)
    return Verdict(WRONG, f"{', '.join(sorted(words))}: {detail}", known, instructions=counted)


def _vmalloc(bed: Bed) -> Verdict:
    def convert(guest: LinuxGuest) -> CallOutcome:
        area = guest.calls.must(_VMALLOC, _AREA_PAGES << PAGE_SHIFT)
        return guest.set_memory_decrypted(Gva(area), _AREA_PAGES)

    return _on_testbed(bed, "vmalloc", convert, 0)


def _bss(bed: Bed) -> Verdict:
    """What the direct map of .bss..decrypted is differs from the first: it keeps the C-bit. The
    kernel calls it later than here: from 7.3 on it says that these pages cannot be freed yet."""
    name = "mem_encrypt_free_decrypted_mem"
    return _on_testbed(bed, "bss", lambda guest: guest.call(name), None)


def _efi(bed: Bed) -> Verdict:
    guest = bed.guest
    written = {value: efi_opt_in(guest, value).migration_control for value in Variable}
    opted_in = [value.value for value, msrs in written.items() if msrs == (1,)]
    detail = f"opts in by {', '.join(opted_in) or 'nothing'}"
    return Verdict(RIGHT if opted_in == [Variable.ONE.value] else WRONG, detail)


def _kexec(bed: Bed) -> Verdict:
    guest = bed.guest
    report = kexec(guest, guest.kernel, load_host("map-gpa-range"))
    detail = f"{report.stale_pages} pages stale of {report.running.shared} shared before"
    if not report.stale and not report.missing:
        return Verdict(RIGHT, detail, "", report.hypercalls)
    words = ("record",) if report.hypercalls else ("record", "untold")
    known = find_known(Key(bed.kind, "kexec"), words)
    return Verdict(WRONG, f"{', '.join(words)}: {detail}", known, report.hypercalls)


def _defect(bed: Bed, name: str) -> Verdict:
    [defect] = (one for one in DEFECTS if one.name == name)
    verdict = measure(bed.guest, defect)
    shown = name if verdict.outcome == SEEN else ""
    return msgspec.structs.replace(verdict, defect=shown)


def _all() -> Iterator[Trial]:
    for kind in KINDS:
        yield Trial(Key(kind, _BOOT), f"boot to {STOP_AT}", _booted)
        yield Trial(Key(kind, _BOOT, "-EINVAL"), "boot, all refused", _refused_boot, boots=True)
        for row in ROWS:
            if kind in row.kinds:
                for answer in ("", *(ANSWERS if row.refused else ())):
                    key = Key(kind, row.name, answer)
                    run = partial(_run_row, row=row, answer=answer)
                    yield Trial(key, row.entry, run)
        yield Trial(Key(kind, "vmalloc"), "set_memory_decrypted of vmalloc()", _vmalloc)
        yield Trial(Key(kind, "bss"), "mem_encrypt_free_decrypted_mem", _bss)
        if kind in {"sev", "es"}:
            yield Trial(Key(kind, "kexec"), "kexec to itself", _kexec, boots=True)
            yield Trial(Key(kind, "efi"), "setup_efi_kvm_sev_migration", _efi)
    for defect in DEFECTS:
        yield Trial(
            Key("sev", defect.name),
            defect.sentence,
            partial(_defect, name=defect.name),
            boots=defect.name == "kexec-stale",
        )


def _run_row(bed: Bed, row: BatteryRow, answer: str) -> Verdict:
    return bed.run(row, answer)


EXPERIMENTS: Final = {experiment.key: experiment for experiment in _all()}
"""Every experiment of `kernel test` by its name."""


def _verb(bed: Bed, verb: Verb) -> Verdict:
    return verb.measure(bed.image)


_MEASURABLE: Final = {
    **EXPERIMENTS,
    **{
        verb.key: Trial(verb.key, f"kernel {verb.name}", partial(_verb, verb=verb), boots=True)
        for verb in VERBS
        if verb.key not in EXPERIMENTS
    },
}
"""What a cell can be measured by: the battery, and verbs that are not in it."""


def verdict_of(cell: Cell) -> str:
    """What a cell comes to: right, known defect, wrong, absent."""
    if cell.defect:
        return KNOWN_DEFECT
    if cell.outcome in {WRONG, FAILED}:
        return WRONG
    return ABSENT if cell.outcome == ABSENT else RIGHT


def choose(only: Sequence[str], kinds: Sequence[str]) -> list[Key]:
    """The experiments of rows (ROW or ROW/ANSWER) and kinds; all where none are given. Raises
    `InputError` for a name that no experiment has."""
    names = {key.row for key in EXPERIMENTS} | {str(key) for key in EXPERIMENTS}
    for name in only:
        if name not in names:
            raise InputError(f"--only {name}: no such row; {nearest(name, sorted(names))}")
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"--kind {kind}: take one of {', '.join(KINDS)}")
    return [
        key
        for key in EXPERIMENTS
        if (not kinds or key.kind in kinds) and (not only or key.row in only or str(key) in only)
    ]


class KernelTask(msgspec.Struct, frozen=True):
    """A kernel to measure: its name in cells and its image; `is_counted` as in `Bed`."""

    name: str
    image: Path
    is_counted: bool = False


_beds: dict[tuple[Path, str, bool], Bed] = {}
"""The guests that a process holds, the last one only: each takes some hundred MiB."""


def _bed(task: KernelTask, kind: str) -> Bed:
    key = (task.image, kind, task.is_counted)
    if key not in _beds:
        _beds.clear()
        _beds[key] = Bed(task.image, kind, task.is_counted)
    return _beds[key]


def measure_cells(keys: Sequence[Key], task: KernelTask) -> Iterator[Cell]:
    """The cells of `keys` in their order."""
    version = LOADER.kernel(task.image).version
    for key in keys:
        verdict = judge(partial(_measure, task, key))
        yield Cell(
            kernel=task.name,
            version=version,
            kind=key.kind,
            row=key.row,
            answer=key.answer,
            outcome=verdict.outcome,
            detail=verdict.detail,
            defect=verdict.defect,
            hypercalls=verdict.hypercalls,
            instructions=verdict.instructions,
        )


def _measure(task: KernelTask, key: Key) -> Verdict:
    lacks = lacking(LOADER.kernel(task.image), key.kind)
    if lacks:
        return Verdict(ABSENT, f"needs {', '.join(lacks)}")
    try:
        return _MEASURABLE[key].measure(_bed(task, key.kind))
    except GuestemuError:
        raise
    except Exception as error:
        _beds.clear()
        what = f"{type(error).__name__}: {error}"
        return Verdict(FAILED, f"internal error: {what}; please report it")


def measure_all(
    task: KernelTask, keys: Sequence[Key], store: CellStore, jobs: int
) -> Iterator[Cell]:
    """The cells of `keys` as they come, from up to `jobs` processes: what `store` has from there,
    and what it has not is added to it. An experiment whose process died is failed.

    Raises `InputError` for an image that is not a kernel.
    """
    missing = []
    for key in keys:
        cell = store.find(key, task.is_counted)
        if cell is None:
            missing.append(key)
        else:
            yield msgspec.structs.replace(cell, kernel=task.name)
    batches = _batches(missing)
    measured = partial(measure_cells, task=task)
    if jobs > 1 and len(batches) > 1:
        left = dict.fromkeys(missing)
        for key, cell in run_batches(measured, batches, jobs):
            del left[key]
            store.add(cell)
            yield cell
        missing = list(left)
        measured = partial(_died, task=task)
        batches = [missing]
    for batch in batches:
        for cell in measured(batch):
            store.add(cell)
            yield cell


def _batches(keys: Sequence[Key]) -> list[list[Key]]:
    """Who is measured by one process: a kind's rows, which share its boot, first; then, one by one,
    what boots a kernel of its own. Those find the kind's guest in the cache, if there is one."""
    shared: dict[str, list[Key]] = {}
    alone = []
    for key in keys:
        if _MEASURABLE[key].boots and not switched_off():
            alone.append([key])
        else:
            shared.setdefault(key.kind, []).append(key)
    return [*shared.values(), *alone]


def _died(keys: Sequence[Key], task: KernelTask) -> Iterator[Cell]:
    version = LOADER.kernel(task.image).version
    for key in keys:
        yield Cell(
            kernel=task.name,
            version=version,
            kind=key.kind,
            row=key.row,
            answer=key.answer,
            outcome=FAILED,
            detail="the process that measured it died",
        )
