# SPDX-License-Identifier: GPL-2.0-or-later
"""The conformance matrix: the cases that every recording of a KVM has, in their order.

A case is a VM and what is done on it. Groups A to I are hypercalls (numbers, addresses, pages,
attributes, capabilities, modes and privilege levels, answers, VMCALL), K to N are KVM's MSRs
(MIGRATION_CONTROL, its neighbours, filters, exits to user space, kvm.ignore_msrs).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Final

import msgspec

from guestemu.abi.addresses import U32_MASK, U64_MASK
from guestemu.abi.msrs import MSR_KVM_CUSTOM_FIRST, MSR_KVM_MIGRATION_CONTROL
from guestemu.conformance.recordings.recording import (
    Answer,
    Config,
    Cpuid,
    Filter,
    Hex,
    Inputs,
    StepOp,
)
from guestemu.host.kvm.uapi import KVM_X86_QUIRK_FIX_HYPERCALL_INSN

LONG, COMPAT, PROT, REAL = "long64", "compat32", "prot32", "real16"
MODES: Final = (LONG, COMPAT, PROT, REAL)

_MAP: Final = 12
_EXITS: Final = 1 << 12
_ALL_FEATURES: Final = 0x3FFFF
_GPA: Final = 0x100000
_PRIVATE: Final = 0x10
_PAGE: Final = 0x1000
_ANSWER: Final = 0x1122334455667788
_TOP: Final = 1 << 63
_MSRS: Final = tuple(range(MSR_KVM_CUSTOM_FIRST, MSR_KVM_CUSTOM_FIRST + 16))
_QUIRK: Final = KVM_X86_QUIRK_FIX_HYPERCALL_INSN


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is done on a VM: an instruction of the guest in `mode` at `cpl`, or an
    ioctl."""

    op: StepOp
    inputs: Inputs
    mode: str = LONG
    cpl: int = 0
    vcpu: int = 0


class OracleCase(msgspec.Struct, frozen=True):
    """A VM and what is done on it, in order."""

    group: str
    cfg: Config
    acts: tuple[Act, ...]


def config(
    *,
    exits: int | None = None,
    cpuid: Cpuid = Cpuid.LEAF,
    features: int = 0,
    enforce: int = 0,
    irqchip: int = 0,
    user_msr: int | None = None,
    msr_filter: Filter = Filter.NONE,
    late: int = 0,
    quirks: int | None = None,
    read_only: int = 0,
    ignore_msrs: int = 0,
    protected: int = 0,
) -> Config:
    """A configuration; what is left out is as in a plain VM with KVM's CPUID leaf."""
    return Config(
        exit_hypercall=None if exits is None else Hex(exits),
        cpuid=cpuid,
        kvm_features=Hex(features),
        enforce_pv=enforce,
        irqchip=irqchip,
        user_space_msr=user_msr,
        msr_filter=msr_filter,
        exit_cap_after_vcpu=late,
        disable_quirks2=None if quirks is None else Hex(quirks),
        ro_code=read_only,
        ignore_msrs=ignore_msrs,
        protected=protected,
    )


_USUAL: Final = config(exits=_EXITS, features=1 << 16)


def call(
    nr: int,
    gpa: int = _GPA,
    pages: int = 4,
    attributes: int = _PRIVATE,
    *,
    mode: str = LONG,
    cpl: int = 0,
    answer: Answer = Answer.WRITE_RET,
    ret: int = 0,
    is_vmcall: bool = False,
) -> Act:
    """A hypercall; numbers are taken modulo 2^64."""
    words = (Hex(value & U64_MASK) for value in (nr, gpa, pages, attributes))
    rax, rbx, rcx, rdx = words
    return Act(
        op=StepOp.VMCALL if is_vmcall else StepOp.VMMCALL,
        inputs=Inputs(rax=rax, rbx=rbx, rcx=rcx, rdx=rdx, answer=answer, ret=Hex(ret & U64_MASK)),
        mode=mode,
        cpl=cpl,
    )


