# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SEV_DBG_DECRYPT and KVM_SEV_DBG_ENCRYPT: any range, although the firmware wants blocks of 16.

The form after "Rewrite logic to {de,en}crypt memory for debug" (2026, M26): page by page, the
enclosing blocks go through a kernel buffer, and encryption reads them first.
"""

from __future__ import annotations

from guestemu.abi.addresses import PAGE_MASK, PAGE_SIZE, U64_MASK
from guestemu.abi.errno import EINVAL
from guestemu.abi.sev_firmware import Command
from guestemu.host.firmware.buffers import DebugBuffer
from guestemu.host.firmware.kvm_buffers import KernelBuffers, kernel_buffers
from guestemu.host.firmware.kvm_params import DebugParams, SevCmd
from guestemu.host.firmware.kvm_vm import KernelError, KvmSevVm


def dbg_decrypt(vm: KvmSevVm, cmd: SevCmd) -> int:
    """sev_dbg_crypt: guest memory at src_uaddr, plaintext to dst_uaddr."""
    return _debug(vm, cmd, False)


def dbg_encrypt(vm: KvmSevVm, cmd: SevCmd) -> int:
    """sev_dbg_crypt: plaintext at src_uaddr, guest memory at dst_uaddr."""
    return _debug(vm, cmd, True)


def _debug(vm: KvmSevVm, cmd: SevCmd, encrypt: bool) -> int:
    """-EINVAL for an empty or wrapping range or no target."""
    params = DebugParams.unpack(vm.host.copy_in(cmd.data, DebugParams.layout.size))
    is_wrapped = params.src_uaddr + params.len > U64_MASK
    if not params.len or is_wrapped or not params.dst_uaddr:
        raise KernelError(EINVAL)
    guest, plain = params.src_uaddr, params.dst_uaddr
    if encrypt:
        guest, plain = plain, guest
    done = 0
    while done < params.len:
        at = guest + done
        size = min(PAGE_SIZE - (at & PAGE_MASK), params.len - done)
        result = _piece(vm, cmd, (at, plain + done, size), encrypt)
        if result:
            return result
        done += size
    return 0


def _piece(vm: KvmSevVm, cmd: SevCmd, place: tuple[int, int, int], encrypt: bool) -> int:
    """One piece within a guest page: (guest address, plaintext address, size)."""
    guest, plain, size = place
    pages = vm.pin(guest, size, encrypt)
    try:
        with kernel_buffers(vm) as memory:
            return _bounce(vm, cmd, memory, (pages[0], guest & PAGE_MASK, plain, size), encrypt)
    finally:
        vm.unpin(pages)


def _bounce(
    vm: KvmSevVm,
    cmd: SevCmd,
    memory: KernelBuffers,
    place: tuple[int, int, int, int],
    encrypt: bool,
) -> int:
    page, offset, plain, size = place
    first = offset & ~0xF
    length = (offset + size + 0xF & ~0xF) - first
    bounce = memory.zeroed(length)
    within = offset - first
    buffer = DebugBuffer(vm.handle, page + first, bounce, length)
    result = vm.issue(cmd, Command.DBG_DECRYPT, buffer)
    if result:
        return result
    if not encrypt:
        vm.host.copy_out(plain, memory.content(bounce + within, size))
        return 0
    vm.host.platform.memory.write(bounce + within, vm.host.copy_in(plain, size))
    return vm.issue(cmd, Command.DBG_ENCRYPT, DebugBuffer(vm.handle, bounce, page + first, length))
