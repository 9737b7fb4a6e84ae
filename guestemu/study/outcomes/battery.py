# SPDX-License-Identifier: GPL-2.0-or-later
"""Every way in which a Linux guest converts pages, each as a short program, and what is right.

A row is run as each guest kind, over the reference host. Right is: the call does what it says, and
afterwards host, page tables and page states (RMP, Secure EPT) agree on every frame; where the host
refuses or memory is short, the caller is told, or the guest ends. The checks of the product judge
each operation; what they leave open, a call that failed, is judged here by comparing all frames
with those before. `Wrong.words` are the names of checks, of ends (trace/words.py), and:

| word | meaning |
| --- | --- |
| value | the call returned something else than it should |
| warn | the kernel warned without a reason |
| record | host and page tables differ on frames on which they agreed |
| state | page states and page tables do |
| silent | the host refused, and the caller reads success |
| untold | host and page tables differ, and there was no hypercall |
"""

from __future__ import annotations

from typing import Final

import msgspec
from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.errno import EAGAIN, EINVAL, ENOMEM
from guestemu.guest.base import GuestOops
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.machine.rmp import SHARED as RMP_SHARED
from guestemu.machine.sept import SHARED as SEPT_SHARED
from guestemu.program.ops import OpKind
from guestemu.program.program import Program
from guestemu.program.text import parse_text
from guestemu.report.trace.run import Run, run_in
from guestemu.report.trace.words import OK, op_word
from guestemu.runner.testbed import Testbed

KINDS: Final = ("sev", "es", "snp", "tdx")
AMD: Final = ("sev", "es", "snp")
ANSWERS: Final = {
    "EINVAL": EINVAL,
    "-EINVAL": -EINVAL,
    "EAGAIN": EAGAIN,
    "garbage": 0xDEAD_BEEF_0000_0000,
}
"""What user space answers a refused conversion with, by the word in a cell."""

LONG_BUDGET: Final = 4_000_000
"""A WARN prints a stack trace, which takes a million blocks."""
SHORT_BUDGET: Final = 300_000
"""For calls that are expected to run for ever."""

_STATE_MASK: Final = 3
_A_WORD: Final = int.from_bytes(b"\x5a" * 8, "little")
_TOLD: Final = frozenset({"terminated", "run-failed"})
"""Ends of a guest whose host refused it something: it asked for its end, or cannot be entered."""
_ADDRESS: Final = 1
"""In place of a value: any address."""
_ERROR: Final = -1
"""In place of a value: any error."""


class BatteryRow(msgspec.Struct, frozen=True, kw_only=True):
    """One program. `entry` is the kernel function that it is about, `ops` its lines; of them
    "ANSWER" is where the host is told to refuse, if it is to. `value` is what the last one gives.

    `refused`: the row is also run with every answer. `may_warn`: the kernel should.
    `budget` bounds each call, in basic blocks. `needs`: a symbol without which the row is absent.
    """

    name: str
    entry: str
    ops: tuple[str, ...]
    kinds: tuple[str, ...] = KINDS
    value: int = 0
    refused: bool = False
    may_warn: bool = False
    budget: int = LONG_BUDGET
    needs: str = ""


class Wrong(msgspec.Struct, frozen=True):
    """What is wrong with a run, none if `words` is empty, and a line about it."""

    words: tuple[str, ...]
    detail: str
    hypercalls: int


_BACK: Final = "set_memory_decrypted D[8] pages=4"
_NO_POOL: Final = ("dma_alloc slot=1 size=4096", "dma_free slot=1")
"""The first allocation makes the atomic pools: before the answer, so that they are not refused."""

