# SPDX-License-Identifier: GPL-2.0-or-later
"""What TDX guests of real kernels show, one function for each finding.

Each runs on one kernel image and says whether the kernel behaves so (`holds`), with the lines that
show it. Page and host states follow the model of T11; value, WARN, entries and calls are the
kernel's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, Gva, gpa_text
from guestemu.abi.cpuid import KVM_FEATURE_MIGRATION_CONTROL
from guestemu.abi.errors import InputError
from guestemu.abi.hypercalls import KVM_EINVAL
from guestemu.abi.regions import Region
from guestemu.abi.tdx import VMCALL_INVALID_OPERAND
from guestemu.abi.x86 import PTE_ADDRESS_MASK
from guestemu.events.tdx import MapGpaCall
from guestemu.guest.linux.boot import TDX_KVM_FEATURES, boot_kernel, describe_end
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.load import LOADER, linux_config
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.guest.td import Td
from guestemu.machine.exits import Halt, Trap
from guestemu.machine.paging import walk
from guestemu.study.outcomes.answers import MapGpaReply, ScriptedKvm
from guestemu.study.outcomes.cells import Key
from guestemu.study.outcomes.store import CellStore

MEMORY: Final = 128
BIT: Final = 39
BUDGET: Final = 50_000_000
_VMALLOC: Final = ("vmalloc_noprof", "vmalloc")
_AREA_PAGES: Final = 3
_CONSOLE: Final = ("PANIC", "RIP:", "Failed to decrypt", "Memory Encryption Features")


class FindingResult(msgspec.Struct, frozen=True, kw_only=True):
    """One finding on one kernel. `holds`: the kernel behaves as `title` says."""

    name: str
    title: str
    facts: str
    kernel: str
    holds: bool
    lines: tuple[str, ...]


class TdFinding(msgspec.Struct, frozen=True):
    """A finding by name; `show` returns whether it holds, and the lines that show it."""

    name: str
    title: str
    facts: str
    show: Callable[[Path], tuple[bool, list[str]]]


def run_finding(finding: TdFinding, image: Path) -> FindingResult:
    """Shows `finding` on the kernel in `image`, or what its store has of it."""
    kernel = LOADER.kernel(image)
    store = CellStore(kernel.digest, kernel.version)
    key = Key("tdx", f"outcomes findings {finding.name}")
    result = store.recall(key, FindingResult)
    if result is None:
        holds, lines = finding.show(image)
        result = FindingResult(
            name=finding.name,
            title=finding.title,
            facts=finding.facts,
            kernel=kernel.version,
            holds=holds,
            lines=tuple(lines),
        )
        store.keep(key, kernel.version, "holds" if holds else "does not hold", result)
    return result


@contextmanager
def _guest(image: Path) -> Iterator[tuple[LinuxGuest, Td]]:
    """The kernel as a TD, booted, in its first state."""
    guest = LOADER.guest(image, linux_config(MEMORY, BIT, "tdx"), BUDGET)
    td = guest.td
    if td is None:
        raise InputError(f"{guest.name}: not a TD")
    td.accept_error = None
    try:
        yield guest, td
    finally:
        guest.reset()


def _boot(image: Path, handler: BootRecorder, features: int) -> tuple[bool, str, str]:
    """Whether a boot reached its end, how it ended, and its console."""
    kernel = LOADER.kernel(image)
    config = linux_config(MEMORY, BIT, "tdx")
    booted = boot_kernel(kernel, config, handler, kvm_features=features)
    end = describe_end(booted)
    if isinstance(booted.end, Halt):
        end = f"halted in {kernel.symbol_at(booted.rip)}"
    text = booted.console.text
    booted.machine.close()
    return isinstance(booted.end, Trap), end, text


def _said(text: str) -> list[str]:
    """The lines of the console that matter."""
    lines = (line.partition("] ")[2] or line for line in text.splitlines())
    return [line.strip() for line in lines if any(word in line for word in _CONSOLE)]


def migration_control(image: Path) -> tuple[bool, list[str]]:
    """Bit 17 of CPUID 0x40000001: kvm_init_platform() executes VMMCALL, which is #UD (T32)."""
    lines = []
    reached, end, text = _boot(image, BootRecorder(), TDX_KVM_FEATURES)
    lines.append(f"bit 17 clear: {end}")
    features = TDX_KVM_FEATURES | 1 << KVM_FEATURE_MIGRATION_CONTROL
    reached_with, end, text = _boot(image, BootRecorder(), features)
    lines.append(f"bit 17 set: {end}")
    said = _said(text)
    lines += said[-2:]
    return reached and not reached_with and any("exception 0x06" in line for line in said), lines


def refused_swiotlb(image: Path) -> tuple[bool, list[str]]:
    """The boot's swiotlb conversion is refused; does the kernel say that it goes without (T23)?"""
    reached, end, text = _boot(image, BootRecorder(KVM_EINVAL), TDX_KVM_FEATURES)
    said = _said(text)
    is_noticed = any("Failed to decrypt" in line for line in said)
    return reached and not is_noticed, [f"every MapGPA refused: {end}", *said]


