# SPDX-License-Identifier: GPL-2.0-or-later
"""What a device's DMA access may touch in a guest with encrypted memory.

Each access is held against what the guest's kernel did: its page tables, what it told the host, its
page states, its bounce pool, its DMA mappings (facts U20, U21). An access that a rule forbids is a
defect of a driver, of the DMA layer, or of a device that is hostile; the device itself reaches the
shared view only, so no rule is needed for the access to be harmless here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa, Gva, gpa_text
from guestemu.abi.errors import InputError
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED
from guestemu.events.base import Event
from guestemu.events.devices import DeviceAccess, DeviceViolation
from guestemu.events.exits import HypercallExit
from guestemu.guest.linux.kernel import Kernel
from guestemu.guest.linux.platform import GuestPlatform
from guestemu.guest.linux.userland.mappings import DmaMappings
from guestemu.machine.machine import Machine
from guestemu.machine.paging import walk

PRIVATE_ADDRESS: Final = "device-private-address"
PAGE_TABLE: Final = "device-page-table"
HOST_STATUS: Final = "device-host-status"
PAGE_STATE: Final = "device-page-state"
BOUNCE_POOL: Final = "device-bounce-pool"
MAPPING: Final = "device-mapping"
RULES: Final[dict[str, str]] = {
    PRIVATE_ADDRESS: "the address is RAM and has no bit of the private view",
    PAGE_TABLE: "the kernel's direct map has the page shared",
    HOST_STATUS: "the host was told that the page is shared",
    PAGE_STATE: "an SNP or TDX page is in the hypervisor's hands",
    BOUNCE_POOL: "payload lies in the bounce pool of swiotlb",
    MAPPING: "the access lies in a DMA mapping that is alive",
}
"""Names and sentences."""

SHARED: Final = "shared"
"""Of `page_state`."""

_MAX_KEPT: Final = 1000


class DeviceRules:
    """Judges every `DeviceAccess` before it happens. `checked` counts the accesses that each rule
    applied to, `violations` are kept (the first thousand)."""

    def __init__(
        self,
        kernel: Kernel,
        machine: Machine,
        platform: GuestPlatform,
        mappings: DmaMappings,
        notify: Callable[[Event], None],
    ) -> None:
        self.checked = dict.fromkeys(RULES, 0)
        self.violations: list[DeviceViolation] = []
        self.shared: set[int] = set()
        """Frames that the host has as shared."""
        self._kernel = kernel
        self._machine = machine
        self._platform = platform
        self._mappings = mappings
        self._notify = notify
        self._pool = (0, 0)

    def hear(self, event: Event) -> None:
        """One event of the run."""
        if isinstance(event, DeviceAccess):
            for rule, text in self._judge(event):
                self._report(event, rule, text)
        elif isinstance(event, HypercallExit) and event.nr == KVM_HC_MAP_GPA_RANGE:
            gpa, pages, attributes, _ = event.args
            first = gpa >> PAGE_SHIFT
            frames = range(first, min(first + pages, self._machine.ram.frames))
            if not attributes & MAP_GPA_RANGE_ENCRYPTED:
                self.shared.update(frames)
            elif self.shared:
                self.shared.difference_update(frames)

    def keep(self) -> tuple[frozenset[int], int]:
        """The host's record, and how many violations there are."""
        return frozenset(self.shared), len(self.violations)

    def restore(self, kept: tuple[frozenset[int], int]) -> None:
        """As `keep` returned it."""
        self.shared = set(kept[0])
        del self.violations[kept[1] :]

    def _report(self, access: DeviceAccess, rule: str, text: str) -> None:
        violation = DeviceViolation(
            rule=rule,
            device=access.device,
            gpa=access.gpa,
            size=access.size,
            text=f"{access.device}: {access.part} at {access.gpa:#x}: {text}",
        )
        if len(self.violations) < _MAX_KEPT:
            self.violations.append(violation)
        self._notify(violation)

    def _judge(self, access: DeviceAccess) -> Iterator[tuple[str, str]]:
        """Rules that the access breaks, each with why."""
        gpa, size, ram = access.gpa, access.size, self._machine.ram
        self.checked[PRIVATE_ADDRESS] += 1
        if gpa < 0 or gpa + size > ram.frames * PAGE_SIZE:
            has_bit = bool(gpa & self._machine.bit.mask)
            yield PRIVATE_ADDRESS, "the address has the C-bit" if has_bit else "no memory is there"
            return
        for gfn in range(gpa >> PAGE_SHIFT, (gpa + max(size, 1) - 1 >> PAGE_SHIFT) + 1):
            yield from self._judge_page(gfn)
        if access.is_payload:
            yield from self._judge_payload(gpa, size)
        if self._mappings.is_known:
            yield from self._judge_mapping(gpa, size)

    def _judge_payload(self, gpa: int, size: int) -> Iterator[tuple[str, str]]:
        start, end = self._bounce_pool()
        if not end:
            return
        self.checked[BOUNCE_POOL] += 1
        if not start <= gpa or gpa + size > end:
            yield BOUNCE_POOL, f"payload outside of the bounce pool {start:#x}-{end:#x}"

    def _judge_mapping(self, gpa: int, size: int) -> Iterator[tuple[str, str]]:
        self.checked[MAPPING] += 1
        if self._mappings.span_of(gpa, size) is not None:
            return
        late = self._mappings.ended_span_of(gpa, size)
        if late is None:
            yield MAPPING, "no DMA mapping covers it"
        else:
            yield MAPPING, f"its mapping ({late.event}, {late.device}) has ended"

    def _judge_page(self, gfn: int) -> Iterator[tuple[str, str]]:
        private = self._is_private_in_tables(gfn)
        if private is not None:
            self.checked[PAGE_TABLE] += 1
            if private:
                yield PAGE_TABLE, f"{gpa_text(gfn)} is private in the kernel's page tables"
        self.checked[HOST_STATUS] += 1
        if gfn not in self.shared:
            yield HOST_STATUS, f"{gpa_text(gfn)} is private for the host"
        state = self.page_state(gfn)
        if state is not None:
            self.checked[PAGE_STATE] += 1
            if state != SHARED:
                yield PAGE_STATE, f"{gpa_text(gfn)} is {state}"

    def _is_private_in_tables(self, gfn: int) -> bool | None:
        """What the direct map says; None before there is one."""
        machine = self._machine
        base = self._read(self._kernel.address("page_offset_base"))
        root = Gpa(machine.current.read_register("cr3") & ~0xFFF & ~machine.pte_cbit)
        leaf = walk(machine.ram, machine.bit.mask, root, Gva(base + (gfn << PAGE_SHIFT)))
        return machine.bit.is_private(leaf.entry) if base and leaf.is_present else None

    def page_state(self, gfn: int) -> str | None:
        """The state of a page in the RMP or in the Secure EPT, in words; None without page states.
        "shared" is the hypervisor's, "validated" and "accepted" are the guest's to use."""
        sev, td = self._platform.sev, self._platform.td
        if td is not None:
            return td.sept.describe(gfn)
        if sev is not None and sev.snp is not None:
            return sev.snp.rmp.describe(gfn)
        return None

    def _bounce_pool(self) -> tuple[int, int]:
        """Start and end of the default pool; (0, 0) before it is there."""
        if not self._pool[1]:
            symbol = self._kernel.symbols.get("io_tlb_default_mem")
            offset = self._pool_offset()
            if symbol is not None and offset is not None:
                bit = self._machine.bit.mask
                start, end = (self._read(symbol + offset + at) & ~bit for at in (0, 8))
                self._pool = (start, end)
        return self._pool

    def _pool_offset(self) -> int | None:
        """Where struct io_tlb_mem has `start` and `end`: in its own fields, from 6.7 on in
        `defpool`."""
        btf = self._kernel.btf
        for path in ("io_tlb_mem.defpool.start", "io_tlb_mem.start"):
            try:
                return btf.offset(path)
            except InputError:
                continue
        return None

    def _read(self, address: int) -> int:
        data = self._machine.current.read_memory(Gva(address), 8)
        return int.from_bytes(data or b"", "little")
