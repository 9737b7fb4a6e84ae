# SPDX-License-Identifier: GPL-2.0-or-later
"""SEV-ES under a guest: VMMCALL becomes #VC, VMGEXIT carries the request to the host.

The hypervisor's side follows sev_handle_vmgexit(), sev_es_validate_vmgexit(),
sev_es_sync_from_ghcb() and sev_handle_vmgexit_msr_protocol() in arch/x86/kvm/svm/sev.c (Linux
6.12); the guest's handler is the kernel's own (A31). Hypercalls and MSR accesses end at the same
`ExitHandler` as in a plain SEV guest, always as 64-bit ones (K3-c step 3, guest_state_protected).

Only VMMCALL is reflected: CPUID, RDMSR, WRMSR and I/O instructions are answered in place, as if the
#VC handler had done its work, because the emulator's hooks see them before they execute and the
handler's own code reads MSRs. So no #VC of these is ever delivered, and their GHCB exits come only
from code that makes them by hand.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from guestemu.abi import ghcb as abi
from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, U32_MASK, U64_MASK, Gpa
from guestemu.abi.errno import ENOSYS
from guestemu.abi.errors import InputError
from guestemu.abi.msrs import (
    MSR_AMD64_SEV_ES_GHCB,
    SEV_STATUS_SEV,
    SEV_STATUS_SEV_ES,
    SEV_STATUS_SEV_SNP,
)
from guestemu.abi.x86 import VECTORS_WITH_ERROR_CODE
from guestemu.events.log import EventLog
from guestemu.events.snp import GhcbRequest, MsrRequest, VcpuCreation
from guestemu.guest.base import CallOutcome
from guestemu.guest.linux.ghcb_vcpu import GhcbVcpu
from guestemu.guest.linux.snp import Snp
from guestemu.machine import ghcb
from guestemu.machine.ap_creation import KVM_VCPUS, ApCreation, ApRecord, VcpuStops
from guestemu.machine.cpuid import CpuidLeaf
from guestemu.machine.exits import (
    ExitHandler,
    GuestFault,
    Halt,
    Hypercall,
    RunFailed,
    Shutdown,
    Terminated,
    Vmgexit,
)
from guestemu.machine.ghcb import GhcbPage
from guestemu.machine.machine import Machine
from guestemu.machine.memory import GuestRam
from guestemu.machine.page_attacks import ATTACKS
from guestemu.machine.psc_lies import Lie, PscRequest
from guestemu.machine.psc_range import PscRange
from guestemu.machine.snp_psc import (
    OLDEST_FIXED,
    Malformed,
    PscDefect,
    PscEntry,
    PscKernel,
    RunFails,
    decode_entry,
    psc_kernel,
)
from guestemu.machine.vcpu import Vcpu

_ALWAYS_NEEDED: Final = ghcb.valid_bits(ghcb.EXIT_CODE, ghcb.EXIT_INFO_1, ghcb.EXIT_INFO_2)
_NEEDED: Final = {
    abi.EXIT_VMMCALL: _ALWAYS_NEEDED | ghcb.valid_bits(ghcb.RAX, ghcb.CPL),
    abi.EXIT_CPUID: _ALWAYS_NEEDED | ghcb.valid_bits(ghcb.RAX, ghcb.RCX),
    abi.EXIT_MSR: _ALWAYS_NEEDED | ghcb.valid_bits(ghcb.RCX),
    **dict.fromkeys(
        (abi.EXIT_PSC, abi.EXIT_MMIO_READ, abi.EXIT_MMIO_WRITE),
        _ALWAYS_NEEDED | ghcb.valid_bits(ghcb.SCRATCH),
    ),
}
_NEEDED_TO_CREATE: Final = _ALWAYS_NEEDED | ghcb.valid_bits(ghcb.RAX)
_SNP_ONLY: Final = frozenset({abi.EXIT_PSC, abi.EXIT_AP_CREATION})
_NEEDED_TO_WRITE: Final = _NEEDED[abi.EXIT_MSR] | ghcb.valid_bits(ghcb.RAX, ghcb.RDX)
_MMIO_SIZES: Final = frozenset({1, 2, 4, 8})
_NOWHERE: Final = -1
_STATUSES: Final = frozenset(
    {
        0,
        SEV_STATUS_SEV,
        SEV_STATUS_SEV | SEV_STATUS_SEV_ES,
        SEV_STATUS_SEV | SEV_STATUS_SEV_ES | SEV_STATUS_SEV_SNP,
    }
)


class GhcbState(msgspec.Struct, frozen=True):
    """GHCBs of all vCPUs: the registered one of each (GPA, -1: none), the GHCB MSR of the one that
    executes, the MSRs of the others; the vCPUs in the AP reset hold; the AP jump table's GPA."""

    registered: tuple[int, ...]
    current: int
    others: dict[int, dict[int, int]]
    holding: frozenset[int]
    jump_table: int