def msr(
    op: StepOp,
    index: int,
    value: int = 0,
    *,
    mode: str = LONG,
    cpl: int = 0,
    error: int = 0,
    data: int = 0,
) -> Act:
    """An access to MSR `index`; `error` and `data` are user space's answer, if it is asked."""
    is_write = op in (StepOp.WRMSR, StepOp.HOST_SET_MSR)
    inputs = Inputs(
        msr=Hex(index),
        val=Hex(value & U64_MASK if is_write else 0),
        answer_error=0 if op.is_ioctl else error,
        answer_data=Hex(data if op is StepOp.RDMSR else 0),
    )
    return Act(op=op, inputs=inputs, mode=mode, cpl=cpl)


def _rd(index: int = MSR_KVM_MIGRATION_CONTROL, *, error: int = 0, data: int = 0) -> Act:
    return msr(StepOp.RDMSR, index, error=error, data=data)


def _wr(value: int, index: int = MSR_KVM_MIGRATION_CONTROL, *, error: int = 0) -> Act:
    return msr(StepOp.WRMSR, index, value, error=error)


def _get(index: int = MSR_KVM_MIGRATION_CONTROL) -> Act:
    return msr(StepOp.HOST_GET_MSR, index)


def _set(value: int, index: int = MSR_KVM_MIGRATION_CONTROL) -> Act:
    return msr(StepOp.HOST_SET_MSR, index, value)


def _each(group: str, cfg: Config, acts: Iterable[Act]) -> Iterator[OracleCase]:
    return (OracleCase(group, cfg, (act,)) for act in acts)


def _numbers() -> Iterator[OracleCase]:
    for exits, features, enforce, irqchip in (
        *((None, 0, 0, 0), (_EXITS, 0, 0, 0), (None, 1 << 16, 0, 0), (_EXITS, 1 << 16, 0, 0)),
        *((_EXITS, 0, 1, 0), (_EXITS, _ALL_FEATURES, 1, 0), (_EXITS, 1 << 16, 1, 0)),
        (_EXITS, _ALL_FEATURES, 1, 1),
    ):
        cfg = config(exits=exits, features=features, enforce=enforce, irqchip=irqchip)
        yield from _each("A_nr_sweep", cfg, (call(nr, attributes=0) for nr in range(16)))
    odd = (
        *(-1, 1 << 32 | 12, _TOP | 12, 0x8000000C, 0xFFFFFFFF0000000C, 16, 17, 100, 1000, -12),
        *(U32_MASK, 1 << 40 | 1 << 32 | 12, 0x10C, 1 << 32 | 1, 1 << 32),
    )
    for nr, mode in product(odd, (LONG, COMPAT)):
        yield OracleCase("A2_nr_odd", _USUAL, (call(nr, attributes=0, mode=mode),))


