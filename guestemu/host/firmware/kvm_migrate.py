# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SEV_SEND_* and KVM_SEV_RECEIVE_*, in their order of tests.

Source: arch/x86/kvm/svm/sev.c (Linux 7.1), sev_send_start, sev_send_update_data, sev_receive_start,
sev_receive_update_data; facts E22 to E26. The VMSA forms do not exist in KVM.
"""

from __future__ import annotations

from guestemu.abi.addresses import PAGE_MASK, PAGE_SIZE, U32_MASK
from guestemu.abi.errno import EINVAL
from guestemu.abi.sev_firmware import FW_BLOB_MAX, Command
from guestemu.host.firmware.buffers import HandleBuffer, SendStartBuffer, UpdateBuffer
from guestemu.host.firmware.kvm_buffers import kernel_buffers
from guestemu.host.firmware.kvm_launch import start
from guestemu.host.firmware.kvm_params import (
    SendStartParams,
    SevCmd,
    StartParams,
    UpdateParams,
)
from guestemu.host.firmware.kvm_vm import KernelError, KvmSevVm, SevDefect


def send_start(vm: KvmSevVm, cmd: SevCmd) -> int:
    """sev_send_start (E22): session_len 0 asks for the length; all three certificate blobs are
    mandatory, whatever the policy needs."""
    host = vm.host
    params = SendStartParams.unpack(host.copy_in(cmd.data, SendStartParams.layout.size))
    if not params.session_len:
        query = SendStartBuffer(vm.handle)
        result = vm.issue(cmd, Command.SEND_START, query)
        params.session_len = query.session_length
        host.copy_out(cmd.data, params.pack())
        return result
    is_named = params.pdh_cert_uaddr and params.pdh_cert_len and params.session_uaddr
    if not is_named or params.session_len > FW_BLOB_MAX:
        raise KernelError(EINVAL)
    pdh = host.copy_blob(params.pdh_cert_uaddr, params.pdh_cert_len)
    platform = host.copy_blob(params.plat_certs_uaddr, params.plat_certs_len)
    amd = host.copy_blob(params.amd_certs_uaddr, params.amd_certs_len)
    with kernel_buffers(vm) as memory:
        session = memory.zeroed(params.session_len)
        buffer = SendStartBuffer(
            handle=vm.handle,
            pdh_address=memory.filled(pdh),
            pdh_length=len(pdh),
            platform_address=memory.filled(platform),
            platform_length=len(platform),
            amd_address=memory.filled(amd),
            amd_length=len(amd),
            session_address=session,
            session_length=params.session_len,
        )
        result = vm.issue(cmd, Command.SEND_START, buffer)
        if not result:
            host.copy_out(params.session_uaddr, memory.content(session, params.session_len))
    params.policy = buffer.policy
    params.session_len = buffer.session_length
    host.copy_out(cmd.data, params.pack())
    return result


def _crosses_page(vm: KvmSevVm, params: UpdateParams) -> bool:
    """The page-cross test; before its repair the sum wrapped at 32 bits (M13)."""
    offset = params.guest_uaddr & PAGE_MASK
    end = params.guest_len + offset
    if SevDefect.LENGTH_OVERFLOW in vm.host.config.defects:
        return end & U32_MASK > PAGE_SIZE
    return params.guest_len > PAGE_SIZE or end > PAGE_SIZE


def send_update_data(vm: KvmSevVm, cmd: SevCmd) -> int:
    """sev_send_update_data (E23): the buffers have the caller's lengths, without an upper bound of
    KVM's own, and are copied out in full."""
    host = vm.host
    params = UpdateParams.unpack(host.copy_in(cmd.data, UpdateParams.layout.size))
    if not params.trans_len or not params.hdr_len:
        query = UpdateBuffer(vm.handle)
        result = vm.issue(cmd, Command.SEND_UPDATE_DATA, query)
        params.hdr_len = query.header_length
        params.trans_len = query.transport_length
        host.copy_out(cmd.data, params.pack())
        return result
    is_named = params.trans_uaddr and params.guest_uaddr and params.guest_len and params.hdr_uaddr
    if not is_named or _crosses_page(vm, params):
        raise KernelError(EINVAL)
    pages = vm.pin(params.guest_uaddr & ~PAGE_MASK, PAGE_SIZE, False)
    try:
        return _send_pinned(vm, cmd, params, pages[0])
    finally:
        vm.unpin(pages)


