# SPDX-License-Identifier: GPL-2.0-or-later
"""Which functions of a kernel convert pages, and which rows of the battery reach them.

A function converts pages if it calls or jumps to one of `CONVERTERS` directly; such calls are found
in the image's code by their target, so that a caller which was inlined counts as the function that
holds it. Whether a row reaches a function is measured: its first instruction has a hook while the
row runs. Rows with another answer of the host reach what the row itself does, and are left out; so
are those that boot a kernel of their own.
"""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from elftools.elf.elffile import ELFFile

from guestemu.abi.elf import code_sections
from guestemu.guest.linux.boot import lacking
from guestemu.guest.linux.image import load_image
from guestemu.guest.linux.kernel import KERNEL_MAP, Kernel
from guestemu.guest.linux.load import LOADER, LinuxLoader
from guestemu.machine.callbacks import CodeHook
from guestemu.machine.engine import HOOK_CODE
from guestemu.machine.machine import Machine
from guestemu.study.outcomes.cells import judge
from guestemu.study.outcomes.experiments import EXPERIMENTS, Bed

CONVERTERS: Final = (
    "set_memory_decrypted",
    "set_memory_encrypted",
    "early_set_memory_decrypted",
    "early_set_memory_encrypted",
    "early_set_mem_enc_dec_hypercall",
    "early_snp_set_memory_shared",
    "early_snp_set_memory_private",
    "snp_set_memory_shared",
    "snp_set_memory_private",
    "set_pages_state",
    "tdx_enc_status_changed",
    "accept_memory",
)
"""Functions that change a page's encryption, or its page state, when they are called."""

_BRANCH: Final = re.compile(rb"[\xe8\xe9](?=....)", re.DOTALL)
"""CALL and JMP with a 32-bit displacement."""
_BRANCH_SIZE: Final = 5

_UNREACHED: Final[Mapping[str, str]] = {
    r"(__)?vmbus_|hv_": "a guest of Hyper-V",
    r"vgacon_": "a VGA text console",
    r"arch_kexec_|init_real_mode": "a host with SME",
    r"kvm_setup_vsyscall_timeinfo": "more than 64 possible CPUs",
    r"swiotlb_init_late": "a swiotlb that is set up after the boot",
    r"swiotlb_exit": "a guest that bounces nothing",
    r"(alloc|free)_shared_pages|snp_(init_crypto|alloc_req|msg)": "requests to the SNP firmware",
    r"(snp|tdx)_kexec_finish": "kexec out of an SNP guest or a TD (`guestemu outcomes matrix`)",
    r"snp_accept_memory|__accept_page|__free_pages_core|deferred_init_|memblock_|"
    r"sanity_check_segment_list": "memory that the firmware left unaccepted",
}
"""What functions need that no row reaches, by the start of their names. Read in the sources of 6.1,
6.12 and 7.3."""


class Reached(msgspec.Struct, frozen=True):
    """A row of the battery that runs a function, as one guest kind."""

    kind: str
    row: str


class ConversionEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A `function` that calls some of `CONVERTERS`, and the rows that reach it. `needs`: what the
    function is for, where no row does; "" where that is not known."""

    function: str
    calls: tuple[str, ...]
    reached: tuple[Reached, ...] = ()
    needs: str = ""


def find_entries(image: Path, kernel: Kernel) -> list[ConversionEntry]:
    """The functions of `kernel`, which is in `image`, that call a converter; none is reached yet.
    Raises `InputError` for an image that cannot be read."""
    targets = {
        kernel.symbols[name]: name for name in reversed(CONVERTERS) if name in kernel.symbols
    }
    named: dict[int, str] = {}
    for name, address in kernel.symbols.items():
        named.setdefault(address, name)
    starts = sorted(named)
    found: dict[str, set[str]] = {}
    elf = ELFFile(io.BytesIO(load_image(image).elf))
    for base, text in code_sections(elf.iter_sections()):
        for match in _BRANCH.finditer(text):
            place = match.start()
            displacement = int.from_bytes(text[place + 1 : place + 5], "little", signed=True)
            target = targets.get(base + place + _BRANCH_SIZE + displacement)
            index = bisect_right(starts, base + place) - 1
            if target is not None and index >= 0:
                found.setdefault(named[starts[index]], set()).add(target)
    return [
        ConversionEntry(
            function=name,
            calls=tuple(one for one in CONVERTERS if one in found[name]),
            needs=_needs(name),
        )
        for name in sorted(found)
    ]


def _needs(function: str) -> str:
    for start, words in _UNREACHED.items():
        if re.match(start, function):
            return words
    return ""


class _Watch:
    """Hooks on functions: `seen` has the names of those that ran since it was cleared."""

    def __init__(self, kernel: Kernel, functions: Iterable[str]) -> None:
        self.seen: set[str] = set()
        self._addresses = {kernel.symbols[name]: name for name in functions}

    def attach(self, machine: Machine) -> None:
        """Has the hooks in `machine`: where functions are linked, and where they run before the
        kernel has its own page tables."""
        for address, name in self._addresses.items():
            for place in (address, address - KERNEL_MAP):
                hook = CodeHook(partial(self._on_function, name))
                machine.engine.add_hook(HOOK_CODE, hook, begin=place, end=place)

    def _on_function(self, name: str, _uc: object, _rip: int, _size: int, _user: object) -> None:
        self.seen.add(name)


def measure_entries(
    image: Path, kinds: Sequence[str], say: Callable[[str], None]
) -> tuple[str, list[ConversionEntry]]:
    """The version of the kernel in `image`, and its entries with the rows that reach them as each
    of `kinds`; `say` is told each kind. Raises `InputError`."""
    kernel = LOADER.kernel(image)
    entries = find_entries(image, kernel)
    watch = _Watch(kernel, [entry.function for entry in entries])
    reached: dict[str, list[Reached]] = {entry.function: [] for entry in entries}
    for kind in kinds:
        if lacking(kernel, kind):
            continue
        say(kind)
        bed = Bed(image, kind, loader=LinuxLoader(watch=watch.attach))
        for key, trial in EXPERIMENTS.items():
            if key.kind != kind or key.answer or trial.boots:
                continue
            watch.seen.clear()
            judge(partial(trial.measure, bed))
            for name in watch.seen:
                reached[name].append(Reached(kind, key.row))
    return kernel.version, [
        msgspec.structs.replace(
            entry,
            reached=tuple(reached[entry.function]),
            needs="" if reached[entry.function] else entry.needs,
        )
        for entry in entries
    ]
