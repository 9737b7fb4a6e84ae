# SPDX-License-Identifier: GPL-2.0-or-later
"""What operations have the guest do: raw instructions, the kernel's functions, loads and stores,
entries of its page tables changed behind its back."""

from __future__ import annotations

from collections.abc import Sequence

from guestemu.abi.addresses import PAGE_SHIFT, U64_MASK, Gva
from guestemu.abi.errno import ENOSYS
from guestemu.checks.psc import sev_of
from guestemu.guest.base import CallOutcome, RawRegisters
from guestemu.host.kvm.map_gpa_lies import MAP_GPA_LIES
from guestemu.machine.exits import ExceptionExit, GuestFault
from guestemu.machine.page_attacks import ATTACKS
from guestemu.machine.psc_lies import LIES
from guestemu.machine.sept_attacks import SEPT_ATTACKS
from guestemu.program.ops import Op, OpKind
from guestemu.runner.operations import OpContext, operation


def _gva(scene: OpContext, op: Op, offset: int = 0) -> Gva:
    return Gva(scene.guest.gva(op.region, op.page) + offset)


def _psc_words(scene: OpContext, op: Op, bits: Sequence[int]) -> list[int]:
    """Entries of the frames from the op's page on, each with some bits inverted."""
    gfn = scene.guest.gpa(op.region, op.page) >> PAGE_SHIFT
    return [
        (gfn + index << PAGE_SHIFT ^ inverted) & U64_MASK for index, inverted in enumerate(bits)
    ]


@operation(OpKind.HYPERCALL)
def hypercall(scene: OpContext, op: Op) -> CallOutcome:
    """VMMCALL or VMCALL with the op's registers; a page operand is added to a0."""
    guest = scene.guest
    nr, a0, a1, a2, a3 = op.arguments
    if op.has_page:
        a0 = a0 + guest.gpa(op.region, op.page) & U64_MASK
    registers = RawRegisters(nr, a0, a1, a2, a3)
    return guest.raw_hypercall(op.instruction, registers, op.mode, op.cpl)


@operation(OpKind.WRMSR)
def wrmsr(scene: OpContext, op: Op) -> CallOutcome:
    """WRMSR."""
    return scene.guest.raw_wrmsr(op.arguments[0], op.arguments[1], op.mode, op.cpl)


@operation(OpKind.RDMSR)
def rdmsr(scene: OpContext, op: Op) -> CallOutcome:
    """RDMSR."""
    return scene.guest.raw_rdmsr(op.arguments[0], op.mode, op.cpl)


@operation(OpKind.SET_MEMORY_ENCRYPTED)
def set_memory_encrypted(scene: OpContext, op: Op) -> CallOutcome:
    """The kernel's function of the page's address plus an offset."""
    return scene.guest.set_memory_encrypted(_gva(scene, op, op.arguments[1]), op.arguments[0])


@operation(OpKind.SET_MEMORY_DECRYPTED)
def set_memory_decrypted(scene: OpContext, op: Op) -> CallOutcome:
    """The kernel's function of the page's address plus an offset."""
    return scene.guest.set_memory_decrypted(_gva(scene, op, op.arguments[1]), op.arguments[0])


@operation(OpKind.EARLY_SET_MEMORY_ENCRYPTED)
def early_set_memory_encrypted(scene: OpContext, op: Op) -> CallOutcome:
    """The kernel's function of the page's address plus an offset."""
    return scene.guest.early_set_memory_encrypted(_gva(scene, op, op.arguments[1]), op.arguments[0])


@operation(OpKind.EARLY_SET_MEMORY_DECRYPTED)
def early_set_memory_decrypted(scene: OpContext, op: Op) -> CallOutcome:
    """The kernel's function of the page's address plus an offset."""
    return scene.guest.early_set_memory_decrypted(_gva(scene, op, op.arguments[1]), op.arguments[0])


@operation(OpKind.WRITE)
def write(scene: OpContext, op: Op) -> CallOutcome:
    """memset() through the page's mapping."""
    value, offset, size = op.arguments
    return scene.guest.memset(_gva(scene, op, offset), value, size)


@operation(OpKind.READ)
def read(scene: OpContext, op: Op) -> CallOutcome:
    """A load of 8 bytes through the page's mapping."""
    return scene.guest.load(_gva(scene, op, op.arguments[0]))


@operation(OpKind.CPU_OFFLINE)
def cpu_offline(scene: OpContext, _op: Op) -> CallOutcome:
    """The kernel's kvm_guest_cpu_offline()."""
    return scene.guest.kvm_guest_cpu_offline()


@operation(OpKind.INIT_PLATFORM)
def init_platform(scene: OpContext, op: Op) -> CallOutcome:
    """The kernel's kvm_init_platform()."""
    return scene.guest.kvm_init_platform(bool(op.arguments[0]))


@operation(OpKind.UNMAP)
def unmap(scene: OpContext, op: Op) -> CallOutcome:
    """The page's 4 KiB entry becomes a hole."""
    return CallOutcome(int(scene.guest.edit_entry(_gva(scene, op), True)))


@operation(OpKind.CLEAR_PRESENT)
def clear_present(scene: OpContext, op: Op) -> CallOutcome:
    """The page's 4 KiB entry loses PRESENT and keeps its frame."""
    return CallOutcome(int(scene.guest.edit_entry(_gva(scene, op), False)))