ROWS: Final = (
    BatteryRow(
        name="decrypt",
        entry="set_memory_decrypted",
        ops=("ANSWER", "set_memory_decrypted D[8] pages=4"),
        refused=True,
    ),
    BatteryRow(
        name="encrypt",
        entry="set_memory_encrypted",
        ops=(_BACK, "ANSWER", "set_memory_encrypted D[8] pages=4"),
        refused=True,
    ),
    BatteryRow(name="decrypt-again", entry="set_memory_decrypted", ops=(_BACK, _BACK)),
    BatteryRow(
        name="encrypt-again",
        entry="set_memory_encrypted",
        ops=("set_memory_encrypted D[8] pages=1",),
    ),
    BatteryRow(
        name="no-pages",
        entry="set_memory_decrypted",
        ops=("set_memory_decrypted D[8] pages=0",),
    ),
    BatteryRow(
        name="misaligned",
        entry="set_memory_decrypted",
        ops=("set_memory_decrypted D[8] pages=1 offset=0x800",),
        may_warn=True,
    ),
    BatteryRow(
        name="split",
        entry="set_memory_decrypted",
        ops=("set_memory_decrypted L[3] pages=1", "set_memory_encrypted L[3] pages=1"),
    ),
    BatteryRow(
        name="leaf",
        entry="set_memory_decrypted",
        ops=("ANSWER", "set_memory_decrypted L[0] pages=512"),
        refused=True,
    ),
    BatteryRow(
        name="leaf-back",
        entry="set_memory_encrypted",
        ops=("set_memory_decrypted L[0] pages=512", "set_memory_encrypted L[0] pages=512"),
    ),
    BatteryRow(
        name="two-leaves",
        entry="set_memory_decrypted",
        ops=("set_memory_decrypted L[511] pages=2", "set_memory_encrypted L[511] pages=2"),
    ),
    BatteryRow(
        name="in-shared-leaf",
        entry="set_memory_decrypted",
        ops=("set_memory_decrypted L[0] pages=512", "set_memory_decrypted L[3] pages=1"),
    ),
    BatteryRow(
        name="part-back",
        entry="set_memory_encrypted",
        ops=("set_memory_decrypted L[0] pages=512", "set_memory_encrypted L[3] pages=1"),
    ),
    BatteryRow(
        name="alias",
        entry="set_memory_decrypted of a vmap() area",
        ops=("set_memory_decrypted V[2] pages=2",),
    ),
    BatteryRow(
        name="content",
        entry="set_memory_decrypted, then stores",
        ops=(
            "write D[8] value=0x33",
            "set_memory_decrypted D[8] pages=1",
            "write D[8] value=0x44",
            "set_memory_encrypted D[8] pages=1",
            "write D[8] value=0x5a",
            "read D[8]",
        ),
        value=_A_WORD,
    ),
    BatteryRow(
        name="early-decrypt",
        entry="early_set_memory_decrypted",
        ops=("ANSWER", "early_set_memory_decrypted D[8] size=4096"),
        kinds=AMD,
        refused=True,
    ),
    BatteryRow(
        name="early-encrypt",
        entry="early_set_memory_encrypted",
        ops=(
            "early_set_memory_decrypted D[8] size=4096",
            "ANSWER",
            "early_set_memory_encrypted D[8] size=4096",
        ),
        kinds=AMD,
        refused=True,
    ),
    BatteryRow(
        name="early-end-of-page",
        entry="early_set_memory_decrypted",
        ops=("early_set_memory_decrypted D[8] size=2048 offset=0x800",),
        kinds=AMD,
    ),
    BatteryRow(
        name="early-two-pages",
        entry="early_set_memory_decrypted",
        ops=("early_set_memory_decrypted D[8] size=4096 offset=0x800",),
        kinds=AMD,
    ),
    BatteryRow(
        name="early-split",
        entry="early_set_memory_decrypted",
        ops=("early_set_memory_decrypted L[3] size=8192",),
        kinds=AMD,
    ),
    BatteryRow(
        name="early-content",
        entry="early_set_memory_decrypted keeps the bytes",
        ops=(
            "write D[8] value=0x5a",
            "early_set_memory_decrypted D[8] size=4096",
            "read D[8]",
        ),
        kinds=AMD,
        value=_A_WORD,
    ),
    BatteryRow(
        name="dma",
        entry="dma_alloc_attrs",
        ops=(*_NO_POOL, "ANSWER", "dma_alloc slot=0 size=9000"),
        value=_ADDRESS,
        refused=True,
    ),
    BatteryRow(
        name="dma-free",
        entry="dma_free_attrs",
        ops=("dma_alloc slot=0 size=9000", "ANSWER", "dma_free slot=0"),
        refused=True,
    ),
    BatteryRow(
        name="dma-atomic",
        entry="dma_alloc_attrs from the atomic pool",
        ops=("ANSWER", "dma_alloc slot=0 size=4096 atomic=1"),
        value=_ADDRESS,
        refused=True,
    ),
    BatteryRow(
        name="dma-atomic-free",
        entry="dma_free_attrs into the atomic pool",
        ops=("dma_alloc slot=0 size=4096 atomic=1", "dma_free slot=0"),
    ),
    BatteryRow(
        name="dma-pages",
        entry="dma_alloc_pages",
        ops=(*_NO_POOL, "ANSWER", "dma_alloc_pages slot=0 size=9000"),
        value=_ADDRESS,
        refused=True,
    ),
    BatteryRow(
        name="dma-pages-free",
        entry="dma_free_pages",
        ops=("dma_alloc_pages slot=0 size=9000", "dma_free_pages slot=0"),
    ),
    BatteryRow(
        name="dma-pages-atomic",
        entry="dma_free_pages of the atomic pool's",
        ops=("dma_alloc_pages slot=0 size=4096 atomic=1", "dma_free_pages slot=0"),
    ),
    BatteryRow(
        name="fail-split",
        entry="set_memory_decrypted without memory for a split",
        ops=("fail_split after=0", "set_memory_decrypted L[3] pages=1"),
        value=-ENOMEM,
    ),
    BatteryRow(
        name="fail-second-split",
        entry="set_memory_decrypted without memory for its second split",
        ops=("fail_split after=1", "set_memory_decrypted L[511] pages=2"),
        value=-ENOMEM,
    ),
    BatteryRow(
        name="hole",
        entry="set_memory_decrypted over a hole",
        ops=("unmap D[9]", "set_memory_decrypted D[8] pages=2"),
        value=_ERROR,
        budget=SHORT_BUDGET,
    ),
    BatteryRow(
        name="hole-first",
        entry="set_memory_decrypted from a hole on",
        ops=("unmap D[8]", "set_memory_decrypted D[8] pages=2"),
        value=_ERROR,
        budget=SHORT_BUDGET,
    ),
    BatteryRow(name="cpu-down", entry="kvm_guest_cpu_offline", ops=("cpu_offline",)),
    BatteryRow(
        name="stopped",
        entry="set_memory_enc_stop_conversion",
        ops=("stop_conversion", "set_memory_decrypted D[8] pages=1"),
        value=_ERROR,
        needs="set_memory_enc_stop_conversion",
    ),
)
"""Every row, in the order of the table."""


