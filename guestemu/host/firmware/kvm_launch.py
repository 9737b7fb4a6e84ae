# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SEV_INIT, LAUNCH_START, LAUNCH_UPDATE_DATA, LAUNCH_MEASURE, LAUNCH_FINISH, GUEST_STATUS.

Source: arch/x86/kvm/svm/sev.c (Linux 7.1), sev_guest_init, sev_launch_*, sev_guest_status.
vCPUs have no save areas here, so LAUNCH_UPDATE_VMSA finds none to measure.
"""

from __future__ import annotations

from guestemu.abi.addresses import PAGE_MASK, PAGE_SIZE
from guestemu.abi.errno import EINVAL, EIO, ENOTTY
from guestemu.abi.sev_firmware import FW_BLOB_MAX, Command, KvmSevCommand, Status
from guestemu.host.firmware.buffers import (
    GuestStatusBuffer,
    HandleBuffer,
    LaunchMeasureBuffer,
    LaunchUpdateBuffer,
    StartBuffer,
)
from guestemu.host.firmware.kvm_buffers import kernel_buffers
from guestemu.host.firmware.kvm_params import BlobParams, GuestStatusParams, SevCmd, StartParams
from guestemu.host.firmware.kvm_vm import KernelError, KvmSevVm


def init(vm: KvmSevVm, cmd: SevCmd) -> int:
    """sev_guest_init: -EINVAL for a VM that is already a SEV guest, -EBUSY without a free ASID."""
    config = vm.host.config
    is_es = cmd.id == KvmSevCommand.ES_INIT
    if is_es and not config.has_es:
        raise KernelError(ENOTTY)
    if vm.is_sev:
        raise KernelError(EINVAL)
    vm.asid = vm.host.new_asid(is_es)
    status = vm.host.init_platform()
    cmd.error = status & 0xFFFF_FFFF
    if status is not Status.SUCCESS:
        vm.host.free_asid(vm.asid)
        return -EIO
    vm.is_sev = True
    vm.is_es = is_es
    return 0


def start(vm: KvmSevVm, cmd: SevCmd, command: Command, decommission: bool) -> int:
    """What LAUNCH_START and RECEIVE_START do after their tests: the firmware's START, an ASID for
    the new guest, its handle to user space. Nothing keeps a VM from doing it twice (E24)."""
    host = vm.host
    params = StartParams.unpack(host.copy_in(cmd.data, StartParams.layout.size))
    dh = host.copy_blob(params.dh_uaddr, params.dh_len) if params.dh_uaddr else b""
    session = (
        host.copy_blob(params.session_uaddr, params.session_len) if params.session_uaddr else b""
    )
    with kernel_buffers(vm) as memory:
        buffer = StartBuffer(params.handle, params.policy)
        buffer.pdh_address, buffer.pdh_length = memory.filled(dh), params.dh_len if dh else 0
        buffer.session_address = memory.filled(session)
        buffer.session_length = params.session_len if session else 0
        result = vm.call(cmd, cmd.sev_fd, command, buffer)
    if result:
        return result
    result = vm.bind(cmd, buffer.handle)
    if result:
        if decommission:
            vm.decommission(buffer.handle)
        return result
    params.handle = buffer.handle
    try:
        host.copy_out(cmd.data, params.pack())
    except KernelError:
        vm.unbind(buffer.handle)
        raise
    vm.handle = buffer.handle
    vm.fd = cmd.sev_fd
    return 0


def launch_start(vm: KvmSevVm, cmd: SevCmd) -> int:
    """sev_launch_start: certificate and session are optional."""
    return start(vm, cmd, Command.LAUNCH_START, True)


def launch_update_data(vm: KvmSevVm, cmd: SevCmd) -> int:
    """sev_launch_update_data: pins for write, flushes, encrypts in place. Page by page here; the
    kernel joins physically contiguous pages, with the same effect on memory and measurement."""
    host = vm.host
    params = BlobParams.unpack(host.copy_in(cmd.data, BlobParams.layout.size))
    pages = vm.pin(params.uaddr, params.len, True)
    host.flush_pages(pages)
    result = 0
    offset, left = params.uaddr & PAGE_MASK, params.len
    for page in pages:
        size = min(PAGE_SIZE - offset, left)
        buffer = LaunchUpdateBuffer(vm.handle, page + offset, size)
        result = vm.issue(cmd, Command.LAUNCH_UPDATE_DATA, buffer)
        if result:
            break
        offset, left = 0, left - size
    vm.unpin(pages)
    return result


def launch_update_vmsa(vm: KvmSevVm, _cmd: SevCmd) -> int:
    """sev_launch_update_vmsa: -ENOTTY for a VM without SEV-ES; else marks the vCPUs' state as
    protected. The save areas are not modelled, so the firmware measures none."""
    if not vm.is_es:
        return -ENOTTY
    for vcpu in vm.vcpus:
        vcpu.is_protected = True
    return 0


def launch_measure(vm: KvmSevVm, cmd: SevCmd) -> int:
    """sev_launch_measure: length 0 asks for the length (-EIO, 48 copied out)."""
    host = vm.host
    params = BlobParams.unpack(host.copy_in(cmd.data, BlobParams.layout.size))
    if params.len > FW_BLOB_MAX or (params.len and not params.uaddr):
        raise KernelError(EINVAL)
    with kernel_buffers(vm) as memory:
        address = memory.zeroed(params.len) if params.len else 0
        buffer = LaunchMeasureBuffer(vm.handle, address, params.len)
        result = vm.issue(cmd, Command.LAUNCH_MEASURE, buffer)
        if params.len:
            if result:
                return result
            host.copy_out(params.uaddr, memory.content(address, params.len))
        params.len = buffer.length
        host.copy_out(cmd.data, params.pack())
    return result


def launch_finish(vm: KvmSevVm, cmd: SevCmd) -> int:
    """sev_launch_finish."""
    return vm.issue(cmd, Command.LAUNCH_FINISH, HandleBuffer(vm.handle))


def guest_status(vm: KvmSevVm, cmd: SevCmd) -> int:
    """sev_guest_status: handle, policy and state of the firmware's guest."""
    buffer = GuestStatusBuffer(vm.handle)
    result = vm.issue(cmd, Command.GUEST_STATUS, buffer)
    if result:
        return result
    params = GuestStatusParams(buffer.handle, buffer.policy, buffer.state)
    vm.host.copy_out(cmd.data, params.pack())
    return 0
