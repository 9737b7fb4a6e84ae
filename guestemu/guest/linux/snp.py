# SPDX-License-Identifier: GPL-2.0-or-later
"""SEV-SNP under a guest: page-state changes, PVALIDATE and RMPADJUST.

The hypervisor's side follows snp_begin_psc_msr() and snp_begin_psc() in arch/x86/kvm/svm/sev.c
(Linux 6.12, fact K4-a); the instructions follow the APM, volume 3.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi import ghcb as abi
from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, U32_MASK, Gpa, Gva
from guestemu.abi.hypercalls import MAP_GPA_RANGE_ENCRYPTED, MAP_GPA_RANGE_PAGE_SZ_2M
from guestemu.abi.x86 import PTE_ADDRESS_MASK, RFLAGS_CF, VECTOR_PF
from guestemu.guest.linux.rmp import Rmp
from guestemu.guest.linux.sev_events import (
    PageStateChange,
    PermissionChange,
    SevEvents,
    Validation,
)
from guestemu.machine.exits import GuestFault, MapGpaRange, VcpuAccess
from guestemu.machine.ghcb import (
    PscEntry,
    frame_of,
    note_progress,
    psc_answer,
    psc_operation,
    read_psc_buffer,
)
from guestemu.machine.machine import Machine
from guestemu.machine.paging import translate
from guestemu.machine.vcpu import Vcpu

_PAGES_2M: Final = 512
_BY_MSR: Final = "psc-msr"
_BY_BUFFER: Final = "psc-buffer"
_OPERATIONS: Final = frozenset({abi.PSC_OP_PRIVATE, abi.PSC_OP_SHARED})


class Snp:
    """SNP for one machine; installs PVALIDATE and RMPADJUST. `rmp` is the state, `events` the log.

    A PVALIDATE that changes nothing is in the log as `is_double` and sets CF, on which a Linux
    guest terminates itself. With `forgives_double` CF stays clear, so that the guest goes on.
    """

    def __init__(self, machine: Machine, events: SevEvents) -> None:
        self.rmp = Rmp(machine.config.frames)
        self.events = events
        self.forgives_double = False
        self._machine = machine
        machine.devices.append(self.rmp)
        machine.hooks.instructions[abi.PVALIDATE] = self._pvalidate
        machine.hooks.instructions[abi.RMPADJUST] = self._rmpadjust

    # Page-state changes -----------------------------------------------------------------------

    def change_by_msr(self, request: int, vcpu: VcpuAccess) -> int:
        """The MSR protocol's request for one frame; returns the response word."""
        operation = psc_operation(request)
        if operation not in _OPERATIONS:
            return psc_answer(abi.MSR_PSC_ERROR)
        refused = self._change(frame_of(request), 1, operation, False, _BY_MSR, vcpu)
        return psc_answer(abi.MSR_PSC_ERROR if refused else 0)

    def change_by_buffer(self, gpa: Gpa, vcpu: VcpuAccess) -> int:
        """The entries of the buffer at `gpa`, adjacent ones of one kind together; returns
        SW_EXITINFO2."""
        ram = self._machine.ram
        buffer = read_psc_buffer(ram, gpa)
        if buffer is None or buffer.last >= abi.PSC_MAX_COUNT:
            return abi.PSC_ERROR_INVALID_HDR
        entries = buffer.entries
        index = buffer.first
        while index <= buffer.last:
            start = entries[index]
            if start.done > start.pages or start.gfn % start.pages:
                return abi.PSC_ERROR_INVALID_ENTRY
            if start.done == start.pages:
                index += 1
                continue
            end = index + 1
            pages = start.pages - start.done
            is_whole = start.is_2m and not start.done
            while end <= buffer.last and _continues(start, entries[end], pages, is_whole):
                pages += entries[end].pages
                end += 1
            if start.operation in _OPERATIONS:
                gfn = start.gfn + start.done
                operation, is_2m = start.operation, start.is_2m
                if self._change(gfn, pages, operation, is_2m, _BY_BUFFER, vcpu):
                    return abi.PSC_ERROR_GENERIC
            for number in range(index, end):
                note_progress(ram, gpa, number, entries[number])
            index = end
        return 0

    def _change(
        self, gfn: int, pages: int, operation: int, is_2m: bool, origin: str, vcpu: VcpuAccess
    ) -> int:
        is_private = operation == abi.PSC_OP_PRIVATE
        attributes = MAP_GPA_RANGE_ENCRYPTED if is_private else 0
        if is_2m:
            attributes |= MAP_GPA_RANGE_PAGE_SZ_2M
        handler = self._machine.hooks.handler
        result = 0
        if handler is not None:
            call = MapGpaRange(gfn << PAGE_SHIFT, pages, attributes, origin, vcpu)
            result = handler.map_gpa_range(call)
        if not result and is_private:
            self.rmp.assign(gfn, pages)
        elif not result:
            self.rmp.release(gfn, pages)
        self.events.append(
            PageStateChange(gfn, pages, attributes, is_private, result, self._table_writes)
        )
        return result

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


def _continues(start: PscEntry, entry: PscEntry, pages: int, is_whole: bool) -> bool:
    """Whether `entry` is one request with the `pages` before it that began with `start`.

    As KVM does it, from the first frame of `start` even where part of that was done before.
    """
    return (
        entry.operation == start.operation
        and entry.gfn == start.gfn + pages
        and not entry.done
        and entry.is_2m == is_whole
    )