def program_of(row: BatteryRow, answer: str) -> Program:
    """The row's program, over a host that gives `answer` ("": agrees)."""
    refusal = [f"answer value={ANSWERS[answer]}"] if answer else []
    lines = [line for op in row.ops for line in (refusal if op == "ANSWER" else [op])]
    return parse_text("\n".join(["guestemu-program 1", "guest linux:", "---", *lines]), row.name)


class FrameViews:
    """On which frames page tables and host disagree (`record`), and on which page tables and page
    states do (`state`), now."""

    def __init__(self, testbed: Testbed) -> None:
        guest = testbed.guest
        shared = ~guest.leaf_map.private
        self.record = shared ^ ~testbed.host.private_map()
        self.state = bitarray(len(shared), endian="little")
        self.state.setall(0)
        if isinstance(guest, LinuxGuest) and guest.rmp is not None:
            self.state = shared ^ _states(guest.rmp.dump(), len(shared), RMP_SHARED)
        elif guest.td is not None:
            self.state = shared ^ _states(guest.td.sept.dump(), len(shared), SEPT_SHARED)

    def since(self, before: FrameViews, frames: slice = slice(None)) -> dict[str, int]:
        """How many of `frames` disagree now and did not `before`, by word."""
        return {
            "record": (self.record & ~before.record)[frames].count(),
            "state": (self.state & ~before.state)[frames].count(),
        }


