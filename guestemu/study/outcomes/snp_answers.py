# SPDX-License-Identifier: GPL-2.0-or-later
"""What a real SNP kernel does with each answer of user space to a page-state change (N20).

The answer is `hypercall.ret` of the exit that KVM makes of the request; KVM up to 6.18 turns every
one but 0 into the protocol's error, from 7.2 on one that is not documented makes KVM_RUN fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.errno import EAGAIN, EINVAL
from guestemu.abi.errors import InputError
from guestemu.abi.regions import Region
from guestemu.guest.base import CallOutcome
from guestemu.guest.linux.boot import STOP_AT, boot_kernel, describe_end
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.load import LOADER, linux_config
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.machine.exits import Exit, MapGpaRange, RunFailed, Shutdown, Terminated, Trap
from guestemu.study.outcomes.cells import Key
from guestemu.study.outcomes.store import CellStore

ANSWERS: Final = {
    "0": 0,
    "EAGAIN": EAGAIN,
    "EINVAL": EINVAL,
    "1": 1,
    "-22": -EINVAL & U64_MASK,
    "garbage": 0xDEAD_BEEF_0000_0000,
}
"""The answers by the word in the table."""

KVMS: Final = ("6.12", "7.2")
"""KVMs that differ: an answer that is not documented."""

WAYS: Final = {
    "boot-msr": "MSR protocol, first request of the boot",
    "msr": "MSR protocol, after the boot",
    "buffer": "GHCB buffer, set_memory_decrypted()",
}
"""How a guest asks."""

_MEMORY: Final = 128
_BIT: Final = 39
_BUDGET: Final = 4_000_000
_EARLY: Final = "early_snp_set_memory_shared"


class SnpAnswer(msgspec.Struct, frozen=True):
    """One cell: what `kernel` did when its first request by `way` was answered `answer` on a host
    with KVM `kvm`."""

    kernel: str
    way: str
    answer: str
    kvm: str
    did: str


class AnsweringHost(BootRecorder):
    """Answers the first request of one origin with `value`, all others with 0."""

    def __init__(self, origin: str, value: int) -> None:
        super().__init__()
        self._origin = origin
        self._value = value
        self.asked = 0

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """See `ExitHandler`."""
        super().map_gpa_range(call)
        if call.origin != self._origin:
            return 0
        self.asked += 1
        return self._value if self.asked == 1 else 0


def count_of(images: int) -> int:
    """Cells of a table over this many kernels."""
    return images * len(WAYS) * len(ANSWERS) * len(KVMS)


def run_answers(image: Path, done: Callable[[], None] | None = None) -> Iterator[SnpAnswer]:
    """Every cell of one kernel, measured or from its store; `done` is called after each. Raises
    `InputError` for a kernel that is no SNP guest."""
    kernel = LOADER.kernel(image)
    store = CellStore(kernel.digest, kernel.version)
    measure: Callable[[str, int, str], str] | None = None
    for way, (word, value), kvm in product(WAYS, ANSWERS.items(), KVMS):
        key = Key("snp", f"outcomes snp {way} {kvm}", word)
        found = store.recall(key, SnpAnswer)
        if found is None:
            measure = measure or _measure_on(image)
            found = SnpAnswer(kernel.version, way, word, kvm, measure(way, value, kvm))
            store.keep(key, kernel.version, found.did, found)
        yield found
        if done is not None:
            done()
    if measure is not None:
        guest = _guest(image)
        guest.use_kvm("")
        guest.reset()


def _guest(image: Path) -> LinuxGuest:
    return LOADER.guest(image, linux_config(_MEMORY, _BIT, "snp"), _BUDGET)


def _measure_on(image: Path) -> Callable[[str, int, str], str]:
    """A function: what the kernel in `image` does, by way, answer and KVM."""
    kernel = LOADER.kernel(image)
    config = linux_config(_MEMORY, _BIT, "snp")
    guest = _guest(image)
    if guest.platform.sev is None:
        raise InputError(f"{image}: no SNP guest")
    page = guest.regions[Region.D]

    def cell(way: str, value: int, kvm: str) -> str:
        host = AnsweringHost("psc-buffer" if way == "buffer" else "psc-msr", value)
        if way == "boot-msr":
            booted = boot_kernel(kernel, config, host, kvm=kvm)
            if isinstance(booted.end, Trap):
                return describe_end(booted).replace(f"reached {STOP_AT}", "boots")
            return _end(booted.end)
        guest.reset()
        guest.use_kvm(kvm)
        guest.machine.hooks.handler = host
        if way == "buffer":
            return _outcome(guest.set_memory_decrypted(page.gva, 1))
        if _EARLY not in kernel.symbols:
            return "no such function"
        outcome = guest.call(_EARLY, page.gva, page.gpa, 1)
        return "goes on" if outcome.value is not None else _outcome(outcome)

    return cell


def _outcome(outcome: CallOutcome) -> str:
    if outcome.value is not None:
        return f"returns {outcome.value}"
    return _end(outcome.end)


def _end(end: object) -> str:
    if isinstance(end, Terminated):
        return f"terminates {end.reason_set}/{end.reason_code}"
    if isinstance(end, RunFailed):
        return "stands still (KVM_RUN: -EINVAL)"
    if isinstance(end, Shutdown):
        return "triple fault"
    return _other(end)


def _other(end: object) -> str:
    return type(end).__name__ if isinstance(end, Exit) else str(end)


def snp_page(cells: list[SnpAnswer]) -> str:
    """docs/snp.md from the cells of all kernels."""
    kernels = list(dict.fromkeys(cell.kernel for cell in cells))
    found = {(cell.kernel, cell.way, cell.answer, cell.kvm): cell.did for cell in cells}
    lines = [_HEAD]
    for way, title in WAYS.items():
        lines += [f"## {title}", ""]
        lines += [f"| answer | KVM | {' | '.join(kernels)} |", "| --- " * (len(kernels) + 2) + "|"]
        for word in ANSWERS:
            rows = {kvm: [found[kernel, way, word, kvm] for kernel in kernels] for kvm in KVMS}
            first, second = rows.values()
            if first == second:
                rows = {" and ".join(KVMS): first}
            lines += [f"| {word} | {kvm} | {' | '.join(row)} |" for kvm, row in rows.items()]
        lines.append("")
    return "\n".join(lines)


_HEAD: Final = """# SNP guests

