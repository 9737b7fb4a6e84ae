# SPDX-License-Identifier: GPL-2.0-or-later
"""A bare machine under SEV-ES or SNP whose requests are made by hand."""

from __future__ import annotations

import struct

from bare_machine import DATA, FRAMES, HLT, Answers, Bare, mov

from guestemu.abi import ghcb as abi
from guestemu.abi.addresses import PAGE_SIZE, Gpa
from guestemu.abi.msrs import MSR_AMD64_SEV_ES_GHCB
from guestemu.events.snp import PageStateChange
from guestemu.guest.linux.es import SevEs, attach_sev
from guestemu.machine import ghcb
from guestemu.machine.cpuid import CpuidLeaf
from guestemu.machine.exits import Exit, Halt
from guestemu.machine.machine import MachineConfig

ES, SNP = 3, 7
GHCB = DATA + 3 * PAGE_SIZE
BUFFER = GHCB + ghcb.SHARED_BUFFER
LEAF_GFN = (DATA >> 12) + 512
ALWAYS = (ghcb.EXIT_CODE, ghcb.EXIT_INFO_1, ghcb.EXIT_INFO_2)


def cpuid(function: int, subfunction: int) -> CpuidLeaf:
    return CpuidLeaf(function, subfunction, 0x33, 0x44)


class Guest:
    """A bare machine under SEV-ES or SNP; its GHCB is registered."""

    def __init__(self, status: int) -> None:
        self.bare = Bare(MachineConfig(frames=FRAMES, sev_status=status))
        self.machine = self.bare.machine
        found = attach_sev(self.machine, cpuid)
        assert found is not None
        self.sev: SevEs = found
        self.host = Answers()
        self.machine.hooks.handler = self.host
        self.machine.ram.write(Gpa(GHCB), bytes(PAGE_SIZE), private=False)
        if status == SNP:
            self.msr(GHCB | abi.MSR_REG_GPA_REQ)
        self.machine.checkpoint()

    def msr(self, value: int) -> int:
        """A VMGEXIT with `value` in the GHCB MSR; what the MSR holds then."""
        self.machine.msrs.platform[MSR_AMD64_SEV_ES_GHCB] = value
        assert isinstance(self.vmgexit(), Halt)
        return self.machine.msrs.platform[MSR_AMD64_SEV_ES_GHCB]

    def vmgexit(self) -> Exit:
        return self.bare.run(abi.VMGEXIT + HLT)

    def request(
        self,
        code: int,
        info_1: int = 0,
        info_2: int = 0,
        cpl: int | None = 0,
        without: tuple[int, ...] = (),
        private: bool = False,
        **registers: int,
    ) -> tuple[int, int]:
        """A VMGEXIT with this page; both exit infos of the answer."""
        page = bytearray(PAGE_SIZE)
        fields = {
            ghcb.EXIT_CODE: code,
            ghcb.EXIT_INFO_1: info_1,
            ghcb.EXIT_INFO_2: info_2,
            **{
                ghcb.SCRATCH if n == "scratch" else ghcb.GENERAL[n]: v for n, v in registers.items()
            },
        }
        for offset, value in fields.items():
            struct.pack_into("<Q", page, offset, value)
        given = {*fields} - {*without}
        if cpl is not None:
            page[ghcb.CPL] = cpl
            given.add(ghcb.CPL)
        for offset in given:
            page[ghcb.VALID_BITMAP + offset // 64] |= 1 << offset // 8 % 8
        page[ghcb.SHARED_BUFFER :] = self.machine.ram.read(
            Gpa(BUFFER), PAGE_SIZE - ghcb.SHARED_BUFFER, private=False
        )
        self.machine.ram.write(Gpa(GHCB), bytes(page), private=private)
        self.machine.msrs.platform[MSR_AMD64_SEV_ES_GHCB] = GHCB
        assert isinstance(self.vmgexit(), Halt)
        return self.field(ghcb.EXIT_INFO_1), self.field(ghcb.EXIT_INFO_2)

    def page(self) -> bytes:
        return self.machine.ram.read(Gpa(GHCB), PAGE_SIZE, private=False)

    def field(self, offset: int) -> int:
        return int.from_bytes(self.page()[offset : offset + 8], "little")

    def given(self, offset: int) -> bool:
        return bool(self.page()[ghcb.VALID_BITMAP + offset // 64] >> offset // 8 % 8 & 1)

    # SNP

    def states(self, gfn: int, pages: int = 1) -> set[int]:
        assert self.sev.snp is not None
        return {self.sev.snp.rmp.state(gfn + page) for page in range(pages)}

    def psc(self, *entries: int, first: int = 0, last: int | None = None) -> tuple[int, int]:
        end = len(entries) - 1 if last is None else last
        data = struct.pack(f"<HHI{len(entries)}Q", first, end, 0, *entries)
        self.machine.ram.write(Gpa(BUFFER), data, private=False)
        return self.request(abi.EXIT_PSC, scratch=BUFFER)

    def pvalidate(self, address: int, is_2m: bool, validate: bool) -> Exit:
        code = mov(0, address) + mov(1, int(is_2m)) + mov(2, int(validate)) + abi.PVALIDATE + HLT
        return self.bare.run(code)

    @property
    def carry(self) -> int:
        return self.bare.register("rflags") & 1

    @property
    def changes(self) -> list[tuple[int, int, int, int]]:
        return [
            (event.gfn, event.pages, event.attributes, event.result)
            for event in self.sev.events
            if isinstance(event, PageStateChange)
        ]


def entry(gfn: int, operation: int, is_2m: bool = False, done: int = 0) -> int:
    return done | gfn << 12 | operation << 52 | int(is_2m) << 56
