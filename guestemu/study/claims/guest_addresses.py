# SPDX-License-Identifier: GPL-2.0-or-later
"""Which addresses a host and a migration helper in the guest can talk in: C29.

Run on the model of QEMU's memory (RAM blocks with a place in ram_addr_t space, sections where they
appear in the guest), and on a handler that is told pages by one or the other. Facts D23, D33, F6,
F7, F13, F16b.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT, RamAddr
from guestemu.host.qemu.interfaces import Region
from guestemu.host.qemu.memory_map import MemoryMap, RamBlock
from guestemu.host.qemu.outgoing import page_status
from guestemu.study.claims.claim import Claim, Lab
from guestemu.study.claims.handler_path import GUEST as HANDLER
from guestemu.study.claims.handler_path import NamedPages
from guestemu.study.claims.result import ClaimResult, ClaimWitness, Evidence, decide

PATCH_SET: Final = "2021-v4"

_MIB: Final = 1 << 20
_LOW: Final = 16 * _MIB
_HIGH: Final = 8 * _MIB
_ABOVE: Final = 1 << 32
_PLUGGED: Final = 4 * _MIB
_PLUG_AT: Final = _ABOVE + 256 * _MIB


class _AboveHole:
    """The host has everything above 4 GiB as shared."""

    @property
    def regions(self) -> Sequence[Region]:
        start = _ABOVE >> PAGE_SHIFT
        return ((start, start + (_HIGH >> PAGE_SHIFT)),)


def gpas(
    _lab: Lab,
    repaired: tuple[str, ...] = (),
    unplugs: bool = True,
    name_them: Callable[[], NamedPages] = NamedPages,
) -> ClaimResult:
    """C29: a RAM block on both sides of the PCI hole, and virtio-mem memory after an unplug; the
    same pages, named to a handler."""
    machine = MemoryMap()
    ram = machine.add_block("pc.ram", _LOW + _HIGH)
    machine.map("pc.ram", 0, 0, _LOW)
    machine.map("pc.ram", _ABOVE, _LOW, _HIGH)
    memory = machine.hot_plug("virtio-mem", _PLUGGED, _PLUG_AT)
    wrong = _wrong_status(machine, ram, repaired)
    plugged = _without_gpa(machine, memory)
    if unplugs:
        machine.hot_unplug("virtio-mem", keeps_block=True)
    unplugged = _without_gpa(machine, memory)
    mapped = _without_gpa(machine, ram)
    named = name_them()
    return ClaimResult(
        verdict=decide(
            confirmed=not wrong and not unplugged and named.gpas_suffice,
            refuted=mapped > 0 or plugged > 0,
            conditional=not mapped and not plugged and unplugged > 0 and named.gpas_need_mapping,
        ),
        condition=(
            "every page that has to be transferred is mapped in the guest, and its GPA is taken "
            "from where it appears, not from its RAM block"
        ),
        evidence=(
            Evidence(
                f"{PATCH_SET}{' repaired' if repaired else ''}: wrong status",
                wrong,
                "pages",
                f"of {ram.pages}; GPA from the block's address, {_HIGH >> PAGE_SHIFT} pages lie "
                "above the PCI hole",
            ),
            Evidence("pc.ram: pages without a GPA", mapped, "pages", f"of {ram.pages}"),
            Evidence("virtio-mem, plugged: without a GPA", plugged, "pages", f"of {memory.pages}"),
            Evidence(
                "virtio-mem, unplugged: without a GPA",
                unplugged,
                "pages",
                f"of {memory.pages}; all have a ram_addr_t",
            ),
            *named.evidence(),
        ),
        guests=(f"QEMU model {PATCH_SET}", HANDLER),
        witnesses=(
            ClaimWitness(
                "virtio-mem block, plug, unplug: its pages have content and no GPA to ask for"
            ),
            named.witness(),
        ),
        remark="The save area of a vCPU, which the guest does not map either, has no GPA for the "
        "same reason. A handler named by ram_addr_t reaches both (docs/mirror.md).",
    )


def _wrong_status(machine: MemoryMap, ram: RamBlock, repaired: tuple[str, ...]) -> int:
    """Pages of `ram` that the VMM takes for what they are not."""
    status = page_status(machine, PATCH_SET, repaired, regions=_AboveHole())
    low = _LOW >> PAGE_SHIFT
    return sum(status.is_private(ram, page, live=True) != (page < low) for page in range(ram.pages))


def _without_gpa(machine: MemoryMap, block: RamBlock) -> int:
    return sum(
        machine.gpa_of(RamAddr(block.ram_addr + (page << PAGE_SHIFT))) is None
        for page in range(block.pages)
    )


CLAIMS: Final = (
    Claim(
        "C29",
        "A migration helper in the guest can be addressed by guest physical addresses.",
        "the prototype of Tobin Feldman-Fitzthum and Dov Murik, 2021; against it Paolo Bonzini: "
        "unplugged memory 'would still have to be transferred'",
        gpas,
        real_test="The prototype's OVMF and QEMU on an EPYC host with memory unplugged",
    ),
)