`sev snp` in a program, or `--sev snp`, runs a guest under SEV-SNP: real kernels, \
`snippet:6.12` and `snippet:7.3`. A page-state change is KVM_EXIT_HYPERCALL number 12 to the \
host, by KVM's code of \
the host's kernel (machine/snp_psc.py: 6.11, 6.12, 6.18, 7.2, 7.3); an access that the RMP keeps \
from the guest is #VC 0x404 or KVM_EXIT_MEMORY_FAULT (machine/rmp.py). `--host \
hostile-hypervisor:LIE` is a hypervisor that lies; corpora/snp has a program for each lie and \
each attack. In a program, `hypervisor_lie`, `hypervisor_inject` and `hypervisor_page` have it \
begin to lie, inject an event or attack a page, the last two before any instruction by its \
number, which counts from now or, after `hypervisor_wait`, from an event of the conversion; \
the check `page-states` looks for a second validated frame, for plaintext that another \
party reads, and for content that the guest did not write. `rmpadjust` makes a page a VMSA, and \
`ap_creation` has KVM run a vCPU from it (machine/ap_creation.py): the vCPU executes nothing here, \
but the page is out of reach until it is destroyed. \
`guestemu zoo run N10 N12 N13` plants defects of KVM's half, `guestemu zoo run N17 N19 N23 N42` \
such of the guest's. Facts: facts/snp-page-states.md.

What a guest does with each answer of user space to a page-state change, every cell a run of the \
unmodified kernel. "terminates 1/1" is a termination request of Linux's set, reason 1: a change of \
page states failed.

This page is made by `guestemu outcomes snp --page docs/snp.md`.
"""