def _addresses() -> Iterator[OracleCase]:
    sweep = (
        *(0, 1, 8, 0x800, 0xFFF, 0x1000, 0x1001, 0x1FFF, _GPA, 0x1FF000, 0x200000, 0x40000000),
        *(1 << 32, (1 << 32) + 1, 1 << 36, 1 << 40, 1 << 47, 1 << 47 | _GPA, 1 << 51 | _GPA),
        *(1 << 51, (1 << 52) - _PAGE, 1 << 52, (1 << 52) + _PAGE, 1 << 62, _TOP - _PAGE, _TOP),
        *(_TOP | _GPA, *(-_PAGE * pages for pages in range(1, 6)), -1, -0xFFF),
    )
    yield from _each("B_gpa_sweep", _USUAL, (call(_MAP, gpa, attributes=0) for gpa in sweep))
    for gpa in (0, _PAGE, _GPA, (1 << 52) - _PAGE, _TOP, -_PAGE & U64_MASK):
        gfn = gpa >> 12
        for pages in (
            *(0, 1, 2, 4, 1 << 20, 1 << 51, (1 << 52) - 1, (1 << 52) - gfn, 1 << 52),
            *((1 << 52) + 1, _TOP, -1, -gfn, -gfn - 1, -gfn + 1),
        ):
            yield OracleCase("C_gpa_x_npages", _USUAL, (call(_MAP, gpa, pages, 0),))
    for attributes in (
        *range(0x40),
        *(0x40, 0x80, 0x100, 0x1000, 1 << 31, 1 << 32, _TOP, -1, 1 << 32 | _PRIVATE),
    ):
        yield OracleCase("D_attrs", _USUAL, (call(_MAP, attributes=attributes),))
    for gpa, pages, attributes in (
        *((_GPA + _PAGE, 1, 1), (_GPA + _PAGE, 1, 2), (_GPA + 1, 1, 0x10)),
        *((_GPA, 0, 0x10), (_GPA + 0x800, 0, -1)),
    ):
        yield OracleCase("D2_attrs_bad", _USUAL, (call(_MAP, gpa, pages, attributes),))


def _capabilities() -> Iterator[OracleCase]:
    for (exits, late), (cpuid, features), enforce in product(
        ((None, 0), (0, 0), (_EXITS, 0), (_EXITS, 1)),
        (
            *((Cpuid.NONE, 0), (Cpuid.NO_LEAF, 0), (Cpuid.LEAF, 0), (Cpuid.LEAF, 1 << 16)),
            *((Cpuid.LEAF, 1 << 17), (Cpuid.LEAF, 3 << 16), (Cpuid.LEAF, _ALL_FEATURES)),
            *((Cpuid.RELOCATED, 1 << 16), (Cpuid.RELOCATED, 0)),
        ),
        (0, 1),
    ):
        cfg = config(exits=exits, late=late, cpuid=cpuid, features=features, enforce=enforce)
        acts = (call(_MAP), call(_MAP, _GPA + 1, attributes=0), call(11, 0, 0, 0))
        yield OracleCase("E_cap_cpuid_enforce", cfg, acts)
    for mask in (
        *(0, 1, 1 << 11, 1 << 12, 1 << 11 | 1 << 12, 1 << 13, U64_MASK, 1 << 44),
        1 << 44 | 1 << 12,
    ):
        yield OracleCase("E2_cap_mask", config(exits=mask), (call(_MAP),))


def _modes() -> Iterator[OracleCase]:
    places = (
        *((LONG, 0), (LONG, 1), (LONG, 2), (LONG, 3), (COMPAT, 0), (COMPAT, 1), (COMPAT, 3)),
        *((PROT, 0), (PROT, 1), (PROT, 3), (REAL, 0)),
    )
    for (mode, cpl), nr, exits in product(places, (0, 1, 11, 12, 100), (None, _EXITS)):
        cfg = config(exits=exits, features=1 << 16)
        yield OracleCase("F_mode_cpl", cfg, (call(nr, mode=mode, cpl=cpl),))
    for mode in (LONG, COMPAT):
        bad = call(_MAP, _GPA + 1, 0, 0, mode=mode, cpl=3)
        yield OracleCase("F2_cpl3_bad_args", _USUAL, (bad,))
    high = 0xDEADBEEF << 32
    for mode, words in product(
        (COMPAT, PROT, REAL, LONG),
        (
            *((U32_MASK << 32 | 12, _GPA, 4, 0x10), (12, high | _GPA, 4, 0x10)),
            *((12, _GPA, high | 4, 0x10), (12, _GPA, 4, high | 0x10)),
            *((12, _GPA, U32_MASK << 32, 0), (12, 0xFFFFF000, 1, 0)),
            *((12, 0xFFFFF000, U32_MASK, 0), (12, U32_MASK, 1, 0)),
            *((12, _GPA, U32_MASK, U32_MASK), (12, 0, U32_MASK, 0x1F), (high | 1, 1, 1, 1)),
        ),
    ):
        yield OracleCase("F3_upper_halves", _USUAL, (call(*words, mode=mode),))


