# SPDX-License-Identifier: GPL-2.0-or-later
"""SEV-SNP under a guest: page-state changes, PVALIDATE, RMPADJUST, and accesses that fault.

Three facts say what a guest frame is, and only the guest's request ties them together (N15): the
attribute that user space gives it (KVM_SET_MEMORY_ATTRIBUTES), the frame behind it, and that
frame's RMP entry. An answer of 0 to a page-state change sets the attribute, and takes the frame
back where it becomes shared; KVM assigns a private one at the next fault. An access whose kind is
not the attribute's is KVM_EXIT_MEMORY_FAULT: user space is asked by a `MapGpaRange` of the origin
"memory-fault", converts the page on answer 0, and stops the VM on any other (N16).

KVM's half of a request is `SnpPsc`, the hardware `Rmp`. Views of pages that the RMP keeps from the
guest are closed (`enforce`): the CPU stops before the access and gets #VC 0x404, or KVM an #NPF.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Final

from guestemu.abi import ghcb as abi
from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, U32_MASK, Gpa, Gva, gpa_text
from guestemu.abi.hypercalls import MAP_GPA_RANGE_ENCRYPTED
from guestemu.abi.x86 import (
    PTE_ADDRESS_MASK,
    PTE_PRESENT,
    RFLAGS_CF,
    VECTOR_GP,
    VECTOR_PF,
    VECTOR_VC,
)
from guestemu.events.log import EventLog
from guestemu.events.snp import MemoryFault, PageStateChange, PermissionChange, Validation
from guestemu.guest.linux.ghcb_vcpu import GhcbVcpu
from guestemu.machine.exits import (
    MEMORY_FAULT,
    Exit,
    GuestFault,
    MapGpaRange,
    RunFailed,
    Shutdown,
    VcpuAccess,
    ViewFault,
)
from guestemu.machine.machine import Machine
from guestemu.machine.paging import LEAF_SIZES, walk
from guestemu.machine.pvalidate import PvalidateOperands
from guestemu.machine.restorable_bytes import RestorableBytes
from guestemu.machine.rmp import (
    ASSIGNED,
    FOREIGN,
    NPF_ENCRYPTED,
    PAGES_2M,
    PF_PRESENT_RESERVED,
    SHARED,
    VALIDATED,
    Rmp,
    RmpOutcome,
    What,
)
from guestemu.machine.snp_psc import AskUserSpace, SnpPsc, range_attributes
from guestemu.machine.vcpu import Vcpu
from guestemu.machine.view_gates import CLOSED, OPEN, READ_ONLY, ViewGates, state_runs

_BY_MSR: Final = "psc-msr"
_BY_BUFFER: Final = "psc-buffer"
_MAX_FAULTS: Final = 8
"""#NPFs of one instruction after which it stands still: KVM makes the same mapping again."""

_NO_RIGHTS: Final = (CLOSED, READ_ONLY)
_RIGHTS: Final = {
    SHARED: (CLOSED, OPEN),
    ASSIGNED: _NO_RIGHTS,
    VALIDATED: (OPEN, READ_ONLY),
    FOREIGN: _NO_RIGHTS,
}
"""Rights of the private and of the shared view, by `Rmp.state`."""