class EsState(msgspec.Struct, frozen=True):
    """What a snapshot keeps: the GHCBs, the RMP's states, the vCPUs' VMSAs."""

    ghcbs: GhcbState
    rmp: bytes
    aps: ApRecord


class _VcpuHolds(Exception):
    """The vCPU is not entered again before a start-up IPI comes."""


class SevEs:
    """SEV-ES for one machine; `snp` for an SNP guest. `cpuid` answers (function, subfunction)."""

    def __init__(
        self,
        machine: Machine,
        cpuid: Callable[[int, int], CpuidLeaf],
        events: EventLog,
        snp: Snp | None = None,
    ) -> None:
        self.snp = snp
        self.events = events
        self._machine = machine
        self._cpuid = cpuid
        self._msrs = machine.msrs
        self._registrations = [_NOWHERE] * machine.config.vcpus
        self._has_own = False
        self._holding: set[int] = set()
        self.kernel = psc_kernel(OLDEST_FIXED)
        self.lie: Lie | None = None
        self._honest: tuple[Lie | None] | tuple[()] = ()
        self.asked: tuple[PscEntry, ...] = ()
        self._requests = 0
        vcpus = max(KVM_VCPUS, machine.config.vcpus)
        self.aps = ApCreation(snp.rmp, vcpus=vcpus) if snp is not None else None
        if self.aps is not None:
            machine.devices.append(self.aps)
        has_code = machine.code.available and type(machine.ram) is GuestRam
        self._range = PscRange(machine.ram, machine.code) if has_code and snp else None
        self.jump_table = 0
        """GPA of the AP jump table, which firmware says first; 0: there is none."""
        self._msrs.platform[MSR_AMD64_SEV_ES_GHCB] = 0
        self._base = self._ghcbs()
        machine.devices.append(self)
        machine.hooks.reflects_vmmcall = True
        machine.hooks.instructions[abi.VMGEXIT] = self._vmgexit
        self._exits: dict[int, Callable[[GhcbPage, GhcbVcpu, ExitHandler], tuple[int, int]]] = {
            abi.EXIT_VMMCALL: self._vmmcall,
            abi.EXIT_MSR: self._msr,
            abi.EXIT_CPUID: self._cpuid_exit,
            abi.EXIT_PSC: self._psc,
            abi.EXIT_AP_CREATION: self._ap_creation,
            abi.EXIT_HV_FEATURES: self._hv_features,
            abi.EXIT_AP_JUMP_TABLE: self._ap_jump_table,
            abi.EXIT_NMI_COMPLETE: self._nmi_complete,
            abi.EXIT_MMIO_READ: self._mmio_read,
            abi.EXIT_MMIO_WRITE: self._mmio_write,
        }

    @property
    def kernel(self) -> PscKernel:
        """The KVM below the guest."""
        return self._kernel

    @kernel.setter
    def kernel(self, kernel: PscKernel) -> None:
        self._kernel = kernel
        if self.snp is not None:
            self.snp.psc.kernel = kernel

    def use(self, kernel: PscKernel, repaired: frozenset[str]) -> None:
        """The KVM below, without the defects that are `repaired` (values of `PscDefect`)."""
        self.kernel = kernel
        if self.snp is not None:
            known = frozenset(defect for defect in PscDefect if defect.value in repaired)
            self.snp.psc.repaired = known

    # State ------------------------------------------------------------------------------------

    def save(self) -> EsState:
        """For a snapshot."""
        rmp = self.snp.rmp.dump() if self.snp else b""
        return EsState(self._ghcbs(), rmp, self.aps.save() if self.aps else ApRecord())

    def load(self, state: EsState) -> None:
        """As `save` returned it, for a machine of the same configuration."""
        self._set_ghcbs(state.ghcbs)
        if self.snp is not None and self.aps is not None:
            self.snp.load(state.rmp)
            self.aps.load(state.aps)

    def _ghcbs(self) -> GhcbState:
        return GhcbState(
            registered=tuple(self._registrations),
            current=self._msrs.platform[MSR_AMD64_SEV_ES_GHCB],
            others={index: dict(own) for index, own in self._msrs.others.items()},
            holding=frozenset(self._holding),
            jump_table=self.jump_table,
        )

    def _set_ghcbs(self, state: GhcbState) -> None:
        self._registrations[:] = state.registered
        self._msrs.platform[MSR_AMD64_SEV_ES_GHCB] = state.current
        if self._has_own:
            self._msrs.others = {index: dict(own) for index, own in state.others.items()}
            self._holding = set(state.holding)
        self.jump_table = state.jump_table

    def separate_vcpus(self) -> None:
        """From now on each vCPU has a GHCB of its own and may wait in the AP reset hold. Before
        guest code runs."""
        self._has_own = True
        self._msrs.own.add(MSR_AMD64_SEV_ES_GHCB)
        self._exits[abi.EXIT_AP_HLT_LOOP] = self._reset_hold

    @property
    def _vcpu(self) -> int:
        return self._machine.current.index if self._has_own else 0

    @property
    def _registered(self) -> int:
        """The GHCB that the executing vCPU has registered."""
        return self._registrations[self._vcpu]

    @_registered.setter
    def _registered(self, gpa: int) -> None:
        self._registrations[self._vcpu] = gpa

    def register_ghcb(self, gpa: Gpa) -> None:
        """What a guest does by the MSR protocol: registers its GHCB and points the MSR to it."""
        self._registered = gpa
        self._msrs.platform[MSR_AMD64_SEV_ES_GHCB] = gpa

    def lie_until_reset(self, lie: Lie) -> None:
        """The hypervisor lies until the next rollback."""
        self._honest = (self.lie,)
        self.lie = lie

    def inject(self, vector: int, error_code: int, after: int) -> None:
        """The hypervisor injects an event when the guest has begun `after` more instructions
        (EVENTINJ, as long as injection is not restricted); `error_code` for vectors that have one.
        """
        code = error_code if vector in VECTORS_WITH_ERROR_CODE else None
        self._machine.intervene(after, lambda vcpu: vcpu.inject(vector, code))

    def attack(self, gfn: int, name: str, after: int) -> None:
        """The hypervisor attacks a frame when the guest has begun `after` more instructions; `name`
        is one of `page_attacks.ATTACKS`. Nothing happens to a guest without SNP."""
        snp = self.snp
        if snp is None:
            return

        def carry_out(_vcpu: Vcpu) -> None:
            snp.attacked.add(gfn)
            ATTACKS[name].carry_out(snp, gfn)

        self._machine.intervene(after, carry_out)

    def request_by_hand(
        self, words: Sequence[int], header: int, scratch: int, length: int
    ) -> CallOutcome:
        """SVM_VMGEXIT_PSC with these entries, as code would make it that is not the kernel's; the
        value is SW_EXITINFO2."""
        ram, gpa = self._machine.ram, self._registered
        handler = self._machine.hooks.handler
        if self.snp is None or handler is None or gpa == _NOWHERE:
            return CallOutcome(-ENOSYS)
        at = gpa + abi.GHCB_SHARED_BUFFER + scratch & U64_MASK
        right = max(len(words) - 1, 0) << 16
        data = struct.pack(f"<Q{len(words)}Q", (header ^ right) & U64_MASK, *words)
        room = ram.frames * PAGE_SIZE - at
        if room > 0:
            ram.write(Gpa(at), data[:room], private=False)
        self.asked = tuple(self._entries_at(at))
        page = GhcbPage(ram, Gpa(gpa))
        page.clear_valid()
        for field, value in (
            (ghcb.EXIT_CODE, abi.EXIT_PSC),
            (ghcb.EXIT_INFO_1, 0),
            (ghcb.EXIT_INFO_2, length),
            (ghcb.SCRATCH, at),
        ):
            page.set(field, value)
        page.store()
        try:
            if self.lie is not None or not self._is_range(gpa):
                self._page_request(GhcbPage(ram, Gpa(gpa)), handler)
        except RunFails as failed:
            return CallOutcome(None, RunFailed(f"KVM_RUN fails: {failed}", 0))
        return CallOutcome(GhcbPage(ram, Gpa(gpa)).value(ghcb.EXIT_INFO_2))

    def create_ap_by_hand(self, info_1: int, vmsa: Gpa, features: int) -> CallOutcome:
        """SVM_VMGEXIT_AP_CREATION with these SW_EXITINFO1, SW_EXITINFO2 and RAX, likewise; the
        value is the answer's SW_EXITINFO2."""
        ram, gpa = self._machine.ram, self._registered
        handler = self._machine.hooks.handler
        if self.aps is None or handler is None or gpa == _NOWHERE:
            return CallOutcome(-ENOSYS)
        page = GhcbPage(ram, Gpa(gpa))
        page.clear_valid()
        for field, value in (
            (ghcb.EXIT_CODE, abi.EXIT_AP_CREATION),
            (ghcb.EXIT_INFO_1, info_1),
            (ghcb.EXIT_INFO_2, vmsa),
            (ghcb.RAX, features),
        ):
            page.set(field, value)
        page.store()
        try:
            self._page_request(GhcbPage(ram, Gpa(gpa)), handler)
        except VcpuStops as stops:
            return CallOutcome(None, RunFailed(str(stops), 0))
        return CallOutcome(GhcbPage(ram, Gpa(gpa)).value(ghcb.EXIT_INFO_2))

    def _entries_at(self, at: int) -> Iterator[PscEntry]:
        """All that KVM could take for entries of a buffer at `at`."""
        ram = self._machine.ram
        room = min(abi.PSC_MAX_COUNT, (ram.frames * PAGE_SIZE - at) // 8 - 1)
        if room > 0:
            data = ram.read(Gpa(at + 8), 8 * room, private=False)
            yield from map(decode_entry, struct.unpack(f"<{room}Q", data))

    def checkpoint(self) -> None:
        """See `Device`."""
        self._base = self._ghcbs()

    def rollback(self) -> None:
        """See `Device`; the log of events starts anew."""
        self._requests = 0
        self.asked = ()
        if self._honest:
            (self.lie,) = self._honest
            self._honest = ()
        self._set_ghcbs(self._base)
        self.events.clear()

    # VMGEXIT ----------------------------------------------------------------------------------

    def _vmgexit(self, vcpu: Vcpu) -> Vmgexit | Shutdown | Halt | int:
        try:
            ended = self._exit(self._msrs.platform[MSR_AMD64_SEV_ES_GHCB], vcpu)
        except RunFails as failed:
            return RunFailed(f"KVM_RUN fails: {failed}", vcpu.read_register("rip"))
        except VcpuStops as stops:
            return RunFailed(str(stops), vcpu.read_register("rip"))
        except _VcpuHolds:
            return Halt(vcpu.read_register("rip") + len(abi.VMGEXIT))
        return self._machine.hooks.rax if ended is None else ended

    def _exit(self, request: int, vcpu: Vcpu) -> Vmgexit | Shutdown | None:
        if request & abi.MSR_INFO_MASK:
            answer = self._msr_protocol(request, vcpu.read_register("rip"))
            if isinstance(answer, Shutdown):
                return answer
            self._msrs.platform[MSR_AMD64_SEV_ES_GHCB] = answer
            self.events.append(MsrRequest(request, answer, self._table_writes))
            return None
        if not request or request + PAGE_SIZE > self._machine.ram.frames * PAGE_SIZE:
            return None  # not mapped: the guest resumes, and nothing is written (N11)
        handler = self._machine.hooks.handler
        if handler is None:
            return Vmgexit(vcpu.read_register("rip"))
        is_strange = self.snp is not None and request != self._registered
        if is_strange and not self.kernel.refuses_unregistered:
            raise RunFails(f"the GHCB at {request:#x} is not registered: -EINVAL")
        if self.lie is None and not is_strange and self._is_range(request):
            return None
        page = GhcbPage(self._machine.ram, Gpa(request))
        if page.value(ghcb.EXIT_CODE) == abi.EXIT_TERM_REQUEST and page.is_valid(ghcb.EXIT_CODE):
            info = page.value(ghcb.EXIT_INFO_1)
            return _terminated(info & 0xF, info >> 4 & 0xFF, vcpu.read_register("rip"))
        self._page_request(page, handler)
        return None

    def _is_range(self, request: int) -> bool:
        """`_page_request` for a page-state request of one range (`PscRange`), if it is one."""
        requests, snp, kernel = self._range, self.snp, self._kernel
        if requests is None or snp is None or kernel.trusts_length or not snp.psc.exits_enabled:
            return False
        gpa = Gpa(request)
        asked = requests.begin(gpa, kernel.reads_header_once)
        if asked is None:
            return False
        ram = self._machine.ram
        self._requests += 1
        vcpu = GhcbVcpu(lambda: GhcbPage(ram, gpa), self._vcpu)
        answer = snp.change_range(asked, vcpu)
        info_1, info_2 = asked[-2:]
        is_answered = False
        if not answer:
            is_done = requests.done(answers=not vcpu.written)
            is_answered = is_done and not vcpu.written
            if not is_done:
                page = GhcbPage(ram, gpa)
                answer = snp.change_by_buffer(gpa, page.value(ghcb.SCRATCH), info_2, vcpu)
        if vcpu.written:
            GhcbPage(ram, gpa).answer(vcpu.written, abi.RESP_NO_ACTION, answer)
        elif not is_answered:
            requests.answer(answer)
        writes = ram.table_write_count
        self.events.append(
            GhcbRequest(abi.EXIT_PSC, info_1, info_2, abi.RESP_NO_ACTION, answer, writes)
        )
        return True

    def _page_request(self, page: GhcbPage, handler: ExitHandler) -> None:
        code = page.value(ghcb.EXIT_CODE)
        info_1, info_2 = page.value(ghcb.EXIT_INFO_1), page.value(ghcb.EXIT_INFO_2)
        vcpu = GhcbVcpu(lambda: page, self._vcpu)
        try:
            self._validate(page, code)
            answer = self._exits[code](page, vcpu, handler)
        except Malformed as malformed:
            answer = (abi.RESP_MALFORMED_INPUT, int(malformed.reason))
        except GuestFault as fault:
            answer = (abi.RESP_ISSUE_EXCEPTION, _injection(fault))
        page.answer(vcpu.written, *answer)
        self.events.append(GhcbRequest(code, info_1, info_2, *answer, self._table_writes))

    def _validate(self, page: GhcbPage, code: int) -> None:
        """Raises `Malformed` in the order of sev_es_validate_vmgexit()."""
        if self.snp is not None and page.gpa != self._registered:
            raise Malformed(abi.GhcbError.NOT_REGISTERED)
        if page.usage:
            raise Malformed(abi.GhcbError.INVALID_USAGE)
        is_ours = code in self._exits
        is_misplaced = self.snp is None and code in _SNP_ONLY
        if not is_ours or (is_misplaced and self.kernel.event_first):
            raise Malformed(abi.GhcbError.INVALID_EVENT)
        needed = _NEEDED.get(code, _ALWAYS_NEEDED)
        if code == abi.EXIT_MSR and page.value(ghcb.EXIT_INFO_1):
            needed = _NEEDED_TO_WRITE
        if code == abi.EXIT_AP_CREATION and not _destroys(page):
            needed = _NEEDED_TO_CREATE
        if not page.are_valid(needed):
            raise Malformed(abi.GhcbError.MISSING_INPUT)
        if is_misplaced:
            raise Malformed(abi.GhcbError.MISSING_INPUT)

    # Exits through the page: each returns SW_EXITINFO1 and SW_EXITINFO2 -----------------------

    def _vmmcall(self, _page: GhcbPage, vcpu: GhcbVcpu, handler: ExitHandler) -> tuple[int, int]:
        read = vcpu.read_register
        call = Hypercall(
            read("rax"), read("rbx"), read("rcx"), read("rdx"), read("rsi"), vcpu.cpl, True, vcpu
        )
        vcpu.write_register("rax", handler.hypercall(call))
        return abi.RESP_NO_ACTION, 0

    def _msr(self, page: GhcbPage, vcpu: GhcbVcpu, handler: ExitHandler) -> tuple[int, int]:
        index = vcpu.read_register("rcx") & U32_MASK
        is_ours = self._msrs.holds(index)
        if page.value(ghcb.EXIT_INFO_1):
            low, high = (vcpu.read_register(name) & U32_MASK for name in ("rax", "rdx"))
            if is_ours:
                self._msrs.write(index, high << 32 | low)
            else:
                handler.wrmsr(index, high << 32 | low, vcpu)
        else:
            value = self._msrs.read(index) if is_ours else handler.rdmsr(index, vcpu)
            vcpu.write_register("rax", value & U32_MASK)
            vcpu.write_register("rdx", value >> 32 & U32_MASK)
        return abi.RESP_NO_ACTION, 0

    def _cpuid_exit(
        self, _page: GhcbPage, vcpu: GhcbVcpu, _handler: ExitHandler
    ) -> tuple[int, int]:
        leaf = self._cpuid(
            vcpu.read_register("rax") & U32_MASK, vcpu.read_register("rcx") & U32_MASK
        )
        for name, value in zip(("rax", "rbx", "rcx", "rdx"), leaf, strict=True):
            vcpu.write_register(name, value)
        return abi.RESP_NO_ACTION, 0

    def _psc(self, page: GhcbPage, vcpu: GhcbVcpu, _handler: ExitHandler) -> tuple[int, int]:
        if self.snp is None:
            raise Malformed(abi.GhcbError.MISSING_INPUT)
        snp = self.snp
        scratch, info_2 = page.value(ghcb.SCRATCH), page.value(ghcb.EXIT_INFO_2)
        self._requests += 1
        if self.lie is None:
            return abi.RESP_NO_ACTION, snp.change_by_buffer(page.gpa, scratch, info_2, vcpu)

        def honest() -> int:
            return snp.change_by_buffer(page.gpa, scratch, info_2, vcpu)

        return self.lie.answer(PscRequest(self._machine.ram, scratch, honest, snp, self._requests))

    def _ap_creation(
        self, page: GhcbPage, vcpu: GhcbVcpu, _handler: ExitHandler
    ) -> tuple[int, int]:
        if self.aps is None:
            raise Malformed(abi.GhcbError.MISSING_INPUT)
        info_1, info_2 = page.value(ghcb.EXIT_INFO_1), page.value(ghcb.EXIT_INFO_2)
        request, apic_id = info_1 & U32_MASK, info_1 >> 32
        features = vcpu.read_register("rax")
        refused = self.aps.ask(request, apic_id, info_2, features, kernel=self.kernel)
        state = self.aps.state(apic_id).value
        self.events.append(
            VcpuCreation(
                info_2 >> PAGE_SHIFT,
                apic_id,
                request,
                int(refused or 0),
                state,
                table_writes=self._table_writes,
            )
        )
        if refused is not None:
            raise Malformed(refused)
        if apic_id == self._vcpu and request != abi.AP_CREATE_ON_INIT:
            raise VcpuStops(f"the vCPU asked for itself, and now it {state}")
        return abi.RESP_NO_ACTION, 0

    def _hv_features(
        self, _page: GhcbPage, _vcpu: GhcbVcpu, _handler: ExitHandler
    ) -> tuple[int, int]:
        return abi.RESP_NO_ACTION, self._features

    def _nmi_complete(
        self, _page: GhcbPage, _vcpu: GhcbVcpu, _handler: ExitHandler
    ) -> tuple[int, int]:
        """The guest takes NMIs again; here they were never held back."""
        return abi.RESP_NO_ACTION, 0

    def _reset_hold(
        self, page: GhcbPage, _vcpu: GhcbVcpu, _handler: ExitHandler
    ) -> tuple[int, int]:
        """The vCPU waits for a start-up IPI, which answers (kvm_emulate_ap_reset_hold())."""
        self._holding.add(self._vcpu)
        info_1, info_2 = page.value(ghcb.EXIT_INFO_1), page.value(ghcb.EXIT_INFO_2)
        event = GhcbRequest(abi.EXIT_AP_HLT_LOOP, info_1, info_2, 0, 0, self._table_writes)
        self.events.append(event)
        raise _VcpuHolds

    def release(self) -> bool:
        """A start-up IPI came to the current vCPU: SW_EXITINFO2 of its AP reset hold becomes 1
        (sev_vcpu_deliver_sipi_vector()). Whether it was in one."""
        if self._vcpu not in self._holding:
            return False
        self._holding.remove(self._vcpu)
        at = self._msrs.platform[MSR_AMD64_SEV_ES_GHCB] + ghcb.EXIT_INFO_2
        self._machine.ram.write(Gpa(at), struct.pack("<Q", 1), private=False)
        return True

    def _ap_jump_table(
        self, page: GhcbPage, _vcpu: GhcbVcpu, _handler: ExitHandler
    ) -> tuple[int, int]:
        """KVM keeps the address that firmware set; 0 says that there is no second CPU (U27)."""
        action, value = page.value(ghcb.EXIT_INFO_1), page.value(ghcb.EXIT_INFO_2)
        if action == abi.AP_JUMP_TABLE_SET:
            self.jump_table = value
            return abi.RESP_NO_ACTION, 0
        if action == abi.AP_JUMP_TABLE_GET:
            return abi.RESP_NO_ACTION, self.jump_table
        raise Malformed(abi.GhcbError.INVALID_INPUT)

    def _mmio_place(self, page: GhcbPage) -> tuple[int, int, Gpa]:
        """GPA, size, and where the bytes are; refused as setup_vmgexit_scratch() does."""
        gpa, size = page.value(ghcb.EXIT_INFO_1), page.value(ghcb.EXIT_INFO_2)
        buffer = page.value(ghcb.SCRATCH)
        if size not in _MMIO_SIZES:
            raise Malformed(abi.GhcbError.INVALID_INPUT)
        if buffer + size > self._machine.ram.frames * PAGE_SIZE:
            raise Malformed(abi.GhcbError.INVALID_SCRATCH_AREA)
        return gpa, size, Gpa(buffer)

    def _mmio_read(self, page: GhcbPage, _vcpu: GhcbVcpu, _handler: ExitHandler) -> tuple[int, int]:
        gpa, size, buffer = self._mmio_place(page)
        space = self._machine.mmio
        value = (1 << 8 * size) - 1 if space is None else space.read(gpa, size)
        self._machine.ram.write(buffer, value.to_bytes(size, "little"), private=False)
        return abi.RESP_NO_ACTION, 0

    def _mmio_write(
        self, page: GhcbPage, _vcpu: GhcbVcpu, _handler: ExitHandler
    ) -> tuple[int, int]:
        gpa, size, buffer = self._mmio_place(page)
        data = self._machine.ram.read(buffer, size, private=False)
        if self._machine.mmio is not None:
            self._machine.mmio.write(gpa, size, int.from_bytes(data, "little"))
        return abi.RESP_NO_ACTION, 0

    @property
    def _features(self) -> int:
        return abi.HV_FT_SNP | abi.HV_FT_SNP_AP_CREATION if self.snp is not None else 0

    # The MSR protocol ---------------------------------------------------------------------------

    def _msr_protocol(self, request: int, rip: int) -> int | Shutdown:
        """The response word, or the VM's end."""
        info = request & abi.MSR_INFO_MASK
        if info == abi.MSR_SEV_INFO_REQ:
            return ghcb.sev_info_answer(self._machine.config.cbit or 0)
        if info == abi.MSR_CPUID_REQ:
            function, register = ghcb.cpuid_question(request)
            return ghcb.cpuid_answer(register, self._cpuid(function, 0)[register])
        if info == abi.MSR_HV_FT_REQ:
            return self._features << 12 | abi.MSR_HV_FT_RESP
        if info == abi.MSR_TERM_REQ:
            return _terminated(*ghcb.termination(request), rip)
        if self.snp is not None:
            if info == abi.MSR_PREF_GPA_REQ:
                return abi.MSR_PREF_GPA_NONE << 12 | abi.MSR_PREF_GPA_RESP
            if info == abi.MSR_REG_GPA_REQ:
                self._registered = request & ~PAGE_MASK
                return request & ~PAGE_MASK | abi.MSR_REG_GPA_RESP
            if info == abi.MSR_PSC_REQ:
                response = self.snp.change_by_msr(request, GhcbVcpu())
                lie = None if self.lie is None else self.lie.answer_msr
                return response if lie is None else lie(response)
        return request  # unknown: the register stays as it is (N11)

    @property
    def _table_writes(self) -> int:
        return self._machine.ram.table_write_count


def attach_sev(machine: Machine, cpuid: Callable[[int, int], CpuidLeaf]) -> SevEs | None:
    """What the machine's `sev_status` asks for beside plain SEV; before guest code runs.

    Raises `InputError` for a status that no processor reports.
    """
    status = machine.config.sev_status
    if status not in _STATUSES or (status and machine.config.cbit is None):
        raise InputError(
            f"sev_status {status:#x}: take 1 (SEV), 3 (SEV-ES) or 7 (SEV-SNP), with a C-bit"
        )
    if not status & SEV_STATUS_SEV_ES:
        return None
    events = machine.log
    snp = Snp(machine, events) if status & SEV_STATUS_SEV_SNP else None
    return SevEs(machine, cpuid, events, snp)


def _destroys(page: GhcbPage) -> bool:
    """Whether an AP creation request takes a vCPU's VMSA away."""
    return page.value(ghcb.EXIT_INFO_1) & U32_MASK == abi.AP_DESTROY


def _injection(fault: GuestFault) -> int:
    """SW_EXITINFO2 of an exception, as an EVENTINJ word; KVM passes no error code along
    (svm_vmgexit_inject_exception)."""
    return fault.vector | abi.EVTINJ_TYPE_EXCEPTION | abi.EVTINJ_VALID


def _terminated(reason_set: int, reason: int, rip: int) -> Terminated:
    words = abi.TERM_REASONS.get((reason_set, reason), "unknown reason")
    text = f"the guest asked to be terminated: set {reason_set}, reason {reason} ({words})"
    return Terminated(text, rip, reason_set, reason)
