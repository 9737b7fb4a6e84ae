# SPDX-License-Identifier: GPL-2.0-or-later
"""How hosts keep the status of pages: C23, C24, C27.

Run on the models of KVM's ABI generations (docs/hosts.md); facts K1-g, K1-f, K2-a, K3-d, D19, D27.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.hypercalls import MAP_GPA_RANGE_ENCRYPTED
from guestemu.host.kvm.findings import FindingKind, ReportsFindings
from guestemu.program.ops import OpKind
from guestemu.runner.operations import host_operations
from guestemu.study.claims.claim import Claim, Lab
from guestemu.study.claims.host_bench import FRAMES, MODEL, BenchedHost, HostBench
from guestemu.study.claims.result import ClaimResult, ClaimWitness, Evidence, decide

# C23 ------------------------------------------------------------------------------------------

SIZED: Final = BenchedHost("bitmap-v8")
"""The bitmap of RAM size."""

_PLUGGED: Final = 8
"""Frames plugged in behind RAM; the first was reported shared before."""


def ram_size(
    _lab: Lab, sized: BenchedHost = SIZED, growing: BenchedHost | None = None
) -> ClaimResult:
    """C23: a report for memory that is plugged in later."""
    other = growing or BenchedHost("bitmap-v6")
    seen = {choice: _report_then_plug(choice) for choice in (sized, other)}
    listed = _listed(BenchedHost("shared-list-v10"))
    answer, is_shared = seen[sized]
    other_keeps = seen[other][1]
    return ClaimResult(
        verdict=decide(confirmed=is_shared, refuted=answer == 0 and not is_shared and other_keeps),
        evidence=(
            *(
                Evidence(
                    f"{choice.title}: first plugged page",
                    "shared" if shared else "private",
                    how=f"reported shared before it was plugged in, answered {result}",
                )
                for choice, (result, shared) in seen.items()
            ),
            Evidence("shared-list-v10: regions kept", listed, "regions", "the same report"),
        ),
        guests=(MODEL,),
        witnesses=(
            ClaimWitness(
                f"set shared [{FRAMES}, {FRAMES + 1}), plug {_PLUGGED} pages at {FRAMES}, "
                "KVM_GET_PAGE_ENC_BITMAP",
                "guestemu run corpora/hosts/hot-plug-v8.prog",
            ),
        ),
    )


def _report_then_plug(choice: BenchedHost) -> tuple[int, bool]:
    """The answer to the report, and whether the plugged page then counts as shared."""
    bench = HostBench(choice)
    host = bench.start()
    answer = bench.call(FRAMES << PAGE_SHIFT, 1, False)
    run = host_operations(host)
    run[OpKind.HOST_COMMIT_SLOT](FRAMES, _PLUGGED)
    bits = run[OpKind.HOST_GET_BITMAP](FRAMES, _PLUGGED, 0)
    return answer, bits >= 0 and not bits & 1


def _listed(choice: BenchedHost) -> int:
    bench = HostBench(choice)
    host = bench.start()
    bench.call(FRAMES << PAGE_SHIFT, 1, False)
    return host_operations(host)[OpKind.HOST_GET_LIST](4096, 0, 0)


# C24 ------------------------------------------------------------------------------------------

GROWING: Final = tuple(
    BenchedHost(name) for name in ("bitmap-v1", "bitmap-v2", "bitmap-v3", "bitmap-v6")
)
"""Bitmaps that a hypercall makes larger."""

BOUNDED: Final = tuple(BenchedHost(name) for name in ("bitmap-v8", "map-gpa-range"))

_HIGH_GPA: Final = 1 << 46
_NODES: Final = 512


def unlimited_memory(
    _lab: Lab,
    growing: tuple[BenchedHost, ...] = GROWING,
    bounded: tuple[BenchedHost, ...] = BOUNDED,
) -> ClaimResult:
    """C24: one hypercall for a frame at 64 TiB, and alternate pages on the list."""
    taken = {choice: _allocated(choice) for choice in growing}
    kept = {choice: _allocated(choice) for choice in bounded}
    per_call = _regions_per_call(BenchedHost("shared-list-v10"))
    grows = all(amount for amount in taken.values())
    return ClaimResult(
        verdict=decide(
            confirmed=grows and all(kept.values()),
            refuted=not any(taken.values()) and not any(kept.values()),
            conditional=grows and not any(kept.values()),
        ),
        condition=(
            "the kernel keeps a bitmap that grows with the hypercall (patch sets up to v7); not "
            "for one sized by the slots (v8), nor in merged KVM, which keeps no record"
        ),
        evidence=(
            *(
                Evidence(
                    choice.title, amount, "bytes", "allocated for one page at GPA 0x400000000000"
                )
                for choice, amount in (*taken.items(), *kept.items())
            ),
            Evidence(
                "shared-list-v10",
                per_call,
                "list nodes for each hypercall",
                f"{_NODES} pages, every second one; charged to the VM, without a limit",
            ),
        ),
        guests=(MODEL,),
        witnesses=(
            ClaimWitness(
                "hypercall nr=12 a0=0x400000000000 a1=1 a2=0",
                "guestemu run corpora/hosts/growth-v6.prog",
            ),
        ),
    )


def _allocated(choice: BenchedHost) -> int:
    """Bytes of kernel memory beyond the bound that one call makes the host allocate."""
    bench = HostBench(choice)
    host = bench.start()
    bench.call(_HIGH_GPA, 1, False)
    if not isinstance(host, ReportsFindings):
        return 0
    sizes = [found.amount for found in host.findings if found.kind is FindingKind.HOST_MEMORY]
    return max(sizes, default=0)


def _regions_per_call(choice: BenchedHost) -> float:
    bench = HostBench(choice, 2 * _NODES + 1)
    host = bench.start()
    for page in range(_NODES):
        bench.call(2 * page << PAGE_SHIFT, 1, False)
    return host_operations(host)[OpKind.HOST_GET_LIST](1 << 16, 0, 0) / _NODES


# C27 ------------------------------------------------------------------------------------------

_SIZE_BITS: Final = 4
_RESERVED: Final = range(5, 64)

HANDLERS: Final = tuple(BenchedHost(name) for name in ("map-gpa-range", "qemu-v4", "qemu-10.2"))


def _attribute_words() -> Iterator[int]:
    """Every reserved bit alone and with bit 4, every page-size hint alone and with bit 4."""
    for private in (0, MAP_GPA_RANGE_ENCRYPTED):
        yield from (1 << bit | private for bit in _RESERVED)
        yield from (hint | private for hint in range(1 << _SIZE_BITS))


def reserved_bits(_lab: Lab, handlers: tuple[BenchedHost, ...] = HANDLERS) -> ClaimResult:
    """C27: which attribute words are refused, and what each handler makes of them."""
    words = list(_attribute_words())
    reserved = [word for word in words if word >> _SIZE_BITS + 1]
    accepted: dict[BenchedHost, int] = {}
    odd: dict[BenchedHost, list[int]] = {}
    for choice in handlers:
        bench = HostBench(choice)
        accepted[choice] = sum(_takes(bench, word) for word in reserved)
        odd[choice] = [word for word in words if not _reads_bit_4(bench, word)]
    enforced = not any(accepted.values())
    first = next((words_ for words_ in odd.values() if words_), [])
    return ClaimResult(
        verdict=decide(
            confirmed=enforced,
            refuted=all(count == len(reserved) for count in accepted.values()),
        ),
        evidence=(
            *(
                Evidence(
                    f"{choice.title}: accepted with a reserved bit set",
                    count,
                    "attribute words",
                    f"of {len(reserved)}: bits 5 to 63 alone, and with bit 4",
                )
                for choice, count in accepted.items()
            ),
            *(
                Evidence(
                    f"{choice.title}: read otherwise than by bit 4",
                    len(found),
                    "attribute words",
                    f"of {len(words)}: these and all page-size hints",
                )
                for choice, found in odd.items()
            ),
        ),
        guests=(MODEL,),
        witnesses=(
            ClaimWitness(
                f"attributes {first[0]:#x}: shared by bit 4, private for a handler that reads the "
                "whole word",
                "guestemu run corpora/hosts/attributes-word-v4.prog",
            ),
        )
        if first
        else (),
    )


def _takes(bench: HostBench, word: int) -> bool:
    bench.start()
    return bench.raw(0, 1, word) == 0


def _reads_bit_4(bench: HostBench, word: int) -> bool:
    """Whether the status of a page after the call is what bit 4 says; it was the opposite."""
    host = bench.start()
    private = bool(word & MAP_GPA_RANGE_ENCRYPTED)
    bench.call(0, 1, not private)
    bench.raw(0, 1, word)
    return bool(host.private_map()[0]) == private


CLAIMS: Final = (
    Claim(
        "C23",
        "A bitmap of the size of RAM is enough.",
        "patch set v8, 5 May 2020; OVMF reports ranges beyond RAM",
        ram_size,
        real_test="A KVM with patch set v8 under OVMF, which reports ranges beyond RAM",
    ),
    Claim(
        "C24",
        "A guest can force its host to allocate unlimited memory.",
        "Steve Rutherford and Brijesh Singh, April 2020",
        unlimited_memory,
        real_test="A KVM with each patch set, its memory cgroup watched while a guest sends ranges",
    ),
    Claim(
        "C27",
        "The reserved bits of KVM_HC_MAP_GPA_RANGE's attributes must be zero.",
        "Documentation/virt/kvm/x86/hypercalls.rst",
        reserved_bits,
        real_test="The real KVM under nested SVM, given attributes with reserved bits",
    ),
)