class Snp:
    """SNP for one machine; installs PVALIDATE and RMPADJUST. A `Device`.

    `rmp` is the hardware's state, `attributes` user space's: a byte for each frame, 1 = private;
    `events` is the log. A PVALIDATE that changes nothing is in the log as `is_double` and sets CF,
    on which a Linux guest terminates itself. With `forgives_double` CF stays clear.
    """

    def __init__(self, machine: Machine, events: EventLog) -> None:
        frames = machine.config.frames
        self.rmp = Rmp(frames)
        self.psc = SnpPsc(machine.ram)
        self.attributes = bytearray(b"\1") * frames
        self._kept_attributes = RestorableBytes(self.attributes)
        self.events = events
        self.forgives_double = False
        self.attacked: set[int] = set()
        """Guest frames that a hypervisor attacked since the last rollback (page_attacks.py)."""
        self._machine = machine
        self._ram = machine.ram
        self._cbit = machine.pte_cbit
        self._gates: ViewGates | None = None
        self._memory_faults = 0
        self._stash: dict[int, bytes] = {}
        self._base = dict(self._stash)
        self._operands = PvalidateOperands(
            machine.engine, machine.ram, machine.pte_cbit, machine.code
        )
        machine.devices += [self.rmp, self]
        machine.hooks.instructions[abi.PVALIDATE] = self._pvalidate
        machine.hooks.instructions[abi.RMPADJUST] = self._rmpadjust

    def enforce(self) -> None:
        """From now on accesses are checked; the page tables and the RMP have to agree."""
        self._gates = gates = self._machine.gate_views()
        gates.on_fault = self._view_fault
        self.rmp.changed = self._update_gates
        self.rmp.became = self._became
        self._update_gates(0, self.rmp.frames)

    def load(self, states: bytes) -> None:
        """Page states as `Rmp.dump` returned them; user space's attributes are the same."""
        self.rmp.load(states)
        self._kept_attributes.note(0, len(self.attributes))
        states = self.rmp.states(0, self.rmp.frames)
        self.attributes[:] = bytes(state != SHARED for state in states)

    def checkpoint(self) -> None:
        """See `Device`."""
        self._base = dict(self._stash)
        self._kept_attributes.checkpoint()

    def rollback(self) -> None:
        """See `Device`."""
        if self.psc.out_of_bounds:
            self.psc.out_of_bounds.clear()
        if self.attacked:
            self.attacked.clear()
        self._kept_attributes.rollback()
        if self._stash != self._base:
            self._stash = dict(self._base)

    # Page-state changes -----------------------------------------------------------------------

    def change_by_msr(self, request: int, vcpu: VcpuAccess) -> int:
        """The MSR protocol's request for one frame; returns the response word."""
        return self.psc.begin_psc_msr(request, self._user_space(_BY_MSR, vcpu))

    def change_by_buffer(self, ghcb: Gpa, scratch: int, info_2: int, vcpu: VcpuAccess) -> int:
        """The entries of the buffer at `scratch`; returns SW_EXITINFO2."""
        return self.psc.begin_psc(ghcb, scratch, info_2, self._user_space(_BY_BUFFER, vcpu))

    def change_range(self, asked: Sequence[int], vcpu: VcpuAccess) -> int:
        """One range of a request in the buffer, as `PscRange.begin` gives it; returns SW_EXITINFO2.
        Raises `RunFails`."""
        gfn, pages, is_private, is_2m, *_info = asked
        attributes = range_attributes(is_private, is_2m)
        answer = self._ask(_BY_BUFFER, vcpu, gfn << PAGE_SHIFT, pages, attributes)
        if not answer:
            return 0
        ask = self._user_space(_BY_BUFFER, vcpu)
        return self.psc.refused(ask, gfn, pages, attributes, answer=answer)

    def _user_space(self, origin: str, vcpu: VcpuAccess) -> AskUserSpace:
        return functools.partial(self._ask, origin, vcpu)

    def _ask(self, origin: str, vcpu: VcpuAccess, gpa: int, pages: int, attributes: int) -> int:
        handler = self._machine.hooks.handler
        result = 0
        if handler is not None:
            result = handler.map_gpa_range(MapGpaRange(gpa, pages, attributes, origin, vcpu))
        gfn = gpa >> PAGE_SHIFT
        is_private = bool(attributes & MAP_GPA_RANGE_ENCRYPTED)
        if not result:
            self.convert(gfn, pages, is_private)
        writes = self._ram.table_write_count
        self.events.append(PageStateChange(gfn, pages, attributes, is_private, result, writes))
        return result

    def convert(self, gfn: int, pages: int, private: bool) -> None:
        """User space converts frames: the attribute, and the private frames given back to the
        hypervisor. Frames beyond RAM are left out."""
        end = min(gfn + pages, self.rmp.frames)
        if gfn >= end:
            return
        self._kept_attributes.note(gfn, end - gfn)
        if end - gfn == 1:
            self.attributes[gfn] = private
        else:
            self.attributes[gfn:end] = bytes([private]) * (end - gfn)
        if not private:
            self.rmp.release(gfn, end - gfn)

    # Faults -----------------------------------------------------------------------------------

    def _became(self, gfn: int, state: int) -> None:
        gates = self._gates
        if gates is not None:
            gates.set_page(gfn, *_RIGHTS[state])

    def _update_gates(self, gfn: int, pages: int) -> None:
        gates = self._gates
        if gates is None:
            return
        if pages == 1:
            private, shared = _RIGHTS[self.rmp.state(gfn)]
            gates.set(gfn, 1, private=private, shared=shared)
            return
        for value, count in state_runs(self.rmp.states(gfn, pages)):
            private, shared = _RIGHTS[value]
            gates.set(gfn, count, private=private, shared=shared)
            gfn += count

    def _view_fault(self, fault: ViewFault) -> Exit | None:
        gfn = fault.gpa >> PAGE_SHIFT
        outcome = self.rmp.access(gfn, fault.kind, fault.is_private)
        vcpu = self._machine.current
        if outcome.what is What.VC:
            vcpu.write_register("cr2", fault.gva)
            raise GuestFault(VECTOR_VC, outcome.code)
        if outcome.what is What.NPF:
            return self._nested_fault(gfn, outcome.code, fault.rip)
        self._update_gates(gfn, 1)
        return None

    def reads_plain(self, gfn: int) -> bool:
        """Whether a load with C=1 at a guest frame would get plaintext now."""
        gates = self._gates
        passes = gates is None or gates.passes(gfn, private=True, kind="read")
        return passes or self.rmp.access(gfn, "read", private=True).what is What.PLAIN

    def _nested_fault(self, gfn: int, code: int, rip: int) -> Shutdown | None:
        """npf_interception(): None to execute the instruction again, or the end of KVM_RUN."""
        private = bool(code & NPF_ENCRYPTED)
        rmp = self.rmp
        if self.attributes[gfn] != private:
            return self._memory_fault(gfn, private, rip)
        entry = rmp.entry(rmp.system_frame(gfn))
        if private and rmp.state(gfn) == SHARED:
            rmp.assign(gfn, 1)
            return None
        if private and entry.is_2m:
            rmp.psmash(rmp.system_frame(gfn))
            rmp.small_mappings.discard(gfn // PAGES_2M)
            return None
        text = f"#NPF {code:#x} at {gpa_text(gfn)} again and again: {rmp.describe(gfn)}"
        return RunFailed(f"the vCPU stands still: {text}", rip)

    def _memory_fault(self, gfn: int, private: bool, rip: int) -> Shutdown | None:
        """KVM_EXIT_MEMORY_FAULT: user space converts the page, or stops the VM."""
        attributes = MAP_GPA_RANGE_ENCRYPTED if private else 0
        handler = self._machine.hooks.handler
        result = 0
        if handler is not None:
            result = handler.map_gpa_range(
                MapGpaRange(gfn << PAGE_SHIFT, 1, attributes, MEMORY_FAULT, GhcbVcpu())
            )
        self._memory_faults += 1
        self.events.append(MemoryFault(gfn, private, result, self._table_writes))
        if result:
            word = "private" if private else "shared"
            return RunFailed(
                f"KVM_RUN fails with -EFAULT: user space refused the memory fault at "
                f"{gpa_text(gfn)} ({word})",
                rip,
            )
        self.convert(gfn, 1, private)
        if not private:  # other memory is behind it now
            self._machine.ram.write(Gpa(gfn << PAGE_SHIFT), bytes(PAGE_SIZE), private=False)
        return None

    # What a hostile hypervisor can do ------------------------------------------------------------

    def remap(self, gfn: int, sfn: int) -> None:
        """Puts system frame `sfn` with its content behind guest frame `gfn`, and nothing else."""
        rmp, ram = self.rmp, self._machine.ram
        old = rmp.system_frame(gfn)
        if old == sfn:
            return
        gpa = Gpa(gfn << PAGE_SHIFT)
        self._stash[old] = ram.read(gpa, PAGE_SIZE)
        content = self._stash.get(sfn, bytes(PAGE_SIZE))
        for other in rmp.guest_frames(sfn):
            content = ram.read(Gpa(other << PAGE_SHIFT), PAGE_SIZE)
        rmp.map(gfn, sfn)
        ram.write(gpa, content)
        self._machine.engine.flush_tlb()

    # Instructions -----------------------------------------------------------------------------

    def _pvalidate(self, vcpu: Vcpu) -> Shutdown | int:
        gfn = self._operands.read()
        rax, rcx, rdx, rflags, selector, cr3 = self._operands.registers
        size = rcx & U32_MASK
        validate = bool(rdx & 1)
        if gfn is None:
            if selector & 3 and vcpu.cpl:
                raise GuestFault(VECTOR_GP, 0)
            gfn = self._frame(vcpu, rax, cr3)
        rmp = self.rmp
        faults = self._memory_faults
        outcome: RmpOutcome | None = None
        if size > 1:
            outcome = RmpOutcome(What.RESULT, abi.RMP_FAIL_INPUT)
        elif not size:
            outcome = rmp.pvalidate_page(gfn, validate, bool(self.attributes[gfn]))
        if outcome is None:
            ended, outcome = self._repeat(
                vcpu, gfn, functools.partial(rmp.pvalidate, gfn, bool(size), validate)
            )
            if ended is not None:
                return ended
        carry = outcome.carry
        flags = rflags & ~RFLAGS_CF | (RFLAGS_CF if carry and not self.forgives_double else 0)
        if flags != rflags:
            vcpu.write_register("rflags", flags)
        self.events.append(
            Validation(
                gfn,
                PAGES_2M if size else 1,
                validate,
                carry,
                self._memory_faults > faults,
                outcome.code,
                table_writes=self._ram.table_write_count,
            )
        )
        return outcome.code

    def _rmpadjust(self, vcpu: Vcpu) -> Shutdown | None:
        if vcpu.cpl:
            raise GuestFault(VECTOR_GP, 0)
        gfn = self._frame(vcpu, vcpu.read_register("rax"), vcpu.read_register("cr3"))
        is_2m = bool(vcpu.read_register("rcx") & U32_MASK)
        done = self.adjust(vcpu, gfn, is_2m, vcpu.read_register("rdx"))
        if isinstance(done, Shutdown):
            return done
        vcpu.write_register("rax", done)
        return None

    def adjust(self, vcpu: Vcpu, gfn: int, is_2m: bool, attributes: int) -> Shutdown | int:
        """RMPADJUST of a guest frame, with `attributes` as in RDX; EAX, or the end of KVM_RUN.
        Raises `GuestFault`."""
        ended, outcome = self._repeat(vcpu, gfn, lambda: self.rmp.rmpadjust(gfn, is_2m, attributes))
        if ended is not None:
            return ended
        self.events.append(PermissionChange(gfn, attributes, outcome.code, self._table_writes))
        return outcome.code

    def _repeat(
        self, vcpu: Vcpu, gfn: int, instruction: Callable[[], RmpOutcome]
    ) -> tuple[Shutdown | None, RmpOutcome]:
        """Executes an instruction until it gives a result: KVM answers each #NPF, and #VC or #GP
        are raised."""
        rip = 0
        for _fault in range(_MAX_FAULTS):
            outcome = instruction()
            if outcome.what is What.RESULT:
                return None, outcome
            rip = rip or vcpu.read_register("rip")
            if outcome.what is What.VC:
                raise GuestFault(VECTOR_VC, outcome.code)
            if outcome.what is not What.NPF:
                raise GuestFault(VECTOR_GP, 0)
            ended = self._nested_fault(gfn, outcome.code, rip)
            if ended is not None:
                return ended, outcome
        return RunFailed("the vCPU stands still: the same #NPF again and again", rip), outcome

    def _frame(self, vcpu: Vcpu, address: int, cr3: int) -> int:
        """The frame at a virtual address; #PF where none is mapped, with the reserved bit where the
        leaf has no C-bit (N31)."""
        cbit = self._cbit
        gva = Gva(address & ~(PAGE_SIZE - 1))
        leaf = walk(self._ram, cbit, Gpa(cr3 & PTE_ADDRESS_MASK & ~cbit), gva)
        entry, level = leaf.entry, leaf.level
        if entry & PTE_PRESENT and level in LEAF_SIZES:
            size = LEAF_SIZES[level]
            base = entry & PTE_ADDRESS_MASK & ~cbit & ~(size - 1)
            gfn = (base | gva & size - 1) >> PAGE_SHIFT
            if gfn < self.rmp.frames:
                if not entry & cbit:
                    vcpu.write_register("cr2", address)
                    raise GuestFault(VECTOR_PF, PF_PRESENT_RESERVED)
                return gfn
        vcpu.write_register("cr2", address)
        raise GuestFault(VECTOR_PF, 0)

    @property
    def _table_writes(self) -> int:
        return self._ram.table_write_count