def _states(states: bytes, frames: int, shared: int) -> bitarray:
    """Where a dump of page states has `shared`."""
    is_shared = bytes((state & _STATE_MASK) == shared for state in range(256))
    found = bitarray(endian="little")
    found.pack(states[:frames].translate(is_shared))
    return found


def run_row(testbed: Testbed, row: BatteryRow, answer: str) -> Wrong:
    """Runs a row and judges it. Raises `InputError` for what a kernel lacks."""
    guest = testbed.guest
    if row.needs and isinstance(guest, LinuxGuest):
        guest.kernel.address(row.needs)
    program = program_of(row, answer)
    testbed.reset()
    before = FrameViews(testbed)
    run = run_in(testbed, program)
    wrong = _judge(row, answer, run, (before, FrameViews(testbed)))
    end = run.outcome.results[-1].outcome.end if run.outcome.results else None
    if isinstance(end, GuestOops):
        where = testbed.guest.location(end.rip)
        return msgspec.structs.replace(wrong, detail=f"{wrong.detail} in {where}")
    return wrong


def _judge(row: BatteryRow, answer: str, run: Run, frames: tuple[FrameViews, FrameViews]) -> Wrong:
    results = run.outcome.results
    words = {violation.check for violation in run.outcome.violations}
    ends = [op_word(result.outcome) for result in results]
    values = [result.outcome.value for result in results]
    last = values[-1] if values else None
    is_told = bool(answer) and (ends[-1] in _TOLD or (last is not None and last < 0))
    words |= {end for end in ends if end != OK and not (is_told and end in _TOLD)}
    if run.stop is not None:
        words.add("vm-stopped")
    if not is_told and last is not None:
        words |= _value_words(row.value, last)
    if not (answer or row.may_warn) and any(result.outcome.warnings for result in results):
        words.add("warn")
    hypercalls = sum(told.is_hypercall for result in results for told in result.exits)
    before, after = frames
    differing = after.since(before, _judged(row, answer, last))
    if last is not None and not is_told:
        words |= {name for name, count in differing.items() if count}
        if answer and differing["record"]:
            words.add("silent")
        if (differing["record"] or "status" in words) and not hypercalls:
            words.add("untold")
    return Wrong(tuple(sorted(words)), _tell(run, ends, differing), hypercalls)


def _judged(row: BatteryRow, answer: str, value: int | None) -> slice:
    """The frames on which views have to agree: all, but of a buffer that was allocated in spite of
    a refusal its own. The page that was refused may be another one, which is not handed out."""
    if not answer or row.value != _ADDRESS or value is None or value <= 0:
        return slice(None)
    size = int(row.ops[-1].partition("size=")[2].partition(" ")[0])
    return slice(value >> PAGE_SHIFT, (value + size - 1 >> PAGE_SHIFT) + 1)


def _is_wanted(wanted: int, value: int) -> bool:
    if wanted == _ADDRESS:
        return value > 0
    return value < 0 if wanted == _ERROR else value == wanted


def _value_words(wanted: int, value: int) -> set[str]:
    """What is wrong with a value."""
    if _is_wanted(wanted, value):
        return set()
    is_first_right = wanted == _A_WORD and not (value ^ wanted) & 0xFF
    return {"value", "one-byte"} if is_first_right else {"value"}


def _tell(run: Run, ends: list[str], differing: dict[str, int]) -> str:
    """What the last operation returned, and where views differ."""
    parts = []
    if run.outcome.results:
        last = run.outcome.results[-1]
        value = last.outcome.value
        if value is None:
            parts.append(f"does not return: {ends[-1]}")
        elif last.op.kind is OpKind.READ:
            parts.append(f"reads {value:#x}")
        else:
            parts.append(f"returns {value if abs(value) < 1 << 12 else hex(value)}")
        parts += [f"WARN {text.partition(':')[0]}" for text in last.outcome.warnings[:1]]
    if differing["record"]:
        parts.append(f"host and page tables differ on {differing['record']} frames")
    if differing["state"]:
        parts.append(f"page states and page tables differ on {differing['state']} frames")
    parts += [violation.message for violation in run.outcome.violations[:1]]
    return "; ".join(parts)
