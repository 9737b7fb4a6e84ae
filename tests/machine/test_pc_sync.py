# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulator's switch is found by what it does, and nothing else passes for it."""

from __future__ import annotations

import ctypes

import pytest
from bare_machine import CODE, DATA, HLT, PRIVATE, Bare, mov

from guestemu.abi.x86 import Mode
from guestemu.machine import pc_sync
from guestemu.machine.callbacks import MemoryHook
from guestemu.machine.engine import HOOK_MEM, REGISTERS
from guestemu.machine.exits import ExceptionExit, Halt
from guestemu.machine.native import HostCode
from guestemu.machine.pc_sync import _is_switch, _Trial, find_switch

if find_switch() is None:
    pytest.skip("this build of the emulator has no switch", allow_module_level=True)


def test_only_the_switch_passes_for_it():
    trial = _Trial()
    written = trial.set_by("rip")
    assert find_switch() in written
    assert [byte for byte in written if _is_switch(trial, byte)] == [find_switch()]


def test_a_run_that_goes_wrong_is_no_proof():
    trial = _Trial()
    trial._memory[0] = 0xF4
    assert trial.run() == ()


def test_without_a_size_nothing_is_found(monkeypatch):
    monkeypatch.setattr(pc_sync, "_record_size", lambda _address: 0)
    assert find_switch.__wrapped__() is None


@pytest.mark.skipif(not HostCode().available, reason="no machine code for this host")
def test_the_block_hook_sets_it_where_it_is_told_of_it():
    bare = Bare()
    engine = bare.machine.engine
    seen: list[int] = []
    rip = REGISTERS["rip"]
    engine.add_hook(HOOK_MEM, MemoryHook(lambda *_event: seen.append(engine.read(rip))))
    code = mov(3, PRIVATE + DATA) + b"\x48\x89\x03" + HLT
    assert bare.run(code) == Halt(CODE + 14)
    watch = bare.machine.hooks.watch
    watch.unsynced = ctypes.c_uint64((engine.handle.value or 0) + (find_switch() or 0)).value
    assert bare.run(code) == Halt(CODE + 14)
    watch.unsynced = 0
    assert bare.run(code) == Halt(CODE + 14)
    assert seen == [CODE + 10, CODE, CODE + 10]


@pytest.mark.skipif(not HostCode().available, reason="no machine code for this host")
def test_a_fault_has_its_own_rip_where_hooks_have_that_of_the_block():
    bare = Bare()
    hooks = bare.machine.hooks
    code = mov(3, PRIVATE + DATA) + b"\x48\x89\x03" + mov(3, 0x7FFF_0000_0000) + b"\x48\x89\x03"
    bare.place(CODE, code + HLT)
    vcpu = bare.machine.current
    vcpu.deliver = False
    bare.enter(Mode.LONG64, 0)
    wanted = vcpu.run(CODE, 100)
    assert isinstance(wanted, ExceptionExit)
    assert vcpu.read_register("rip") == CODE + 23
    with hooks.rip_by_block():
        assert hooks.watch.unsynced
        bare.enter(Mode.LONG64, 0)
        assert vcpu.run(CODE, 100) == wanted
        assert vcpu.read_register("rip") == CODE + 23
    assert not hooks.watch.unsynced