@operation(OpKind.STOP_CONVERSION)
def stop_conversion(scene: OpContext, _op: Op) -> CallOutcome:
    """The kernel's set_memory_enc_stop_conversion()."""
    return scene.guest.set_memory_enc_stop_conversion()


@operation(OpKind.TOUCH_CBIT)
def touch_cbit(scene: OpContext, op: Op) -> CallOutcome:
    """The C-bit of the page's entry changes, and the host does not hear of it."""
    return scene.guest.touch_cbit(_gva(scene, op), bool(op.arguments[0]))


@operation(OpKind.PSC)
def psc(scene: OpContext, op: Op) -> CallOutcome:
    """A page-state request by hand, from the page's frame on."""
    entries, entry, header, scratch, length = op.arguments
    words = _psc_words(scene, op, [entry] * entries)
    return scene.guest.raw_psc(words, header, scratch, length)


@operation(OpKind.PSC_MIXED)
def psc_mixed(scene: OpContext, op: Op) -> CallOutcome:
    """The same with a first entry that is not like the others."""
    entries, first, rest, header = op.arguments
    return scene.guest.raw_psc(_psc_words(scene, op, [first, *[rest] * entries][:entries]), header)


@operation(OpKind.RMPADJUST)
def rmpadjust(scene: OpContext, op: Op) -> CallOutcome:
    """RMPADJUST of the page's frame, at CPL 0."""
    guest = scene.guest
    sev = sev_of(guest)
    if sev is None or sev.snp is None:
        return CallOutcome(-ENOSYS)
    gfn = guest.gpa(op.region, op.page) >> PAGE_SHIFT
    try:
        done = sev.snp.adjust(guest.machine.current, gfn, False, op.arguments[0])
    except GuestFault as fault:
        return CallOutcome(None, ExceptionExit(fault.vector, fault.error_code, 0))
    return CallOutcome(done) if isinstance(done, int) else CallOutcome(None, done)


@operation(OpKind.AP_CREATION)
def ap_creation(scene: OpContext, op: Op) -> CallOutcome:
    """A request about a vCPU whose VMSA the page is."""
    sev = sev_of(scene.guest)
    if sev is None:
        return CallOutcome(-ENOSYS)
    request, apic, features = op.arguments
    gpa = scene.guest.gpa(op.region, op.page)
    return sev.create_ap_by_hand(apic << 32 | request, gpa, features)


@operation(OpKind.HYPERVISOR_LIE)
def hypervisor_lie(scene: OpContext, op: Op) -> CallOutcome:
    """The hypervisor lies from now on, until the next reset."""
    guest, (number,) = scene.guest, op.arguments
    if guest.td is not None:
        guest.td.lie = tuple(MAP_GPA_LIES)[number % len(MAP_GPA_LIES)]
    else:
        guest.lie_until_reset(tuple(LIES)[number % len(LIES)])
    return CallOutcome(0)


@operation(OpKind.HYPERVISOR_INJECT)
def hypervisor_inject(scene: OpContext, op: Op) -> CallOutcome:
    """The hypervisor injects an event into what the guest does next."""
    sev, td = sev_of(scene.guest), scene.guest.td
    vector, _code, after = op.arguments
    if td is not None:
        td.inject(vector, after)
    if sev is not None:
        sev.inject(*op.arguments)
    return CallOutcome(0)


@operation(OpKind.HYPERVISOR_PAGE)
def hypervisor_page(scene: OpContext, op: Op) -> CallOutcome:
    """The hypervisor attacks the page while the guest does what comes next."""
    sev, td = sev_of(scene.guest), scene.guest.td
    gfn = scene.guest.gpa(op.region, op.page) >> PAGE_SHIFT
    number, after = op.arguments
    if sev is not None:
        names = tuple(ATTACKS)
        sev.attack(gfn, names[number % len(names)], after)
    if td is not None:
        names = tuple(SEPT_ATTACKS)
        td.attack(gfn, names[number % len(names)], after)
    return CallOutcome(0)


@operation(OpKind.HYPERVISOR_WAIT)
def hypervisor_wait(scene: OpContext, op: Op) -> CallOutcome:
    """The hypervisor's next act counts from an event."""
    guest = scene.guest
    if sev_of(guest) is not None or guest.td is not None:
        guest.machine.wait(op.arguments[0])
    return CallOutcome(0)


@operation(OpKind.DMA_ALLOC)
def dma_alloc(scene: OpContext, op: Op) -> CallOutcome:
    """dma_alloc_coherent() into a slot."""
    return scene.slots.alloc(scene.guest, op)


@operation(OpKind.DMA_FREE)
def dma_free(scene: OpContext, op: Op) -> CallOutcome:
    """dma_free_coherent() of what the slot holds."""
    return scene.slots.free(scene.guest, op)


@operation(OpKind.DMA_ALLOC_PAGES)
def dma_alloc_pages(scene: OpContext, op: Op) -> CallOutcome:
    """A buffer as struct pages, into a slot."""
    return scene.slots.alloc_pages(scene.guest, op)


@operation(OpKind.DMA_FREE_PAGES)
def dma_free_pages(scene: OpContext, op: Op) -> CallOutcome:
    """Gives back the pages that the slot holds."""
    return scene.slots.free_pages(scene.guest, op)
