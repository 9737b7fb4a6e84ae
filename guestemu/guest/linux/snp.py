# SPDX-License-Identifier: GPL-2.0-or-later
"""SEV-SNP under a guest: page-state changes, PVALIDATE and RMPADJUST.

The hypervisor's side of a change is `SnpPsc`; the instructions follow the APM, volume 3.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi import ghcb as abi
from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, U32_MASK, Gpa, Gva
from guestemu.abi.hypercalls import MAP_GPA_RANGE_ENCRYPTED
from guestemu.abi.x86 import PTE_ADDRESS_MASK, RFLAGS_CF, VECTOR_PF
from guestemu.events.log import EventLog
from guestemu.events.snp import PageStateChange, PermissionChange, Validation
from guestemu.guest.linux.rmp import Rmp
from guestemu.machine.exits import GuestFault, MapGpaRange, VcpuAccess
from guestemu.machine.machine import Machine
from guestemu.machine.paging import translate
from guestemu.machine.snp_psc import AskUserSpace, SnpPsc
from guestemu.machine.vcpu import Vcpu

_PAGES_2M: Final = 512
_BY_MSR: Final = "psc-msr"
_BY_BUFFER: Final = "psc-buffer"


class Snp:
    """SNP for one machine; installs PVALIDATE and RMPADJUST. `rmp` is the state, `events` the log.

    A PVALIDATE that changes nothing is in the log as `is_double` and sets CF, on which a Linux
    guest terminates itself. With `forgives_double` CF stays clear, so that the guest goes on.
    """

    def __init__(self, machine: Machine, events: EventLog) -> None:
        self.rmp = Rmp(machine.config.frames)
        self.psc = SnpPsc(machine.ram)
        self.events = events
        self.forgives_double = False
        self._machine = machine
        machine.devices.append(self.rmp)
        machine.hooks.instructions[abi.PVALIDATE] = self._pvalidate
        machine.hooks.instructions[abi.RMPADJUST] = self._rmpadjust

    # Page-state changes -----------------------------------------------------------------------

    def change_by_msr(self, request: int, vcpu: VcpuAccess) -> int:
        """The MSR protocol's request for one frame; returns the response word."""
        return self.psc.begin_psc_msr(request, self._user_space(_BY_MSR, vcpu))

    def change_by_buffer(self, ghcb: Gpa, scratch: int, info_2: int, vcpu: VcpuAccess) -> int:
        """The entries of the buffer at `scratch`; returns SW_EXITINFO2."""
        return self.psc.begin_psc(ghcb, scratch, info_2, self._user_space(_BY_BUFFER, vcpu))

    def _user_space(self, origin: str, vcpu: VcpuAccess) -> AskUserSpace:
        def ask(gpa: int, pages: int, attributes: int) -> int:
            handler = self._machine.hooks.handler
            result = 0
            if handler is not None:
                result = handler.map_gpa_range(MapGpaRange(gpa, pages, attributes, origin, vcpu))
            gfn = gpa >> PAGE_SHIFT
            is_private = bool(attributes & MAP_GPA_RANGE_ENCRYPTED)
            if not result and is_private:
                self.rmp.assign(gfn, pages)
            elif not result:
                self.rmp.release(gfn, pages)
            self.events.append(
                PageStateChange(gfn, pages, attributes, is_private, result, self._table_writes)
            )
            return result

        return ask

    # Instructions -----------------------------------------------------------------------------

    def _pvalidate(self, vcpu: Vcpu) -> None:
        gfn = self._frame(vcpu, vcpu.read_register("rax"))
        is_2m = bool(vcpu.read_register("rcx") & U32_MASK)
        validate = bool(vcpu.read_register("rdx") & 1)
        pages = _PAGES_2M if is_2m else 1
        rmp = self.rmp
        result, changed, was_shared = abi.RMP_OK, True, False
        if gfn % pages or gfn + pages > rmp.frames:
            result = abi.RMP_FAIL_INPUT
        elif not rmp.is_uniform(gfn, pages):
            result = abi.RMP_FAIL_SIZE_MISMATCH
        else:
            found = rmp.validate(gfn, pages, validate)
            changed, was_shared = found.changed, found.was_shared
        vcpu.write_register("rax", result)
        rflags = vcpu.read_register("rflags") & ~RFLAGS_CF
        sets_carry = not changed and not self.forgives_double
        vcpu.write_register("rflags", rflags | RFLAGS_CF if sets_carry else rflags)
        self.events.append(
            Validation(gfn, pages, validate, not changed, was_shared, result, self._table_writes)
        )

    def _rmpadjust(self, vcpu: Vcpu) -> None:
        gfn = self._frame(vcpu, vcpu.read_register("rax"))
        attributes = vcpu.read_register("rdx")
        vcpu.write_register("rax", abi.RMP_OK)
        self.events.append(PermissionChange(gfn, attributes, self._table_writes))

    def _frame(self, vcpu: Vcpu, address: int) -> int:
        """The frame at a virtual address; #PF where there is none."""
        machine = self._machine
        root = Gpa(vcpu.read_register("cr3") & PTE_ADDRESS_MASK & ~machine.pte_cbit)
        found = translate(machine.ram, machine.bit, root, Gva(address & ~(PAGE_SIZE - 1)))
        if found is None or found[0] >> PAGE_SHIFT >= self.rmp.frames:
            vcpu.write_register("cr2", address)
            raise GuestFault(VECTOR_PF, 0)
        return found[0] >> PAGE_SHIFT

    @property
    def _table_writes(self) -> int:
        return self._machine.ram.table_write_count