def _answers() -> Iterator[OracleCase]:
    for ret, mode in product(
        (
            *(0, 1, 2, -1, -22, -1000, -7, -95, -14, 22, 1000, 0xDEADBEEF, 0x80000000),
            *(0xFFFFFFEA, 1 << 32, 0x1234567890ABCDEF, _TOP),
        ),
        MODES,
    ):
        yield OracleCase("G_user_ret", _USUAL, (call(_MAP, mode=mode, ret=ret),))
    for mode in MODES:
        act = call(_MAP, mode=mode, answer=Answer.UNTOUCHED)
        yield OracleCase("G2_ret_untouched", _USUAL, (act,))
    ret = 0x1234567890ABCDEF
    for answer in (
        *(Answer.SET_RAX, Answer.SKIP_RIP, Answer.IMMEDIATE, Answer.CHANGE_ARGS),
        Answer.CLEAR_CS_L,
    ):
        yield OracleCase("I_user_odd", _USUAL, (call(_MAP, answer=answer, ret=ret),))
    odd = call(_MAP, mode=COMPAT, answer=Answer.CHANGE_ARGS, ret=ret)
    yield OracleCase("I_user_odd", _USUAL, (odd,))
    sequence = (
        *(call(_MAP), call(_MAP, attributes=0, ret=-22), call(_MAP, 1, attributes=0)),
        call(_MAP, 0x200000, 1, 0x11, ret=5),
    )
    yield OracleCase("I2_sequence", _USUAL, sequence)


def _vmcall() -> Iterator[OracleCase]:
    changes = ((None, 0), (_QUIRK, 0), (None, 1), (_QUIRK, 1))
    places = ((LONG, 0), (LONG, 3), (COMPAT, 0))
    for nr, (quirks, read_only), (mode, cpl) in product((1, 12, 100), changes, places):
        cfg = config(exits=_EXITS, features=1 << 16, quirks=quirks, read_only=read_only)
        yield OracleCase("H_vmcall", cfg, (call(nr, mode=mode, cpl=cpl, is_vmcall=True),))
    for (quirks, read_only), (mode, cpl) in product(changes, places):
        cfg = config(exits=_EXITS, features=1 << 16, quirks=quirks, read_only=read_only)
        yield OracleCase("H2_vmmcall_contrast", cfg, (call(_MAP, mode=mode, cpl=cpl),))
    for mode in (PROT, REAL):
        yield OracleCase("H_vmcall", _USUAL, (call(_MAP, mode=mode, is_vmcall=True),))


def _migration_control() -> Iterator[OracleCase]:
    for cpuid, features, enforce in (
        *((Cpuid.NONE, 0, 0), (Cpuid.NO_LEAF, 0, 0), (Cpuid.LEAF, 0, 0), (Cpuid.LEAF, 1 << 17, 0)),
        *((Cpuid.LEAF, 3 << 16, 0), (Cpuid.LEAF, 0, 1), (Cpuid.LEAF, 1 << 17, 1)),
        *((Cpuid.LEAF, _ALL_FEATURES, 1), (Cpuid.LEAF, 1 << 16, 1)),
    ):
        cfg = config(cpuid=cpuid, features=features, enforce=enforce)
        values = (0, 1, 2, 3, U64_MASK, 1 << 32, 1 << 32 | 1, _TOP)
        yield OracleCase("K1_migctl_plain", cfg, (_rd(), _get()))
        for value in values:
            yield OracleCase("K1_migctl_plain", cfg, (_wr(value), _rd(), _get()))
        for value in values:
            yield OracleCase("K1_migctl_plain", cfg, (_set(value), _get(), _rd()))
    for user_msr, msr_filter, error, features in product(
        (None, 0, 1, 2, 4, 5, 7), Filter, (0, 1), (0, 1 << 17)
    ):
        if user_msr is None and error:
            continue
        cfg = config(features=features, user_msr=user_msr, msr_filter=msr_filter)
        data = 0 if user_msr is None else _ANSWER
        acts = (
            *(_rd(error=error, data=data), _wr(1, error=error)),
            *(_wr(0xFFFFFFFF00000003, error=error), _get()),
        )
        yield OracleCase("K2_migctl_user", cfg, acts)


