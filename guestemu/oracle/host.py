# SPDX-License-Identifier: GPL-2.0-or-later
"""`--host kvm:KERNEL`: a host whose KVM is that of a real kernel.

The guest's exits go to a VM of the machine under test, one at a time; what KVM hands to user space
there is answered by the reference user space here. The VM has 2 MiB of RAM of its own: that matters
only to MSRs that hold addresses.
"""

from __future__ import annotations

import atexit
from typing import ClassVar, Final

from guestemu.abi.errors import HostFailedError, InputError
from guestemu.conformance.recordings.kernel_choice import choose_kernel
from guestemu.host.base import GuestFault, Hypercall, VcpuAccess
from guestemu.host.kvm.host import PV_FEATURES
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.host.kvm.run import KvmRun
from guestemu.host.kvm.uapi import (
    KVM_EXIT_HYPERCALL_VALID_MASK,
    KVM_MSR_EXIT_REASON_FILTER,
)
from guestemu.host.kvm.vmcall import VMMCALL
from guestemu.oracle import wire
from guestemu.oracle.image import find_kernel
from guestemu.oracle.live import LiveKvm, Replies
from guestemu.oracle.qemu import MachineEnded
from guestemu.oracle.wire import ConfigFlag, End, WireOp

PREFIX: Final = "kvm:"
_DENY_MIGRATION_CONTROL: Final = 6
_LEAF: Final = 2
_WRITE_RET: Final = 0
_LONG64, _COMPAT32 = 0, 1
_NO_ERROR_CODE: Final = -1
_NUMBERS: Final = (
    int(ConfigFlag.EXIT | ConfigFlag.USER_MSR),
    _LEAF,
    _DENY_MIGRATION_CONTROL,
    1,
    0,
    PV_FEATURES,
    KVM_MSR_EXIT_REASON_FILTER,
    KVM_EXIT_HYPERCALL_VALID_MASK,
    0,
)
_CONFIG: Final = wire.CONFIG.pack(*_NUMBERS)

_machines: dict[str, LiveKvm] = {}
"""One machine for a kernel, for as long as this process lives."""


def _machine(name: str) -> LiveKvm:
    if name not in _machines:
        _machines[name] = machine = LiveKvm(find_kernel(name))
        atexit.register(machine.close)
    return _machines[name]


def load_live(spec: str, plugin: str, switches: tuple[str, ...] = ()) -> LiveKvmHost:
    """The host of kvm:KERNEL. `plugin` is the same, as `permission` returned it: a program cannot
    name one. Raises `InputError` without it and for switches."""
    if not plugin:
        raise InputError(f"host {spec}: starts a virtual machine, which only --host can ask for")
    if switches:
        raise InputError(f"host {spec}: a real KVM has no switches")
    name = spec.removeprefix(PREFIX)
    if not name:
        raise InputError(f"host {spec}: nothing after ':'; write kvm:6.12 or kvm:FILE.deb")
    return LiveKvmHost(name)


