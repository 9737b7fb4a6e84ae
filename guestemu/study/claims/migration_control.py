# SPDX-License-Identifier: GPL-2.0-or-later
"""What MSR_KVM_MIGRATION_CONTROL says, and about whom: C16, C17.

C16 calls the functions of a real kernel that write it (A43, A44); C17 runs our own guest with two
vCPUs on hosts that keep the MSR in different scopes (K5-e).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from guestemu.abi.msrs import KVM_MIGRATION_READY, MSR_KVM_MIGRATION_CONTROL
from guestemu.host.base import Host, VcpuAccess
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.host.registry import load_host
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header
from guestemu.runner.testbed import build_testbed
from guestemu.study.claims.claim import Claim, Lab, Need
from guestemu.study.claims.kernels import CalledKernel
from guestemu.study.claims.result import ClaimResult, ClaimWitness, Evidence, decide
from guestemu.study.claims.witness_text import program_witness

GUEST: Final = "snippet:6.1"
VCPUS: Final = 2
_SYS_RESTART: Final = 1
_GFP_ZEROED: Final = 0xDC0

Leave = Callable[[CalledKernel], tuple[int, ...]]
"""Calls a way out of running; gives back what it wrote to MIGRATION_CONTROL."""


def _cpu_off(kernel: CalledKernel) -> tuple[int, ...]:
    kernel.call("kvm_cpu_down_prepare", 0)
    return kernel.migration_control


def _suspend(kernel: CalledKernel) -> tuple[int, ...]:
    kernel.call("kvm_suspend")
    return kernel.migration_control


def _reboot(kernel: CalledKernel) -> tuple[int, ...]:
    block = kernel.guest.kernel.address("kvm_pv_reboot_nb")
    kernel.call("kvm_pv_reboot_notify", block, _SYS_RESTART, 0)
    return kernel.migration_control


def _crash(kernel: CalledKernel) -> tuple[int, ...]:
    names = ("__get_free_pages", "get_free_pages_noprof")
    registers = kernel.guest.calls.must(names, _GFP_ZEROED, 0)
    kernel.call("machine_crash_shutdown", registers)
    return kernel.migration_control


def _cpu_on(kernel: CalledKernel) -> tuple[int, ...]:
    kernel.call("kvm_cpu_online", 0)
    return kernel.migration_control


def _resume(kernel: CalledKernel) -> tuple[int, ...]:
    kernel.call("kvm_resume")
    return kernel.migration_control


def _refused(kernel: CalledKernel) -> tuple[int, ...]:
    kernel.recorder.answer = -22 & 0xFFFF_FFFF_FFFF_FFFF
    page = kernel.guest.calls.must(("__get_free_pages", "get_free_pages_noprof"), _GFP_ZEROED, 0)
    kernel.call("set_memory_decrypted", page, 1)
    return kernel.migration_control


LEAVING: Final[tuple[tuple[str, str, Leave], ...]] = (
    ("a CPU goes off line", "kvm_cpu_down_prepare()", _cpu_off),
    ("suspend", "kvm_suspend()", _suspend),
    ("reboot and kexec", "kvm_pv_reboot_notify()", _reboot),
    ("crash", "machine_crash_shutdown()", _crash),
)
"""Ways to leave: some come back in a second, some never."""

RETURNING: Final[tuple[tuple[str, str, Leave], ...]] = (
    ("the CPU comes back", "kvm_cpu_online()", _cpu_on),
    ("resume", "kvm_resume()", _resume),
)


def one_bit(lab: Lab, leaving: tuple[tuple[str, str, Leave], ...] = LEAVING) -> ClaimResult:
    """C16: the sequence of writes for each reason, and at the return from it."""
    evidence: list[Evidence] = []
    gone: set[tuple[int, ...]] = set()
    back: set[tuple[int, ...]] = set()
    failed: set[tuple[int, ...]] = set()
    for name in lab.kernels:
        kernel = CalledKernel(name)
        for seen, ways in ((gone, leaving), (back, RETURNING)):
            for what, function, way in ways:
                kernel.guest.reset()
                written = way(kernel)
                seen.add(written)
                evidence.append(Evidence(f"{name}: {what}", _words(written), how=function))
        kernel.guest.reset()
        written = _refused(kernel)
        failed.add(written)
        evidence.append(
            Evidence(
                f"{name}: a conversion that the host refuses",
                _words(written),
                how="set_memory_decrypted(), hypercall answered with -22",
            )
        )
        kernel.guest.reset()
    is_same = len(gone) == 1 and gone == {(0,)}
    return ClaimResult(
        verdict=decide(confirmed=is_same, refuted=len(gone) == len(leaving)),
        evidence=tuple(evidence),
        guests=lab.kernels,
        witnesses=tuple(
            ClaimWitness(
                "kvm_cpu_down_prepare(0), then kvm_cpu_online(0): WRMSR 0, and no WRMSR of 1 after "
                "it",
                f"guestemu kernel call kvm_cpu_down_prepare 0 --image {_series(name)}",
            )
            for name in lab.kernels[:1]
        ),
        remark=(
            "After a CPU that went and came back, and after suspend and resume, migration stays "
            "disabled: nothing writes 1 again."
            if back == {()}
            else ""
        )
        + (" A refused conversion writes nothing at all." if failed == {()} else ""),
    )


def _series(name: str) -> str:
    return name.partition(":")[2]


def _words(written: tuple[int, ...]) -> str:
    return ", ".join(f"WRMSR {value}" for value in written) or "nothing"


class _PerVcpuHost(MapGpaRangeHost):
    """A user space that keeps MIGRATION_CONTROL for each vCPU, as the documentation would allow.

    `needs_all`: the VM may migrate when every vCPU has 1; else when any has. A VM of `VCPUS`.
    """

    needs_all: ClassVar[bool] = True

    def reset(self, frames: int) -> None:
        """A new VM: no vCPU has written."""
        super().reset(frames)
        self._written: dict[int, int] = {}

    def restore(self, frames: int) -> None:
        """As `reset`."""
        super().restore(frames)
        self._written = {}

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """Kept for `vcpu`."""
        super().wrmsr(index, value, vcpu)
        if index == MSR_KVM_MIGRATION_CONTROL:
            self._written[id(vcpu)] = value & KVM_MIGRATION_READY

    @property
    def migration_ready(self) -> bool:
        """By `needs_all`; a vCPU that never wrote has 0, the initial value of encrypted guests."""
        ready = sum(self._written.values())
        return ready == VCPUS if self.needs_all else ready > 0


class _AllVcpusHost(_PerVcpuHost):
    """Every vCPU has to allow."""


class _AnyVcpuHost(_PerVcpuHost):
    """One vCPU is enough."""

    needs_all: ClassVar[bool] = False


def _scopes() -> dict[str, Host]:
    return {
        "one latch for the VM": load_host("map-gpa-range"),
        "one for each vCPU, all must be 1": _AllVcpusHost(),
        "one for each vCPU, one 1 is enough": _AnyVcpuHost(),
    }


_BOOT: Final = Op(OpKind.INIT_PLATFORM, (0,), vcpu=0)
_OFFLINE: Final = Op(OpKind.CPU_OFFLINE, vcpu=1)


def vm_wide(_lab: Lab, scopes: Callable[[], dict[str, Host]] = _scopes) -> ClaimResult:
    """C17: vCPU 0 boots and writes 1, vCPU 1 goes off line and writes 0."""
    seen = {name: _ready(host) for name, host in scopes().items()}
    meaningful = [name for name, pair in seen.items() if pair == (True, False)]
    is_one = meaningful == ["one latch for the VM"]
    return ClaimResult(
        verdict=decide(
            confirmed=len(set(seen.values())) == 1 and bool(meaningful),
            refuted=not meaningful,
            conditional=is_one and len(set(seen.values())) == len(seen),
        ),
        condition=(
            "the VMM makes it so: the interface does not say, and Linux's writes of 1 on one CPU "
            "and of 0 on another both have an effect only if the VM has one switch"
        ),
        evidence=tuple(
            Evidence(
                name,
                f"after boot {_allowed(pair[0])}, after the off-line CPU {_allowed(pair[1])}",
                how="migration allowed; vCPU 0 writes 1 at boot, vCPU 1 writes 0",
            )
            for name, pair in (*seen.items(), *((spec, _posted(spec)) for spec in _POSTED))
        ),
        guests=(GUEST,),
        witnesses=(program_witness(Header(guest=GUEST, vcpus=VCPUS), (_BOOT, _OFFLINE)),),
    )


_POSTED: Final = ("qemu-v4", "shared-list-v10", "bitmap-v8")
"""Hosts as they were posted; two of them take no 0."""


def _posted(spec: str) -> tuple[bool, bool]:
    return _ready(load_host(spec))


def _ready(host: Host) -> tuple[bool, bool]:
    """Whether migration is allowed after the boot, and after CPU 1 went."""
    bed = build_testbed(Header(guest=GUEST, vcpus=VCPUS), host)
    bed.run((_BOOT,))
    booted = host.migration_ready
    bed.run((_BOOT, _OFFLINE))
    return booted, host.migration_ready


def _allowed(ready: bool) -> str:
    return "yes" if ready else "no"


CLAIMS: Final = (
    Claim(
        "C16",
        "A host cannot tell from MIGRATION_CONTROL whether migration was disabled for a moment or "
        "for good.",
        "Steve Rutherford, 17 May 2021: 'Having permanent disablement be indistinguishable from a "
        "really long reboot is a recipe for a really sad long timeout in userspace'",
        one_bit,
        Need.KERNEL,
    ),
    Claim(
        "C17",
        "MIGRATION_CONTROL is one switch for the whole VM.",
        "implied by Linux, which writes 1 on one CPU and 0 on each that goes",
        vm_wide,
    ),
)
