# SPDX-License-Identifier: GPL-2.0-or-later
"""Random configurations and random things to do, for campaigns.

Values lie near the edges of what KVM tests. What would write over the guest's own code or tables is
left out (KVM's MSRs hold addresses that KVM writes to), and so are inter-processor interrupts that
are delivered whether or not the LAPIC is enabled (NMI, SMI, INIT, SIPI) and the answer that moves
RIP: a vCPU that halts with an in-kernel interrupt controller waits for ever.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, TypeVar

from guestemu.abi.addresses import PAGE_MASK, U64_MASK
from guestemu.abi.msrs import MSR_KVM_CUSTOM_FIRST
from guestemu.conformance.recordings.recording import (
    Answer,
    Config,
    Cpuid,
    Filter,
    Hex,
    Inputs,
    StepOp,
)
from guestemu.oracle.matrix import COMPAT, LONG, MODES, PROT, REAL, Act, config

_T = TypeVar("_T")

_EDGES: Final = (
    *(0, 1, 0x800, 0xFFF, 0x1000, 0x100000, 0x1FF000, 0x200000, 1 << 31, 1 << 32, 1 << 40),
    *(1 << 47, (1 << 52) - 1, 1 << 52, 1 << 63, -1 & U64_MASK, -0x1000 & U64_MASK),
    *(-0x2000 & U64_MASK, 0xFFFFF000, 0xFFFFFFFF),
)
_WIDTHS: Final = (8, 21, 33, 52, 64)
_NUMBERS: Final = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 100, 1000)
_ANSWERS: Final = (0, 1, 11, 22, -22 & U64_MASK, -1000 & U64_MASK, 1 << 31, 1 << 32, 1 << 63)
_BEHAVIOURS: Final = (
    *(Answer.UNTOUCHED, Answer.SET_RAX, Answer.IMMEDIATE, Answer.CHANGE_ARGS, Answer.CLEAR_CS_L),
)
_HIGH: Final = 1 << 32
_BITS: Final = (0, 1, 5, 7, 9, 10, 11, 12, 13, 14, 16, 17, 24)
_CPUIDS: Final = (*(Cpuid.LEAF,) * 8, Cpuid.NO_LEAF, Cpuid.RELOCATED, Cpuid.NONE)
_CPLS: Final = {LONG: (0, 0, 0, 0, 1, 2, 3), COMPAT: (0, 0, 0, 3), PROT: (0, 0, 0, 3), REAL: (0,)}
_CALLS: Final = 0.78
_MSR_OPS: Final = (
    *(StepOp.RDMSR, StepOp.RDMSR, StepOp.WRMSR, StepOp.WRMSR, StepOp.WRMSR),
    *(StepOp.HOST_GET_MSR, StepOp.HOST_SET_MSR),
)
_MSR_SHARE: Final = 0.96
_SLOTS: Final = (2, 3, 5, 0x10002, 32763, 32764, 0x20002)
_SLOT_GPAS: Final = (
    *(0x100000, 0x200000, 0x300000, 0x1000000, 0x200800, 1 << 39, (1 << 40) - 0x100000, 1 << 40),
    -0x1000 & U64_MASK,
)
_SLOT_SIZES: Final = (0, 0, 0x1000, 0x100000, 0x200000, 0x800, 1 << 63, -0x1000 & U64_MASK)


class Generator:
    """Draws configurations and acts from `seed`."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.kept: list[Act] = []
        """Acts that did something new; half of the acts are made from one of these."""

    def _pick(self, values: tuple[_T, ...]) -> _T:
        return values[int(self._random.random() * len(values))]

    def _word(self) -> int:
        draw = self._random
        if draw.random() < 0.6:
            return self._pick(_EDGES)
        return draw.getrandbits(self._pick(_WIDTHS))

    def config(self) -> Config:
        """How a VM is set up."""
        draw = self._random
        features = sum(1 << bit for bit in _BITS if draw.random() < 0.5)
        return config(
            exits=self._pick((1 << 12, 1 << 12, 1 << 12, 0, None)),
            cpuid=self._pick(_CPUIDS),
            features=features,
            enforce=int(draw.random() < 0.4),
            irqchip=int(draw.random() < 0.3),
            user_msr=self._pick((None, 0, 1, 2, 4, 7, 7)),
            msr_filter=self._pick((Filter.NONE, Filter.NONE, *Filter)),
            late=int(draw.random() < 0.2),
            quirks=0x20 if draw.random() < 0.15 else None,
            read_only=int(draw.random() < 0.15),
        )

    def vcpus(self) -> int:
        """One in three VMs has two vCPUs."""
        return self._pick((1, 1, 2))

    def program(self, vcpus: int) -> list[Act]:
        """A single act: these VMs have no programs."""
        return [self.act(vcpus)]

    def act(self, vcpus: int = 1) -> Act:
        """Something to do on a VM with `vcpus` vCPUs."""
        draw = self._random
        if self.kept and draw.random() < 0.3:
            return self._changed(draw.choice(self.kept), vcpus)
        share = draw.random()
        if share < _CALLS:
            return self._call(vcpus)
        if share < _MSR_SHARE:
            return self._msr(vcpus)
        return self._ioctl(vcpus)

    def _place(self) -> tuple[str, int]:
        mode = self._pick(MODES)
        return mode, self._pick(_CPLS[mode])

    def _call(self, vcpus: int) -> Act:
        draw = self._random
        nr = 12 if draw.random() < 0.65 else self._pick(_NUMBERS)
        if draw.random() < 0.1:
            nr = nr | self._word() & ~0xFFFF if draw.random() < 0.7 else self._word()
        gpa = self._word() & ~PAGE_MASK if draw.random() < 0.75 else self._word()
        mode, cpl = self._place()
        answer = Answer.WRITE_RET if draw.random() < 0.9 else self._pick(_BEHAVIOURS)
        inputs = Inputs(
            rax=Hex(nr),
            rbx=Hex(gpa),
            rcx=Hex(self._word()),
            rdx=Hex(self._pick((0, 0x10, 0x11, 0x12)) if draw.random() < 0.5 else self._word()),
            rsi=Hex(self._pick((0, 0xFE, 0x800, 0x40000, 0x80000, 1 << 32, 1 << 43))),
            answer=answer,
            ret=Hex(self._pick(_ANSWERS) if draw.random() < 0.7 else draw.getrandbits(64)),
        )
        op = StepOp.VMCALL if draw.random() < 0.06 else StepOp.VMMCALL
        return self._safe(Act(op=op, inputs=inputs, mode=mode, cpl=cpl, vcpu=self._vcpu(vcpus)))

    def _vcpu(self, vcpus: int) -> int:
        return int(self._random.random() * vcpus)

    def _safe(self, act: Act) -> Act:
        """CLOCK_PAIRING writes to the address in RBX: not over the guest's code."""
        inputs = act.inputs
        if inputs.rax & 0xFFFFFFFF == 9 and inputs.rbx & 0xFFFFFFFF < 0x100000:
            inputs = _with(inputs, rbx=Hex(inputs.rbx | 0x100000))
            return Act(op=act.op, inputs=inputs, mode=act.mode, cpl=act.cpl, vcpu=act.vcpu)
        return act

    def _msr(self, vcpus: int) -> Act:
        draw = self._random
        op = self._pick(_MSR_OPS)
        mode, cpl = (LONG, 0) if op.is_ioctl else self._place()
        address = self._pick((0, 0x100000, 0x1FF000, 0x200000, 1 << 32, 1 << 40, 1 << 63))
        value = address + (0x40 * draw.getrandbits(4) if address else 0)
        value |= draw.getrandbits(6) if draw.random() < 0.7 else self._pick((0, 1, 0xFF, 0x100))
        is_write = op in (StepOp.WRMSR, StepOp.HOST_SET_MSR)
        inputs = Inputs(
            msr=Hex(MSR_KVM_CUSTOM_FIRST + draw.getrandbits(4)),
            val=Hex(value if is_write else 0),
            answer_error=0 if op.is_ioctl else self._pick((0, 0, 0, 1, 255)),
            answer_data=Hex(draw.getrandbits(64) if op is StepOp.RDMSR else 0),
        )
        return Act(op=op, inputs=inputs, mode=mode, cpl=cpl, vcpu=self._vcpu(vcpus))

    def _ioctl(self, vcpus: int) -> Act:
        draw = self._random
        makers: tuple[Callable[[], Act], ...] = (
            lambda: _set(
                StepOp.ENABLE_EXITS, self._pick((0, 1 << 12, 1 << 12, 1, 1 << 44, 1 << 12 | 2))
            ),
            lambda: _set(StepOp.ENABLE_MSR_EXITS, self._pick((*range(10), 1 << 31))),
            lambda: _set(StepOp.DISABLE_QUIRKS, self._pick((0, 0x20, 0x20, 1 << 20))),
            lambda: _set(StepOp.ENFORCE_PV, draw.getrandbits(1), self._vcpu(vcpus)),
            lambda: _set(StepOp.SET_FILTER, self._pick(tuple(range(len(Filter))))),
            self._slot,
            self._slot,
        )
        return self._pick(makers)()

    def _slot(self) -> Act:
        inputs = Inputs(
            rax=Hex(self._pick(_SLOT_GPAS)),
            rbx=Hex(self._pick(_SLOT_SIZES)),
            rcx=Hex(self._pick(_SLOTS)),
            rdx=Hex(self._pick((0, 0, 0, 1, 2, 3, 4, 8))),
        )
        return Act(op=StepOp.SET_SLOT, inputs=inputs)

    def _changed(self, act: Act, vcpus: int) -> Act:
        """`act` with one thing changed."""
        if act.op.is_ioctl:
            return self._msr(vcpus) if act.op.is_msr else self._ioctl(vcpus)
        draw = self._random
        inputs, mode, cpl = act.inputs, act.mode, act.cpl
        what = int(draw.random() * 6)
        if what == 0:
            mode, cpl = self._place()
        elif not act.op.is_hypercall:
            return self._msr(vcpus)
        elif what == 1:
            inputs = _with(inputs, rax=Hex(inputs.rax ^ self._pick((_HIGH, 1, 1 << 63, 4))))
        elif what == 2:
            inputs = _with(inputs, rbx=Hex(inputs.rbx ^ 1 << draw.getrandbits(6)))
        elif what == 3:
            inputs = _with(inputs, rcx=Hex(self._word()))
        elif what == 4:
            inputs = _with(inputs, rdx=Hex(self._word()))
        else:
            inputs = _with(inputs, ret=Hex(self._pick(_ANSWERS)))
        return self._safe(Act(op=act.op, inputs=inputs, mode=mode, cpl=cpl, vcpu=self._vcpu(vcpus)))


def _with(inputs: Inputs, **changes: Hex) -> Inputs:
    import msgspec

    return msgspec.structs.replace(inputs, **changes)


def _set(op: StepOp, value: int, vcpu: int = 0) -> Act:
    return Act(op=op, inputs=Inputs(val=Hex(value)), vcpu=vcpu)
