# SPDX-License-Identifier: GPL-2.0-or-later
"""The firmware's host with one behaviour changed: historic switches of KVM's model, and mutations
of commands. The repaired form is `SevFirmwareHost` itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import msgspec

from guestemu.abi.addresses import PAGE_MASK, PAGE_SIZE
from guestemu.abi.errno import EINVAL, EIO
from guestemu.abi.sev_firmware import KvmSevCommand, Status
from guestemu.host.firmware.host import SevFirmwareHost
from guestemu.host.firmware.kvm import MIRROR_COMMANDS, memory_encrypt_op
from guestemu.host.firmware.kvm_params import DebugParams, SevCmd, UpdateParams
from guestemu.host.firmware.kvm_vm import KvmSevVm, SevDefect
from guestemu.host.firmware.world import CMD, DATA, SevWorld

_BLOCK = 16

_ID = KvmSevCommand


class MutatedWorld(SevWorld):
    """A world whose ioctls pass through `mutate`, which may change the structures in user memory
    before the real one runs, or answer instead of it (a result) or not (None)."""

    def mutate(self, vm: KvmSevVm, cmd: SevCmd) -> int | None:
        """The bug."""
        raise NotImplementedError

    def memory_encrypt_op(self, vm: KvmSevVm) -> int:
        """See `SevWorld`."""
        cmd = SevCmd.unpack(self.user.read(CMD, SevCmd.layout.size))
        result = self.mutate(vm, cmd)
        return memory_encrypt_op(vm, CMD) if result is None else result

    def fail(self, cmd: SevCmd, status: Status) -> int:
        """-EIO with a firmware status."""
        cmd.error = status
        self.user.write(CMD, cmd.pack())
        return -EIO

    def update_params(self) -> UpdateParams:
        """The structure of SEND_UPDATE_DATA or RECEIVE_UPDATE_DATA in user memory."""
        return UpdateParams.unpack(self.user.read(DATA, UpdateParams.layout.size))


class WarningWorld(SevWorld):
    """Registration of a region has a WARN on absurd sizes that user space can reach (M25)."""

    def register_region(self, vm: KvmSevVm, address: int, size: int) -> int:
        """See `SevWorld`."""
        result = super().register_region(vm, address, size)
        if vm.owner is None and size >> 43:
            self.warnings.append(f"a region of {size:#x} bytes")
        return result


class OneBlockWorld(MutatedWorld):
    """DBG_DECRYPT of an unaligned range decrypts one block although the range touches two (M26)."""

    def mutate(self, vm: KvmSevVm, cmd: SevCmd) -> int | None:
        """Only what the first block holds is copied out."""
        if cmd.id != _ID.DBG_DECRYPT:
            return None
        params = DebugParams.unpack(self.user.read(DATA, DebugParams.layout.size))
        rest = _BLOCK - params.src_uaddr % _BLOCK
        if params.src_uaddr % _BLOCK and rest < params.len < _BLOCK:
            self.user.write(DATA, msgspec.structs.replace(params, len=rest).pack())
        return None


class WideMirrorWorld(MutatedWorld):
    """A mirror VM may issue the commands that send its owner away (M28)."""

    def mutate(self, vm: KvmSevVm, cmd: SevCmd) -> int | None:
        """Sends are the owner's."""
        if vm.owner is None or cmd.id in MIRROR_COMMANDS:
            return None
        is_send = cmd.id in (_ID.SEND_START, _ID.SEND_FINISH, _ID.SEND_CANCEL)
        return memory_encrypt_op(vm.owner, CMD) if is_send else None


class NarrowMirrorWorld(MutatedWorld):
    """A mirror VM may issue no command at all (M28)."""

    def mutate(self, vm: KvmSevVm, cmd: SevCmd) -> int | None:
        """Every command is unknown."""
        return None if vm.owner is None else -EINVAL


class SwappedEndsWorld(MutatedWorld):
    """SEND_CANCEL leads to SENT and SEND_FINISH to RUNNING (M69)."""

    def mutate(self, vm: KvmSevVm, cmd: SevCmd) -> int | None:
        """The two commands change places."""
        swapped = {_ID.SEND_CANCEL: _ID.SEND_FINISH, _ID.SEND_FINISH: _ID.SEND_CANCEL}
        for command, other in swapped.items():
            if cmd.id == command:
                self.user.write(CMD, msgspec.structs.replace(cmd, id=int(other)).pack())
                break
        return None


class LateStateWorld(MutatedWorld):
    """SEND_UPDATE_DATA looks at the lengths before the guest's state (M69)."""

    def mutate(self, vm: KvmSevVm, cmd: SevCmd) -> int | None:
        """A length that is not a multiple of 16 is answered first."""
        if cmd.id != _ID.SEND_UPDATE_DATA or vm.owner is not None or not vm.handle:
            return None
        params = self.update_params()
        end = (params.guest_uaddr & PAGE_MASK) + params.guest_len
        if not params.trans_len or not params.guest_len or end > PAGE_SIZE:
            return None
        return self.fail(cmd, Status.INVALID_LEN) if params.guest_len % _BLOCK else None


class LaxLengthWorld(MutatedWorld):
    """RECEIVE_UPDATE_DATA accepts a packet longer than the guest's memory asked for (M70)."""

    def mutate(self, vm: KvmSevVm, cmd: SevCmd) -> int | None:
        """guest_len is taken from the packet."""
        if cmd.id != _ID.RECEIVE_UPDATE_DATA or vm.owner is not None:
            return None
        params = self.update_params()
        end = (params.guest_uaddr & PAGE_MASK) + params.trans_len
        if params.guest_len and params.trans_len > 0 and end <= PAGE_SIZE:
            params.guest_len = params.trans_len
            self.user.write(DATA, params.pack())
        return None


def firmware_host(make: Callable[[], SevWorld]) -> Callable[[], SevFirmwareHost]:
    """Hosts whose VMs are in the world that `make` gives."""

    class Host(SevFirmwareHost):
        """A host with a planted bug."""

        name: ClassVar[str] = "zoo-sev-firmware"

        def make_world(self) -> SevWorld:
            """See `SevFirmwareHost`."""
            return make()

    return Host


def defective_host(defect: SevDefect) -> Callable[[], SevFirmwareHost]:
    """Hosts whose KVM has a historic defect."""
    return firmware_host(lambda: SevWorld(defects=frozenset({defect})))
