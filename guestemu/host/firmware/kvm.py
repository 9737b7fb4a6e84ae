# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_MEMORY_ENCRYPT_OP, KVM_MEMORY_ENCRYPT_REG_REGION and _UNREG_REGION: what user space calls.

Results are 0 or a negative errno; a firmware error is -EIO with the code in the command's `error`.
Source: arch/x86/kvm/svm/sev.c (Linux 7.1), sev_mem_enc_ioctl, sev_mem_enc_register_region,
sev_mem_enc_unregister_region; facts E20, E21, E28. Not modelled, and refused with -EINVAL as an
unknown id: LAUNCH_SECRET, GET_ATTESTATION_REPORT, CERT_EXPORT, INIT2, all SNP commands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from guestemu.abi.errno import EFAULT, EINVAL, EIO, ENOTTY, EPERM
from guestemu.abi.sev_firmware import KVM_SEV_SNP_FIRST, KvmSevCommand
from guestemu.host.firmware import kvm_debug, kvm_launch, kvm_migrate
from guestemu.host.firmware.kvm_memory import UserFault
from guestemu.host.firmware.kvm_params import SevCmd
from guestemu.host.firmware.kvm_vm import (
    KernelError,
    KvmSevVm,
    PinnedRange,
    SevDefect,
    WouldBlock,
)

_Handler = Callable[[KvmSevVm, SevCmd], int]
_ID = KvmSevCommand

_HANDLERS: Final[Mapping[int, _Handler]] = {
    _ID.INIT: kvm_launch.init,
    _ID.ES_INIT: kvm_launch.init,
    _ID.LAUNCH_START: kvm_launch.launch_start,
    _ID.LAUNCH_UPDATE_DATA: kvm_launch.launch_update_data,
    _ID.LAUNCH_UPDATE_VMSA: kvm_launch.launch_update_vmsa,
    _ID.LAUNCH_MEASURE: kvm_launch.launch_measure,
    _ID.LAUNCH_FINISH: kvm_launch.launch_finish,
    _ID.SEND_START: kvm_migrate.send_start,
    _ID.SEND_UPDATE_DATA: kvm_migrate.send_update_data,
    _ID.SEND_FINISH: kvm_migrate.send_finish,
    _ID.SEND_CANCEL: kvm_migrate.send_cancel,
    _ID.RECEIVE_START: kvm_migrate.receive_start,
    _ID.RECEIVE_UPDATE_DATA: kvm_migrate.receive_update_data,
    _ID.RECEIVE_FINISH: kvm_migrate.receive_finish,
    _ID.GUEST_STATUS: kvm_launch.guest_status,
    _ID.DBG_DECRYPT: kvm_debug.dbg_decrypt,
    _ID.DBG_ENCRYPT: kvm_debug.dbg_encrypt,
}

MIRROR_COMMANDS: Final = frozenset(
    {_ID.LAUNCH_UPDATE_VMSA, _ID.GUEST_STATUS, _ID.DBG_DECRYPT, _ID.DBG_ENCRYPT}
)
"""What a mirror VM may issue: is_cmd_allowed_from_mirror (E20)."""

_NEEDS_NO_SEV: Final = frozenset({_ID.INIT, _ID.ES_INIT})


def memory_encrypt_op(vm: KvmSevVm, argp: int) -> int:
    """KVM_MEMORY_ENCRYPT_OP with a struct kvm_sev_cmd at host virtual address `argp`, in the order
    of E20: SEV off -ENOTTY, NULL 0, copy-in -EFAULT, mirror -EINVAL, SNP VM -EPERM, unknown id
    -EINVAL. The structure is copied back except after the last three. -EIO for a VM whose context
    was moved away (F3). `WouldBlock` while another caller holds the VM's lock."""
    host = vm.host
    if vm.is_dead:
        return -EIO
    if not host.config.has_sev:
        return -ENOTTY
    if not argp:
        return 0
    try:
        cmd = SevCmd.unpack(host.user.read(argp, SevCmd.layout.size))
    except UserFault:
        return -EFAULT
    if vm.is_locked:
        raise WouldBlock
    if vm.owner is not None and not mirror_may_issue(vm, cmd.id):
        return -EINVAL
    if vm.is_snp and cmd.id < KVM_SEV_SNP_FIRST:
        return -EPERM
    handler = _HANDLERS.get(cmd.id)
    if handler is None:
        return -EINVAL
    result = _run(vm, cmd, handler)
    try:
        host.user.write(argp, cmd.pack())
    except UserFault:
        return -EFAULT
    return result


def mirror_may_issue(vm: KvmSevVm, command: int) -> bool:
    """is_cmd_allowed_from_mirror, with M28's two defects."""
    defects = vm.host.config.defects
    if SevDefect.MIRROR_NO_COMMANDS in defects:
        return False
    return SevDefect.MIRROR_ALL_COMMANDS in defects or command in MIRROR_COMMANDS


def _run(vm: KvmSevVm, cmd: SevCmd, handler: _Handler) -> int:
    """The handler behind the test whether the VM is a SEV VM at all (E21)."""
    if not vm.is_sev and cmd.id not in _NEEDS_NO_SEV:
        return -EINVAL if cmd.id == _ID.RECEIVE_UPDATE_DATA else -ENOTTY
    try:
        return handler(vm, cmd)
    except KernelError as error:
        return -error.errno


def register_region(vm: KvmSevVm, addr: int, size: int) -> int:
    """KVM_MEMORY_ENCRYPT_REG_REGION (E28): pins [addr, addr + size) for the VM's life."""
    if vm.is_dead:
        return -EIO
    if not vm.is_sev:
        return -ENOTTY
    if vm.owner is not None:
        return -EINVAL
    if vm.is_locked:
        raise WouldBlock
    try:
        pages = vm.pin(addr, size, True)
    except KernelError as error:
        return -error.errno
    vm.regions.append(PinnedRange(addr, size, pages))
    vm.host.flush_pages(pages)
    return 0


def unregister_region(vm: KvmSevVm, addr: int, size: int) -> int:
    """KVM_MEMORY_ENCRYPT_UNREG_REGION (E28): only exactly what was registered; writes all caches
    back, then unpins."""
    if vm.is_dead:
        return -EIO
    if vm.owner is not None:
        return -EINVAL
    if vm.is_locked:
        raise WouldBlock
    if not vm.is_sev:
        return -ENOTTY
    for region in vm.regions:
        if (region.uaddr, region.size) == (addr, size):
            vm.host.wbinvd()
            vm.unpin(region.pages)
            vm.regions.remove(region)
            return 0
    return -EINVAL


def mirror_of(owner: KvmSevVm) -> KvmSevVm:
    """A new VM that shares `owner`'s context, as KVM_CAP_VM_COPY_ENC_CONTEXT_FROM makes one (F1);
    the capability's tests are in guestemu.host.mirror.enc_context."""
    vm = KvmSevVm(owner.host)
    share_context(vm, owner)
    return vm


def share_context(mirror: KvmSevVm, owner: KvmSevVm) -> None:
    """Makes `mirror` one of `owner`'s: ASID, handle, descriptor and kind are the owner's, and a
    reference keeps the owner."""
    owner.users += 1
    owner.mirrors.append(mirror)
    mirror.owner = owner
    mirror.is_sev, mirror.is_es, mirror.is_snp = owner.is_sev, owner.is_es, owner.is_snp
    mirror.asid, mirror.handle, mirror.fd = owner.asid, owner.handle, owner.fd