def _send_pinned(vm: KvmSevVm, cmd: SevCmd, params: UpdateParams, page: int) -> int:
    zero = SevDefect.UNINITIALISED_TAIL not in vm.host.config.defects
    with kernel_buffers(vm) as memory:
        header = memory.allocated(params.hdr_len, zero)
        transport = memory.allocated(params.trans_len, zero)
        buffer = UpdateBuffer(
            handle=vm.handle,
            header_address=header,
            header_length=params.hdr_len,
            guest_address=_encrypted(vm, page, params),
            guest_length=params.guest_len,
            transport_address=transport,
            transport_length=params.trans_len,
        )
        result = vm.issue(cmd, Command.SEND_UPDATE_DATA, buffer)
        if not result:
            vm.host.copy_out(params.trans_uaddr, memory.content(transport, params.trans_len))
            vm.host.copy_out(params.hdr_uaddr, memory.content(header, params.hdr_len))
    return result


def _encrypted(vm: KvmSevVm, page: int, params: UpdateParams) -> int:
    """The guest address as the firmware gets it: system-physical, with the C-bit."""
    return page + (params.guest_uaddr & PAGE_MASK) | vm.host.platform.config.cbit_mask


def send_finish(vm: KvmSevVm, cmd: SevCmd) -> int:
    """sev_send_finish."""
    return vm.issue(cmd, Command.SEND_FINISH, HandleBuffer(vm.handle))


def send_cancel(vm: KvmSevVm, cmd: SevCmd) -> int:
    """sev_send_cancel."""
    return vm.issue(cmd, Command.SEND_CANCEL, HandleBuffer(vm.handle))


def receive_start(vm: KvmSevVm, cmd: SevCmd) -> int:
    """sev_receive_start (E24): all addresses and lengths are required."""
    params = StartParams.unpack(vm.host.copy_in(cmd.data, StartParams.layout.size))
    has_dh = params.dh_uaddr and params.dh_len
    if not has_dh or not params.session_uaddr or not params.session_len:
        raise KernelError(EINVAL)
    decommissions = SevDefect.MISSING_DECOMMISSION not in vm.host.config.defects
    return start(vm, cmd, Command.RECEIVE_START, decommissions)


def receive_update_data(vm: KvmSevVm, cmd: SevCmd) -> int:
    """sev_receive_update_data (E25): header and packet of at most 16 KiB each, the target page
    pinned for write and flushed before the firmware writes it."""
    host = vm.host
    params = UpdateParams.unpack(host.copy_in(cmd.data, UpdateParams.layout.size))
    is_named = params.hdr_uaddr and params.guest_uaddr and params.trans_uaddr
    is_sized = params.hdr_len and params.guest_len and params.trans_len
    if not is_named or not is_sized or _crosses_page(vm, params):
        raise KernelError(EINVAL)
    header = host.copy_blob(params.hdr_uaddr, params.hdr_len)
    packet = host.copy_blob(params.trans_uaddr, params.trans_len)
    for_write = SevDefect.READ_ONLY_PIN not in host.config.defects
    pages = vm.pin(params.guest_uaddr & ~PAGE_MASK, PAGE_SIZE, for_write)
    host.flush_pages(pages)
    try:
        with kernel_buffers(vm) as memory:
            buffer = UpdateBuffer(
                handle=vm.handle,
                header_address=memory.filled(header),
                header_length=params.hdr_len,
                guest_address=_encrypted(vm, pages[0], params),
                guest_length=params.guest_len,
                transport_address=memory.filled(packet),
                transport_length=params.trans_len,
            )
            return vm.issue(cmd, Command.RECEIVE_UPDATE_DATA, buffer)
    finally:
        vm.unpin(pages)


def receive_finish(vm: KvmSevVm, cmd: SevCmd) -> int:
    """sev_receive_finish."""
    return vm.issue(cmd, Command.RECEIVE_FINISH, HandleBuffer(vm.handle))
