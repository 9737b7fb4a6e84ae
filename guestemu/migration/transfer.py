# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a machine travels beside its pages, and how a destination takes it.

A vCPU travels as the emulator's saved context. It holds all that a running guest depends on:
general and control registers, hidden parts of segments, EFER and the SYSCALL MSRs, SSE and x87
state. Register by register would lose the hidden parts. The arithmetic flags are in it as bits of
RFLAGS: the emulator keeps the operands that they follow from, and leaves old ones behind, which are
no state of a CPU. What is not in a context is here: the MSRs that the machine answers itself, and
`StatePart`s (a platform's clock, say).

Not carried, on purpose, and made good by `restore_state`: the TLB (a context restore leaves it, and
a stale C-bit in it would store into the wrong view), translated blocks where code pages moved, and
what the machine read from the guest's descriptor tables. Pages travel by a link.

A context fits the same build of the emulator only; a state says which build made it.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import msgspec
import unicorn

from guestemu.abi.errors import EngineError, InputError
from guestemu.abi.x86 import RFLAGS_ARITHMETIC, RFLAGS_DF
from guestemu.machine.engine import Engine
from guestemu.machine.machine import Machine
from guestemu.machine.vcpu import Vcpu

_CONTEXT_HEADER: Final = 40
"""Bytes of `struct uc_context` in front of the CPU (include/uc_priv.h, Unicorn 2.1): sizes and
pointers that belong to the process."""

_CONTEXT_TAIL: Final = 8
"""Bytes at its end: `retaddr`, an address in the process's translated code (i386/cpu.h)."""

_FLAGS_AT: Final = _CONTEXT_HEADER + 136
_FLAGS: Final = struct.Struct("<QQQQI")
"""CPUX86State: eflags, cc_dst, cc_src, cc_src2, cc_op. While the CPU runs, eflags is without the
arithmetic flags and DF; a run starts with those that are in it (`x86_cpu_exec_enter`)."""
_CC_OP_EFLAGS: Final = 1
"""The arithmetic flags are the bits of cc_src."""

_CPU: Final = slice(_CONTEXT_HEADER, -_CONTEXT_TAIL)

_NO_PARTS: Final[Mapping[str, StatePart]] = {}


class StatePart(Protocol):
    """State of a guest's hardware that is neither in the CPU, nor in the MSR file, nor in RAM."""

    def capture(self) -> bytes:
        """The state in a form that another process can read."""

    def restore(self, data: bytes) -> None:
        """Takes over what `capture` of a part of the same kind gave."""


class MachineState(msgspec.Struct, frozen=True):
    """A stopped machine without its RAM.

    `emulator` names the build of the CPU emulator; `vcpus` are the contexts in the order of their
    indices, `current` is the one that was executing; `msrs` are the platform MSRs, `parts` the
    captured `StatePart`s by name.
    """

    emulator: str
    vcpus: tuple[bytes, ...]
    current: int
    msrs: dict[int, int]
    parts: dict[str, bytes]


@functools.cache
def emulator_build() -> str:
    """Names the emulator that is loaded: its version and the size of its library in bytes."""
    return f"unicorn {unicorn.__version__} {Path(Engine.library_path()).stat().st_size}"


def capture_state(machine: Machine, parts: Mapping[str, StatePart] = _NO_PARTS) -> MachineState:
    """The state of `machine`, which stands between two instructions. Changes nothing."""
    current = machine.current.index
    contexts = tuple(_plain_flags(machine.activate(index)) for index in range(len(machine.vcpus)))
    machine.activate(current)
    return MachineState(
        emulator_build(),
        contexts,
        current,
        dict(machine.msrs.platform),
        {name: part.capture() for name, part in parts.items()},
    )


def _plain_flags(vcpu: Vcpu) -> bytes:
    """The context of `vcpu` with its arithmetic flags worked out."""
    data = bytearray(vcpu.save().bytes)
    flags = vcpu.read_register("rflags")
    hidden = RFLAGS_ARITHMETIC | RFLAGS_DF
    others = _FLAGS.unpack_from(data, _FLAGS_AT)[0] & ~hidden
    if others != flags & ~hidden:
        raise EngineError("this build of libunicorn orders its context otherwise; use 2.1.x")
    arithmetic = flags & RFLAGS_ARITHMETIC
    _FLAGS.pack_into(data, _FLAGS_AT, flags, 0, arithmetic, 0, _CC_OP_EFLAGS)
    return bytes(data[_CPU])


def restore_state(
    machine: Machine,
    state: MachineState,
    parts: Mapping[str, StatePart] = _NO_PARTS,
    code_moved: bool = False,
) -> None:
    """Puts `machine`, made with the same configuration (its key may differ), into `state`.

    Afterwards the guest goes on with `machine.current.run(machine.current.read_register("rip"),
    budget)`. With `code_moved` the pages that came hold code that this machine has executed before.
    Raises `InputError` for a state of another emulator, number of vCPUs or set of parts.
    """
    if state.emulator != emulator_build():
        raise InputError(
            f"machine state of {state.emulator}: this is {emulator_build()}; "
            "use the same build at both ends"
        )
    if len(state.vcpus) != len(machine.vcpus):
        raise InputError(
            f"machine state of {len(state.vcpus)} vCPUs: this machine has {len(machine.vcpus)}; "
            "give both ends the same header"
        )
    if state.parts.keys() != parts.keys():
        raise InputError(
            f"machine state with parts {sorted(state.parts)}: this machine has {sorted(parts)}; "
            "give both ends the same guest"
        )
    if code_moved:
        machine.hooks.forget_code()
    machine.hooks.clear()
    for index, data in enumerate(state.vcpus):
        vcpu = machine.activate(index)
        context = vcpu.save()
        context.bytes[_CPU] = data
        vcpu.load()
        vcpu.reset_selectors()
    machine.activate(state.current)
    machine.msrs.platform.clear()
    machine.msrs.platform.update(state.msrs)
    for name, part in parts.items():
        part.restore(state.parts[name])
