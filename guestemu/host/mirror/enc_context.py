# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_CAP_VM_COPY_ENC_CONTEXT_FROM and KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM.

Source: arch/x86/kvm/svm/sev.c (Linux 7.1), sev_vm_copy_enc_context_from,
sev_vm_move_enc_context_from, sev_lock_two_vms, sev_check_source_vcpus, sev_migrate_from; Linux 5.15
svm_vm_copy_asid_from for the unlocked form. Facts F1 to F3, M23, M27, M30. A copy shares ASID, key
and handle; the owner frees them, and a mirror holds a reference to its owner. A move leaves
the source dead; what it had, its mirrors included, is the target's. The descriptor of /dev/sev is
not moved: sev_migrate_from has no line for it, so the target's commands need a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from guestemu.abi.errno import EBADF, EBUSY, EINVAL
from guestemu.abi.kvm_caps import (
    KVM_CAP_VM_COPY_ENC_CONTEXT_FROM,
    KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM,
)
from guestemu.host.firmware.kvm import share_context
from guestemu.host.firmware.kvm_vm import KvmSevVm, SevDefect, SevVcpu, WouldBlock

Files = Mapping[int, KvmSevVm | None]
"""A process's descriptors: a VM's, or another file (None)."""

Between = Callable[[], None]
"""What other threads do in the middle of a capability. With both VMs locked, a COPY or MOVE there
gets -EBUSY, an ioctl or the creation of a vCPU raises `WouldBlock`."""


def _nothing() -> None:
    """No other caller runs."""


def enable_cap(
    vm: KvmSevVm, cap: int, argument: int, files: Files, between: Between = _nothing
) -> int:
    """KVM_ENABLE_CAP of the two capabilities on `vm`; 0 or a negative errno (-EINVAL for others).

    `argument` is the source's descriptor.
    """
    if cap == KVM_CAP_VM_COPY_ENC_CONTEXT_FROM:
        return copy_enc_context_from(vm, argument, files, between)
    if cap == KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM:
        return move_enc_context_from(vm, argument, files, between)
    return -EINVAL


def copy_enc_context_from(
    vm: KvmSevVm, source_fd: int, files: Files, between: Between = _nothing
) -> int:
    """Makes `vm` a mirror of the VM behind `source_fd` (F1).

    -EBADF: no VM's descriptor. -EINVAL: the same VM, a target with SEV or with vCPUs, a source
    without SEV or that mirrors itself, or with SNP. -EBUSY: a copy or move of either is under way.
    """
    source = files.get(source_fd)
    if source is None:
        return -EBADF
    if SevDefect.MIRROR_SOURCE_UNLOCKED in vm.host.config.defects:
        return _copy_unlocked(vm, source, between)
    result = _lock_two(vm, source)
    if result:
        return result
    try:
        between()
        if vm.is_sev or not source.is_sev or source.owner is not None or vm.created_vcpus:
            return -EINVAL
        if source.is_snp and SevDefect.MIRROR_OF_SNP not in vm.host.config.defects:
            return -EINVAL
        share_context(vm, source)
        return 0
    finally:
        _unlock_two(vm, source)


def _copy_unlocked(vm: KvmSevVm, source: KvmSevVm, between: Between) -> int:
    """Linux 5.15 (F2, M27): what the source was before `between` is what the target gets."""
    if not source.is_sev or source.owner is not None or source is vm:
        return -EINVAL
    asid, handle, fd, is_es = source.asid, source.handle, source.fd, source.is_es
    source.users += 1
    between()
    if vm.is_sev or vm.created_vcpus:
        source.put()
        return -EINVAL
    share_context(vm, source)
    source.users -= 1
    vm.is_sev = True
    vm.asid, vm.handle, vm.fd, vm.is_es = asid, handle, fd, is_es
    return 0


def move_enc_context_from(
    vm: KvmSevVm, source_fd: int, files: Files, between: Between = _nothing
) -> int:
    """Moves the context of the VM behind `source_fd` to `vm`: intra-host migration (F3).

    Errors as those of the copy, but a mirror may be moved, and the target may have vCPUs; for
    SEV-ES as many as the source (-EINVAL), all of the source's measured (-EINVAL). -EBUSY while a
    vCPU of either is being created.
    """
    source = files.get(source_fd)
    if source is None:
        return -EBADF
    result = _lock_two(vm, source)
    if result:
        return result
    try:
        between()
        if vm.is_sev or not source.is_sev:
            return -EINVAL
        if source.is_snp and SevDefect.MIRROR_OF_SNP not in vm.host.config.defects:
            return -EINVAL
        result = _check_vcpus(vm, source)
        if result:
            return result
        _migrate(vm, source)
        source.is_dead = True
        return 0
    finally:
        _unlock_two(vm, source)


def begin_create_vcpu(vm: KvmSevVm) -> SevVcpu:
    """KVM_CREATE_VCPU up to the point where the vCPU is counted and made, but not online.

    In a SEV-ES VM it gets a save area. `WouldBlock` while the VM is locked.
    """
    if vm.is_locked:
        raise WouldBlock
    vm.created_vcpus += 1
    return SevVcpu(has_vmsa=vm.is_es)


def finish_create_vcpu(vm: KvmSevVm, vcpu: SevVcpu) -> None:
    """The rest of KVM_CREATE_VCPU: `vcpu` is online. `WouldBlock` while the VM is locked."""
    if vm.is_locked:
        raise WouldBlock
    vm.vcpus.append(vcpu)


def _lock_two(target: KvmSevVm, source: KvmSevVm) -> int:
    if target is source:
        return -EINVAL
    if target.is_migrating or source.is_migrating:
        return -EBUSY
    for vm in (target, source):
        vm.is_migrating = vm.is_locked = True
    return 0


def _unlock_two(target: KvmSevVm, source: KvmSevVm) -> None:
    for vm in (target, source):
        vm.is_migrating = vm.is_locked = False


def _check_vcpus(target: KvmSevVm, source: KvmSevVm) -> int:
    if SevDefect.MOVE_DURING_VCPU_CREATION not in target.host.config.defects and any(
        vm.created_vcpus != len(vm.vcpus) for vm in (target, source)
    ):
        return -EBUSY
    if not source.is_es:
        return 0
    if len(source.vcpus) != len(target.vcpus):
        return -EINVAL
    return 0 if all(vcpu.is_protected for vcpu in source.vcpus) else -EINVAL


def _migrate(target: KvmSevVm, source: KvmSevVm) -> None:
    target.is_sev, target.is_es, target.is_snp = True, source.is_es, source.is_snp
    target.asid, target.handle = source.asid, source.handle
    target.pages_locked, target.regions = source.pages_locked, source.regions
    target.mirrors, target.owner = source.mirrors, source.owner
    if source.is_es:
        for new, old in zip(target.vcpus, source.vcpus, strict=True):
            new.has_vmsa, new.is_protected = old.has_vmsa, old.is_protected
            old.has_vmsa = old.is_protected = False
    source.is_sev = source.is_es = source.is_snp = False
    source.asid = source.handle = source.pages_locked = 0
    source.regions, source.mirrors, source.owner = [], [], None
    for mirror in target.mirrors:
        target.users += 1
        mirror.owner = target
        source.put()
    if target.owner is not None:
        target.owner.mirrors.remove(source)
        target.owner.mirrors.append(target)