class LiveKvmHost(MapGpaRangeHost):
    """The KVM of kernel `name` under the reference user space.

    Raises `MissingError` where it cannot be run, `MachineEnded` where it does not come up.
    """

    name: ClassVar[str] = "kvm"
    summary: ClassVar[str] = "the KVM of a real kernel under QEMU, kvm:KERNEL"

    def __init__(self, name: str) -> None:
        self._live = _machine(name)
        self._live.set_config(0, _CONFIG)
        self._is_new = True
        super().__init__()
        self.kernel = choose_kernel(self._live.machine.release, name).kernel

    def reset(self, frames: int) -> None:
        """A new VM, made with the next exit."""
        super().reset(frames)
        self._is_new = True

    def restore(self, frames: int) -> None:
        """The same VM unless a write to an MSR changed it."""
        has_changed = self._is_new
        super().restore(frames)
        self._is_new = has_changed

    def _ask(self, op: WireOp, place: tuple[int, int], words: tuple[int, ...]) -> Replies:
        flags = wire.FRESH if self._is_new else 0
        mode, cpl = place
        head = (int(op), mode, cpl, 0, wire.PAUSE, flags, 0, 0, 0)
        return self._run(wire.REQUEST.pack(*head, *words, 0))

    def _resume(self, op: WireOp, answer: int, error: int = 0) -> Replies:
        head = (int(WireOp.RESUME), 0, 0, 0, _WRITE_RET, 0, 0, error, int(op))
        return self._run(wire.REQUEST.pack(*head, *(0,) * 5, answer))

    def _run(self, request: bytes) -> Replies:
        try:
            replies = self._live.run([request])
        except MachineEnded as error:
            self._is_new = True
            raise HostFailedError(f"the real KVM: {error}") from None
        self._is_new = False
        if replies.splats:
            raise HostFailedError(f"the real KVM says: {replies.splats[0]}")
        return replies

    def hypercall(self, call: Hypercall) -> int:
        """The instruction on the real KVM; its exit, if it has one, in the reference user space."""
        op = WireOp.VMCALL if call.is_vmcall else WireOp.VMMCALL
        place = (_LONG64 if call.is_64bit else _COMPAT32, call.cpl)
        replies = self._ask(op, place, (call.nr, call.a0, call.a1, call.a2, call.a3))
        values = wire.REPLY.unpack_from(replies[0])
        if values[0] == End.PAUSED:
            run = self.kvm.run
            _fill(run, replies)
            self._user_space.hypercall_exit(run, call.vcpu)
            replies = self._resume(op, run.hypercall.ret)
            values = wire.REPLY.unpack_from(replies[0])
        self._check(values)
        if any(values[15]):
            call.vcpu.patch_code(VMMCALL)
        return int(values[7])

    def _check(self, values: tuple[int, ...]) -> None:
        """Raises `GuestFault` for an exception, `HostFailedError` for an unknown end."""
        if values[0] == End.EXCEPTION:
            code = values[11]
            raise GuestFault(values[2], None if code == _NO_ERROR_CODE else code & 0xFFFFFFFF)
        if values[0] != End.DONE:
            raise HostFailedError(
                f"the real KVM ended a step with outcome {values[0]}, exit {values[5]}"
            )

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        """RDMSR on the real KVM."""
        replies = self._ask(WireOp.RDMSR, _place(vcpu), (0, 0, index, 0, 0))
        values = wire.REPLY.unpack_from(replies[0])
        if values[0] == End.PAUSED:
            run = self.kvm.run
            _fill_msr(run, replies)
            self._user_space.rdmsr_exit(run, vcpu)
            replies = self._resume(WireOp.RDMSR, run.msr.data, run.msr.error)
            values = wire.REPLY.unpack_from(replies[0])
        self._check(values)
        return int(values[7] | values[8] << 32)

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """WRMSR on the real KVM."""
        replies = self._ask(WireOp.WRMSR, _place(vcpu), (value, 0, index, 0, 0))
        values = wire.REPLY.unpack_from(replies[0])
        if values[0] == End.PAUSED:
            run = self.kvm.run
            _fill_msr(run, replies)
            self._user_space.wrmsr_exit(run, vcpu)
            replies = self._resume(WireOp.WRMSR, 0, run.msr.error)
            values = wire.REPLY.unpack_from(replies[0])
        else:
            self._is_new = True
        self._check(values)


def _place(vcpu: VcpuAccess) -> tuple[int, int]:
    return (_LONG64 if vcpu.is_64bit else _COMPAT32, vcpu.cpl)


def _fill(run: KvmRun, replies: Replies) -> None:
    """`run->hypercall` as the real KVM left it at the exit."""
    _, _, nr, *words = wire.EVENT.unpack_from(replies[0], wire.REPLY.size)
    request = run.hypercall
    request.nr = nr
    request.args[:] = words[:6]
    request.ret, request.longmode, request.pad = words[6:9]


def _fill_msr(run: KvmRun, replies: Replies) -> None:
    values = wire.EVENT.unpack_from(replies[0], wire.REPLY.size)
    run.msr.reason, run.msr.index, run.msr.data = values[1], values[2], values[9]
    run.msr.error = 0