def _migration_answers() -> Iterator[OracleCase]:
    acts: tuple[Act, ...]
    denied = config(features=1 << 17, user_msr=7, msr_filter=Filter.DENY_RW)
    for error in (0, 1, 2, 255):
        acts = (_rd(error=error, data=1), _wr(1, error=error), _wr(2, error=error))
        yield OracleCase("K3_migctl_answer", denied, acts)
    for is_asked, (mode, cpl) in product((0, 1), ((LONG, 3), (COMPAT, 0), (PROT, 0), (COMPAT, 3))):
        cfg = denied if is_asked else config(features=1 << 17)
        data = _ANSWER if is_asked else 0
        acts = (
            msr(StepOp.RDMSR, MSR_KVM_MIGRATION_CONTROL, mode=mode, cpl=cpl, data=data),
            msr(StepOp.WRMSR, MSR_KVM_MIGRATION_CONTROL, 1, mode=mode, cpl=cpl),
        )
        yield OracleCase("K4_migctl_cpl_mode", cfg, acts)
    for mask in (8, 16, U32_MASK):
        yield OracleCase("K5_umsr_mask", config(user_msr=mask), (_rd(),))


def _neighbours() -> Iterator[OracleCase]:
    acts: tuple[Act, ...]
    for (features, enforce), index in product(
        ((0, 0), (0, 1), (_ALL_FEATURES, 1), (0x0101FFFF, 1)), _MSRS
    ):
        cfg = config(features=features, enforce=enforce)
        acts = (
            *(_rd(index), _get(index), _wr(0, index), _wr(2, index), _wr(0x100001, index)),
            _rd(index),
        )
        yield OracleCase("L_neighbours", cfg, acts)
        acts = (*(_set(value, index) for value in (0, 1, U64_MASK, 1 << 32)), _get(index))
        yield OracleCase("L_neighbours", cfg, acts)
    for index, msr_filter in product(_MSRS, (Filter.NONE, Filter.DENY_RW)):
        cfg = config(user_msr=7, msr_filter=msr_filter)
        acts = (_rd(index, data=0xABCDEF), _wr(0, index), _wr(2, index), _get(index))
        yield OracleCase("L2_neighbours_user", cfg, acts)
    for index in _MSRS:
        acts = (_rd(index, data=0xABCDEF), _wr(0, index))
        yield OracleCase("L3_neighbours_user_enforced", config(user_msr=7, enforce=1), acts)


def _ignored() -> Iterator[OracleCase]:
    for is_enforced, asks in product((0, 1), range(3)):
        cfg = config(
            features=is_enforced << 17,
            enforce=is_enforced,
            user_msr=7 if asks else None,
            msr_filter=Filter.DENY_RW if asks == 2 else Filter.NONE,
            ignore_msrs=1,
        )
        data = _ANSWER if asks else 0
        acts = (_rd(data=data), _wr(0), _wr(1), _rd(data=data), _get(), _set(1), _get())
        yield OracleCase("N_ignore_msrs", cfg, acts)
    for index in _MSRS:
        yield OracleCase(
            "N_ignore_msrs", config(ignore_msrs=1), (_rd(index), _wr(2, index), _get(index))
        )


def matrix() -> Iterator[OracleCase]:
    """Every case; their numbers in a recording start with 1."""
    for part in (
        *(_numbers, _addresses, _capabilities, _modes, _answers, _vmcall, _migration_control),
        *(_migration_answers, _neighbours, _ignored),
    ):
        yield from part()