def refused_decryption(image: Path) -> tuple[bool, list[str]]:
    """A decryption that the host refused cannot be undone by set_memory_encrypted() (T20)."""
    with _guest(image) as (guest, td):
        gva, gfn = guest.gva(Region.D, 8), guest.gpa(Region.D, 8) >> PAGE_SHIFT
        hooks = guest.machine.hooks
        hooks.handler = ScriptedKvm((MapGpaReply(VMCALL_INVALID_OPERAND, pages=0),))
        values = [guest.set_memory_decrypted(gva, 1).value]
        hooks.handler = ScriptedKvm()
        values.append(guest.set_memory_encrypted(gva, 1).value)
        state = td.sept.describe(gfn)
        values.append(guest.set_memory_decrypted(gva, 1).value)
        values.append(guest.set_memory_encrypted(gva, 1).value)
        lines = [
            f"set_memory_decrypted, refused: {values[0]}",
            f"set_memory_encrypted, host agrees: {values[1]}; the page is {state}",
            f"set_memory_decrypted, host agrees: {values[2]}",
            f"set_memory_encrypted, host agrees: {values[3]}",
        ]
        return values == [-5, -5, 0, 0], lines


def vmalloc_range(image: Path) -> tuple[bool, list[str]]:
    """A vmalloc() area is reported by a wrong address; its direct map stays shared (T21)."""
    with _guest(image) as (guest, td):
        machine = guest.machine
        machine.hooks.handler = ScriptedKvm()
        area = guest.calls.must(_VMALLOC, _AREA_PAGES << PAGE_SHIFT)
        outcome = guest.set_memory_decrypted(Gva(area), _AREA_PAGES)
        frames = []
        for page in range(_AREA_PAGES):
            leaf = walk(machine.ram, machine.pte_cbit, guest.root, Gva(area + (page << PAGE_SHIFT)))
            frames.append((leaf.entry & PTE_ADDRESS_MASK & ~machine.pte_cbit) >> PAGE_SHIFT)
        guest.leaf_map.update(machine.ram.table_writes())
        shared = [frame for frame in frames if not guest.leaf_map.private[frame]]
        states = {td.sept.describe(frame) for frame in frames}
        (call,) = (event for event in td.events if isinstance(event, MapGpaCall))
        lines = [
            f"set_memory_decrypted({area:#x}, {_AREA_PAGES}) = {outcome.value}",
            f"MapGPA({call.gpa:#x}, {call.size >> PAGE_SHIFT} pages) = {call.status:#x}; "
            f"the area's first page is at {gpa_text(frames[0])}",
            f"{len(shared)} of {_AREA_PAGES} pages shared in the direct map; "
            f"at the host {', '.join(sorted(states))}",
        ]
        is_wrong = call.gpa >> PAGE_SHIFT != frames[0] and not call.gpa & PAGE_MASK
        return outcome.value == -5 and is_wrong and len(shared) == _AREA_PAGES, lines


def cut_conversion(image: Path) -> tuple[bool, list[str]]:
    """A VMM that goes on after KVM_RUN failed, or leaves between two chunks, makes the guest read
    success for the rest of the range (T29)."""
    with _guest(image) as (guest, td):
        gva, gfn = guest.gva(Region.L, 0), guest.gpa(Region.L, 0) >> PAGE_SHIFT
        guest.machine.hooks.handler = ScriptedKvm((MapGpaReply(0, 0, 512),))
        outcome = guest.set_memory_decrypted(gva, 1024)
        guest.leaf_map.update(guest.machine.ram.table_writes())
        shared = 1024 - guest.leaf_map.private[gfn : gfn + 1024].count()
        at_host = sum(gfn <= frame < gfn + 1024 for frame in td.sept.shared())
        guest.memset(Gva(gva + (512 << PAGE_SHIFT)), 0x5A, 8)
        after = sum(gfn <= frame < gfn + 1024 for frame in td.sept.shared())
        lines = [
            f"set_memory_decrypted of 4 MiB = {outcome.value}",
            f"{shared} pages shared in the page tables, {at_host} at the host",
            f"a store to the rest: {after - at_host} private page converted by the VMM, "
            "its content lost",
        ]
        return (outcome.value, shared, at_host, after) == (0, 1024, 512, 513), lines


FINDINGS: Final = (
    TdFinding(
        "vmmcall",
        "MIGRATION_CONTROL advertised to a TD makes it execute VMMCALL, which is #UD",
        "T32",
        migration_control,
    ),
    TdFinding(
        "refused-decryption",
        "a refused decryption cannot be undone",
        "T20",
        refused_decryption,
    ),
    TdFinding(
        "vmalloc",
        "a vmalloc range is reported by a wrong address and leaves its direct map shared",
        "T21",
        vmalloc_range,
    ),
    TdFinding(
        "swiotlb",
        "a refused conversion of swiotlb leaves it in use",
        "T23",
        refused_swiotlb,
    ),
    TdFinding(
        "cut",
        "a conversion that KVM cut in pieces is reported as whole",
        "T29",
        cut_conversion,
    ),
)
